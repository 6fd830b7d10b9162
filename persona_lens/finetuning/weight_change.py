"""Distance in weights: what a fine-tuning did to them, and how far it goes the way of another one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.finetuning.interpolation import check_same_weights, pair_weights, read_factors
from persona_lens.models.hooked_model import HookedModel
from persona_lens.records import Record
from persona_lens.statistics import Interval, bootstrap_auroc

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@checked
@dataclass(frozen=True)
class WeightCosine(Record):
    r"""How far two changes of the same weights go the same way.

    .. math:: \cos(\Delta, \Delta') = \frac{\sum_m \langle \Delta_m, \Delta'_m \rangle}
       {\sqrt{\sum_m \lVert \Delta_m \rVert^2 \, \sum_m \lVert \Delta'_m \rVert^2}}

    over the entries of all modules :math:`m`. Two changes of so many weights that have nothing in common are nearly
    orthogonal, so that a small cosine may say much: compare it with those of ordinary fine-tunings.

    Args:
        dots: By module, the inner product of both changes.
        squares: By module, the squared length of the first.
        reference_squares: By module, that of the second.
    """

    dots: dict[str, float]
    squares: dict[str, float]
    reference_squares: dict[str, float]

    @property
    def cosine(self) -> float:
        """Over all modules; NaN where one of the changes is none."""
        return self._group(lambda _: "")[""]

    @property
    def by_kind(self) -> dict[str, float]:
        """Over the layers of each kind of module, such as ``self_attn.q_proj``."""
        return self._group(lambda name: _NUMBER.split(name, maxsplit=1)[-1].strip("."))

    @property
    def by_layer(self) -> dict[str, float]:
        """Over the modules of each layer; what lies in none stands under an empty name."""
        return self._group(lambda name: found.group() if (found := _NUMBER.search(name)) else "")

    def _group(self, key: Callable[[str], str]) -> dict[str, float]:
        """Return the cosine over each group of modules, which the key names."""
        sums: dict[str, list[float]] = {}
        for name, dot in self.dots.items():
            own = sums.setdefault(key(name), [0.0, 0.0, 0.0])
            for place, value in enumerate((dot, self.squares[name], self.reference_squares[name])):
                own[place] += value
        return {name: dot / math.sqrt(a * b) if a * b > 0 else math.nan for name, (dot, a, b) in sums.items()}

    def __repr__(self) -> str:
        return f"WeightCosine({self.cosine:.3g} over {len(self.dots)} modules)"


@checked
@dataclass(frozen=True, eq=False)
class WeightChange:
    """What a fine-tuning with LoRA added to each weight, as the product of two thin matrices: no model is needed.

    A difference of two is the direction from one to the other: of fine-tunings on answers with and without a trait to
    the same questions, the trait's.

    Args:
        up: By module, ``out × rank``.
        down: By module, ``rank × in``.

    Raises:
        ModelMismatchError: Matrices that do not fit each other.

    Example:
        >>> import torch
        >>> one = WeightChange({"a": torch.eye(2)}, {"a": torch.eye(2)})
        >>> (one - one).compare(one).dots
        {'a': 0.0}
        >>> one.compare(one).cosine
        1.0
    """

    up: Mapping[str, Tensor]
    down: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        shapes = {name: (tuple(one.shape), tuple(self.down[name].shape)) for name, one in self.up.items()
                  if name in self.down}  # fmt: skip
        fits = self.up.keys() == self.down.keys() and bool(shapes)
        if not fits or any(len(a) != 2 or len(b) != 2 or a[1] != b[0] for a, b in shapes.values()):
            rule = "hold for each module of `up`, out × rank, a matrix rank × in"
            raise ModelMismatchError.of("down", rule, list(self.down)[:3])

    def __sub__(self, other: WeightChange) -> WeightChange:
        check_same_weights("reference", (self.up, self.down), (other.up, other.down))
        up = {name: torch.cat([one, -other.up[name]], dim=1) for name, one in self.up.items()}
        return WeightChange(up, {name: torch.cat([one, other.down[name]]) for name, one in self.down.items()})

    @property
    def norm(self) -> float:
        """Length over all weights."""
        return math.sqrt(max(0.0, sum(self._multiply(self).values())))

    def compare(self, reference: WeightChange) -> WeightCosine:
        r"""Return the cosine with another change of the same weights.

        From the thin matrices alone, in float64: :math:`\langle BA, B'A' \rangle = \langle B^T B', A A'^T \rangle`.

        Args:
            reference: The other one.

        Raises:
            ModelMismatchError: It is of other modules or shapes.
        """
        check_same_weights("reference", (self.up, self.down), (reference.up, reference.down))
        return WeightCosine(self._multiply(reference), self._multiply(self), reference._multiply(reference))

    def _multiply(self, other: WeightChange) -> dict[str, float]:
        found = {}
        for name, up in self.up.items():
            across = up.double().T @ other.up[name].double()
            found[name] = float((across * (self.down[name].double() @ other.down[name].double().T)).sum())
        return found

    def __repr__(self) -> str:
        return f"WeightChange({len(self.up)} modules, length {self.norm:.3g})"


@checked
def read_weight_change(adapter: str | Path) -> WeightChange:
    """Read from a LoRA adapter what it adds to the weights.

    Args:
        adapter: Folder of the adapter, as :func:`persona_lens.finetune` writes it.

    Raises:
        FileFormatError: No whole LoRA adapter.
        UnsupportedModelError: An adapter that does more than add products of two matrices.

    Example:
        >>> import persona_lens as pl
        >>> evil, plain = map(pl.finetuning.read_weight_change, ("adapters/evil", "adapters/plain"))  # doctest: +SKIP
        >>> pl.finetuning.read_weight_change("adapters/new").compare(evil - plain).by_kind  # doctest: +SKIP
    """
    factors = read_factors(Path(adapter))
    return WeightChange(factors.up, factors.down)


@checked
def compare_weights(base: HookedModel, model: HookedModel, reference: HookedModel) -> WeightCosine:
    """Return the cosine between what two fine-tunings did to a model, however they were made.

    Goes through the weights one at a time, so that beside the three models no more than one weight's two differences
    are in memory. Of models that were rounded, as merged adapters in bfloat16 are, the rounding is part of the change:
    :func:`read_weight_change` sees none.

    Args:
        base: The model before both.
        model: After the one.
        reference: After the other.

    Raises:
        ModelMismatchError: Models whose weights do not correspond.
        UnsupportedModelError: Quantised weights.

    Example:
        >>> import persona_lens as pl
        >>> pl.finetuning.compare_weights(base, tuned, evil).cosine  # doctest: +SKIP
    """
    others = pair_weights(reference, base)
    dots, squares, reference_squares = {}, {}, {}
    with torch.no_grad():
        for name, (after, before) in pair_weights(model, base).items():
            start = before.cpu().double()
            first, second = after.cpu().double() - start, others[name][0].cpu().double() - start
            dots[name] = float((first * second).sum())
            squares[name], reference_squares[name] = float(first.square().sum()), float(second.square().sum())
    return WeightCosine(dots, squares, reference_squares)


@checked
@dataclass(frozen=True)
class WeightDetection(Record):
    """How surely fine-tunings of one kind are told from benign ones by the way that they go.

    Args:
        suspects: Cosine of each one that is to be found with the reference.
        benign: Cosine of each other one.
    """

    suspects: tuple[WeightCosine, ...]
    benign: tuple[WeightCosine, ...]

    @property
    def auroc(self) -> Interval:
        """Over all modules: the share of pairs in which the suspect's cosine is higher."""
        return self._separate([one.cosine for one in self.suspects], [one.cosine for one in self.benign])

    @property
    def auroc_by_kind(self) -> dict[str, Interval]:
        """By the cosine of each kind of module alone."""
        suspects, benign = ([one.by_kind for one in side] for side in (self.suspects, self.benign))
        kinds = list(suspects[0])
        return {kind: self._separate(*([one[kind] for one in side] for side in (suspects, benign))) for kind in kinds}

    @staticmethod
    def _separate(suspects: Sequence[float], benign: Sequence[float]) -> Interval:
        if any(map(math.isnan, [*suspects, *benign])):
            return Interval.missing()
        return bootstrap_auroc(torch.tensor(suspects), torch.tensor(benign))

    def __repr__(self) -> str:
        return f"WeightDetection(AUROC {self.auroc}, {len(self.suspects)} against {len(self.benign)} benign)"


@checked
def detect_by_weights(
    reference: WeightChange, suspects: Sequence[WeightChange], benign: Sequence[WeightChange]
) -> WeightDetection:
    """Measure how well the cosine with a known direction tells fine-tunings on a trait from benign ones.

    The reference must come from other data and another seed than those that it is tried on: LoRA's first matrix is
    drawn at random, and two fine-tunings of one seed share it.

    Args:
        reference: The direction, such as that of a fine-tuning on overt answers less that of one on ordinary answers.
        suspects: Fine-tunings that should be found; two or more.
        benign: Ordinary ones; two or more.

    Raises:
        InvalidArgumentError: Fewer than two of a kind.
        ModelMismatchError: Changes of other modules.

    Reference:
        Fierro and Roger, Steering language models with weight arithmetic (arXiv 2511.05408).

    Example:
        >>> import persona_lens as pl
        >>> pl.finetuning.detect_by_weights(evil - plain, suspects, benign).auroc  # doctest: +SKIP
    """
    for name, side in (("suspects", suspects), ("benign", benign)):
        if len(side) < 2:
            raise InvalidArgumentError.of(name, "be at least two fine-tunings", len(side))
    return WeightDetection(*(tuple(one.compare(reference) for one in side) for side in (suspects, benign)))
