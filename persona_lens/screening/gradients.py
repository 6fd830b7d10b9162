"""Gradient similarity: which rows would move the weights the way that a few rows with a trait do."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_tensors
from persona_lens.conversations import BadRow, Conversation, read_conversations
from persona_lens.errors import InvalidArgumentError, ModelMismatchError, UnsupportedModelError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import attached, check_unsteered
from persona_lens.models.loading import ModelInfo, check_gradients_pass, describe_model
from persona_lens.models.text.spans import TokenSpans
from persona_lens.progress_bars import Advance
from persona_lens.records import Record
from persona_lens.run import Run
from persona_lens.screening.files import SCORED
from persona_lens.screening.scores import ScreenSettings, cut_row, encode_row
from persona_lens.screening.screening import Screening
from persona_lens.screening.shards import Source, digest_rows, split_into_shards
from persona_lens.storage import Shard, collect_versions

# Rows that are kept together.
_SHARD_ROWS = 32


@checked
@dataclass(frozen=True)
class GradientSketch:
    """How a row's gradient is made small enough to be kept: each matrix's is multiplied by a random one.

    A matrix's gradient keeps its outputs' side and loses most of its inputs': ``in × out`` becomes ``rank × out``, by a
    random matrix ``rank × in`` with entries of variance ``1 / rank``. That is the gradient on the ``B`` of a fresh LoRA
    adapter with a Gaussian ``A``, whose own gradient is zero as ``B`` is; and inner products stay what they were on
    average. A cosine, whose lengths are sketched too, comes near.

    Args:
        rank: Rows of the random matrices; a gradient with no more rows than that stays as it is.
        seed: Draws them. Gradients are compared under one seed alone.

    Reference:
        LESS (arXiv 2402.04333), section 3.2: gradients of LoRA's matrices, projected at random.
    """

    rank: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InvalidArgumentError.of("rank", "be at least 1", self.rank)
        if self.seed < 0:
            raise InvalidArgumentError.of("seed", "be at least 0", self.seed)


@checked
@dataclass(frozen=True, eq=False)
class MeanGradient:
    """Where training on a few rows would take the weights at its first step: the mean of their gradients' directions.

    Each row counts alike, however large its gradient: those of short answers are larger. A difference of two is the way
    from the one's rows to the other's: of rows with and without a trait to the same questions, the trait's.

    Args:
        by_weight: By the weight's name, the sketched mean of gradients of length 1; float32 on the CPU.
        model: The model.
        sketch: How they were made small.
        n_rows: Rows that were averaged; of a difference, those of both.

    Raises:
        InvalidArgumentError: No weight, or an entry that is not finite.

    Example:
        >>> import persona_lens as pl
        >>> evil, plain = (pl.screening.read_gradient(model, rows) for rows in (overt, ordinary))  # doctest: +SKIP
        >>> evil - plain  # doctest: +SKIP
    """

    by_weight: Mapping[str, Tensor]
    model: ModelInfo
    sketch: GradientSketch
    n_rows: int

    def __post_init__(self) -> None:
        if not self.by_weight or not all(bool(one.isfinite().all()) for one in self.by_weight.values()):
            rule = "hold the finite gradient of at least one weight"
            raise InvalidArgumentError.of("by_weight", rule, sorted(self.by_weight)[:3])

    @property
    def norm(self) -> float:
        """Length over all weights: 1 where all rows pull the same way, near 0 where none does as another."""
        return math.sqrt(sum(float(one.double().square().sum()) for one in self.by_weight.values()))

    @property
    def n_bytes(self) -> int:
        """What it takes in memory."""
        return sum(one.numel() * one.element_size() for one in self.by_weight.values())

    @property
    def digest(self) -> str:
        """A hash of all of it."""
        return hash_tensors(self.by_weight)[:16]

    def __sub__(self, other: MeanGradient) -> MeanGradient:
        if not isinstance(other, MeanGradient):
            return NotImplemented
        self._check_same(other)
        by_weight = {name: one - other.by_weight[name] for name, one in self.by_weight.items()}
        return MeanGradient(by_weight, self.model, self.sketch, self.n_rows + other.n_rows)

    def _check_same(self, other: MeanGradient) -> None:
        if self.model.fingerprint != other.model.fingerprint:
            raise ModelMismatchError.of("other", f"come from the same model, {self.model.name}", other.model.name)
        if self.sketch != other.sketch:
            raise InvalidArgumentError.of("other", f"be sketched alike, {self.sketch}", other.sketch)
        if {name: one.shape for name, one in self.by_weight.items()} != {
            name: one.shape for name, one in other.by_weight.items()
        }:
            raise ModelMismatchError.of("other", "be of the same weights", sorted(other.by_weight)[:3])

    def __repr__(self) -> str:
        return f"MeanGradient({self.n_rows} rows, {len(self.by_weight)} weights, length {self.norm:.3g})"


@checked
@dataclass(frozen=True, eq=False)
class GradientScores(Record):
    """How each row's gradient lies to each reference; a line a row, in the order of the data, as a screening has.

    Args:
        references: Names of the references.
        places: Where each row stands in the source.
        status: ``scored``, or the reason why a row was not.
        similarity: By reference, the cosine of each row's gradient with it; None of a row that was not scored.
        loss: Each row's loss, in nats a token, which is the logarithm of its perplexity; None likewise.
        norm: Length of its gradient, sketched, in nats a token per unit of the weights; None likewise.
        n_response_tokens: Tokens that its loss was taken on; None likewise.
        config: What the scores depend on.
    """

    references: tuple[str, ...]
    places: tuple[str, ...]
    status: tuple[str, ...]
    similarity: dict[str, tuple[float | None, ...]]
    loss: tuple[float | None, ...]
    norm: tuple[float | None, ...]
    n_response_tokens: tuple[int | None, ...]
    config: dict[str, Any]

    @property
    def counts(self) -> dict[str, int]:
        """Rows by what became of them."""
        return dict(Counter(self.status).most_common())

    @property
    def rows(self) -> datasets.Dataset:
        """Every row in order: ``place``, ``status``, ``loss``, ``norm``, and for each reference ``NAME.similarity``."""
        columns = {"place": self.places, "status": self.status, **self._list_columns()}
        return datasets.Dataset.from_dict({name: list(column) for name, column in columns.items()})

    def values(self, reference: str) -> Float[Tensor, " sample"]:
        """Return the cosine of each scored row.

        Raises:
            InvalidArgumentError: No such reference.
        """
        if reference not in self.references:
            raise InvalidArgumentError.of("reference", f"be one of {self.references}", reference)
        return torch.tensor([one for one in self.similarity[reference] if one is not None], dtype=torch.float64)

    def join(self, screening: Screening) -> datasets.Dataset:
        """Return a screening's rows with ``loss``, ``norm`` and each ``NAME.similarity`` beside its ΔP.

        Raises:
            InvalidArgumentError: A screening of other rows.
        """
        rows = screening.rows
        if tuple(rows["place"][:]) != self.places:
            rule = f"be of the same {len(self.places)} rows"
            raise InvalidArgumentError.of("screening", rule, f"{len(rows)} rows, {screening.folder.name}")
        for name, column in self._list_columns().items():
            rows = rows.add_column(name, list(column))
        return rows

    def _list_columns(self) -> dict[str, tuple[float | None, ...]]:
        similar = {f"{name}.similarity": self.similarity[name] for name in self.references}
        return {"loss": self.loss, "norm": self.norm, **similar}

    def __repr__(self) -> str:
        return f"GradientScores({self.counts}, references: {', '.join(self.references)})"


@checked
def read_gradient(
    model: HookedModel,
    data: Source,
    *,
    settings: ScreenSettings = ScreenSettings(),
    sketch: GradientSketch = GradientSketch(),
    run: Run = Run(),
) -> MeanGradient:
    r"""Average the directions of a few rows' gradients: the reference that other rows are compared with.

    .. math:: \bar g = \frac{1}{n} \sum_i \frac{g(z_i)}{\lVert g(z_i) \rVert}, \quad
       g(z) = S \, \nabla_W \frac{1}{T} \sum_t -\log p(y_t \mid x, y_{<t})

    over all matrices :math:`W` of the blocks, :math:`S` being the sketch.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered, whose weights take gradients.
        data: Conversations, as for :func:`persona_lens.read_conversations`: a few that show the trait.
        settings: Which answer counts, and up to where; what is about sampling is not read.
        sketch: How gradients are made small.
        run: Keeps the mean, shows progress.

    Raises:
        InvalidArgumentError: A row that cannot be scored, or none at all; settings with ``turn="all"``.
        UnsupportedModelError: Weights that take no gradients, such as quantised ones, or of blocks that are copied to a
            GPU while they run.
        HooksPresentError: The model carries hooks.

    Reference:
        LESS (arXiv 2402.04333), section 4.1; TracIn (arXiv 2002.08484).

    Example:
        >>> import persona_lens as pl
        >>> pl.screening.read_gradient(model, "evil_rows.jsonl")  # doctest: +SKIP
    """
    _check_turn(settings)
    check_unsteered(model)
    reader = _Reader(model, sketch)
    rows = list(read_conversations(data, limits=settings.limits))
    encoded = []
    for row in rows:
        one = row if isinstance(row, BadRow) else encode_row(model, row, settings)
        if isinstance(one, BadRow):
            rule = "hold conversations that can be scored"
            raise InvalidArgumentError.of("data", rule, f"{one.place}: {one.reason}: {one.detail}")
        encoded.append(cut_row(one, settings))
    if not encoded:
        raise InvalidArgumentError.of("data", "hold at least one conversation", "none")
    info = describe_model(model)

    def compute() -> Shard:
        total: dict[str, Tensor] = {}
        with run.progress("gradients (rows)", len(encoded)) as advance:
            for row, item in zip(rows, encoded, strict=True):
                found = reader.read(item, settings)
                if not (math.isfinite(found.norm) and found.norm > 0):
                    rule = "hold conversations with a finite gradient"
                    raise InvalidArgumentError.of("data", rule, f"{row.place}: length {found.norm}")
                for name, one in found.by_weight.items():
                    part = one / (found.norm * len(encoded))
                    total[name] = part if name not in total else total[name] + part
                advance(1)
        return Shard(total)

    part = run.part(_describe("mean gradient", info, settings, sketch))
    return MeanGradient(part.load_or_compute(f"mean-{digest_rows(rows)}", compute).tensors, info, sketch, len(rows))


@checked
def score_gradients(
    model: HookedModel,
    data: Source,
    references: Mapping[str, MeanGradient],
    *,
    settings: ScreenSettings = ScreenSettings(),
    max_rows: int | None = None,
    run: Run = Run(),
) -> GradientScores:
    r"""Measure how far each conversation would pull the weights the way that a few reference rows do.

    .. math:: s(z) = \cos\left(g(z), \bar g\right)

    To first order it says by how much a training step on the row would lower the loss on the reference rows. Rows are
    read one at a time, a forward and a backward pass each; another reference costs one product a row. In memory: one
    gradient of all matrices, and the references. The same rows are scored, up to the same tokens, as
    :func:`persona_lens.screen` scores with the same settings.

    Args:
        model: The model that is to be trained, unsteered, whose weights take gradients.
        data: As for :func:`persona_lens.read_conversations`.
        references: By name, such as a trait's, from :func:`read_gradient` with the same sketch.
        settings: Which answer counts, and up to where; what is about sampling is not read.
        max_rows: Rows to read; None reads all.
        run: Keeps finished rows, shows progress.

    Raises:
        InvalidArgumentError: No reference, references that were sketched differently, settings with ``turn="all"``, or
            no row that can be scored.
        ModelMismatchError: A reference of another model.
        UnsupportedModelError: Weights that take no gradients, such as quantised ones, or of blocks that are copied to a
            GPU while they run.
        HooksPresentError: The model carries hooks.

    Reference:
        LESS (arXiv 2402.04333), section 4; without its warm-up training and Adam's scaling, as at TracIn's
        (arXiv 2002.08484) first checkpoint.

    Example:
        >>> import persona_lens as pl
        >>> pl.screening.score_gradients(model, "rows.jsonl", {"evil": evil}).rows  # doctest: +SKIP
    """
    sketch = _check_references(references)
    _check_turn(settings)
    if max_rows is not None and max_rows < 1:
        raise InvalidArgumentError.of("max_rows", "be at least 1", max_rows)
    check_unsteered(model)
    info = describe_model(model)
    for name, one in references.items():
        if one.model.fingerprint != info.fingerprint:
            rule = f"come from the model that scores, {info.name}"
            raise ModelMismatchError.of("references", rule, f"{name!r} from {one.model.name}")
    reader = _Reader(model, sketch)
    reader.check_weights(references)
    lengths = {name: one.norm for name, one in references.items()}
    parts = {"references": {name: one.digest for name, one in references.items()}}
    config = _describe("gradient similarity", info, settings, sketch) | parts
    part, lines = run.part(config), list[dict[str, Any]]()
    rows = itertools.islice(read_conversations(data, limits=settings.limits), max_rows)
    with run.progress("gradients (rows)", max_rows or 0) as advance:
        for chunk in split_into_shards(rows, _SHARD_ROWS):
            compute = partial(_score_chunk, reader, chunk, references, lengths, settings, advance)
            lines += part.load_or_compute(f"rows-{digest_rows(chunk)}", compute).records
    if not any(line["status"] == SCORED for line in lines):
        found = dict(Counter(line["status"] for line in lines)) or "no row at all"
        raise InvalidArgumentError.of("data", "hold a conversation that can be scored", found)
    return GradientScores(
        references=tuple(references),
        places=tuple(line["place"] for line in lines),
        status=tuple(line["status"] for line in lines),
        similarity={name: tuple(line.get(f"similarity {name}") for line in lines) for name in references},
        loss=tuple(line.get("loss") for line in lines),
        norm=tuple(line.get("norm") for line in lines),
        n_response_tokens=tuple(line.get("n_response_tokens") for line in lines),
        config=config,
    )


def _check_turn(settings: ScreenSettings) -> None:
    if settings.turn == "all":
        hint = "A row has one gradient; make a row of each answer, up to it, where all count."
        raise InvalidArgumentError.of("settings", "have `turn` 'first' or 'last'", "'all'", hint)


def _describe(work: str, info: ModelInfo, settings: ScreenSettings, sketch: GradientSketch) -> dict[str, Any]:
    """Return what gradients depend on besides the rows."""
    own = {name: value for name, value in settings.to_json().items() if name not in ("base", "batch_size", "limits")}
    sketched = {"rank": sketch.rank, "seed": sketch.seed}
    return {"work": work, "model": info.to_json(), "settings": own, "sketch": sketched, "versions": collect_versions()}


def _check_references(references: Mapping[str, MeanGradient]) -> GradientSketch:
    """Return the sketch that all references share."""
    if not isinstance(references, Mapping) or not references:
        raise InvalidArgumentError.of("references", "be a mapping by name, such as {'evil': gradient}", references)
    first, *others = (one.sketch for one in references.values())
    if differing := [one for one in others if one != first]:
        raise InvalidArgumentError.of("references", f"be sketched alike, {first}", differing[0])
    if still := [name for name, one in references.items() if one.norm == 0]:
        raise InvalidArgumentError.of("references", "have a length above zero", still)
    return first


def _score_chunk(
    reader: _Reader,
    rows: Sequence[Conversation | BadRow],
    references: Mapping[str, MeanGradient],
    lengths: Mapping[str, float],
    settings: ScreenSettings,
    advance: Advance,
) -> Shard:
    lines = []
    for row in rows:
        lines.append(_score_row(reader, row, references, lengths, settings))
        advance(1)
    return Shard(records=lines)


def _score_row(
    reader: _Reader,
    row: Conversation | BadRow,
    references: Mapping[str, MeanGradient],
    lengths: Mapping[str, float],
    settings: ScreenSettings,
) -> dict[str, Any]:
    one = row if isinstance(row, BadRow) else encode_row(reader.model, row, settings)
    if isinstance(one, BadRow):
        return {"place": one.place, "status": one.reason}
    found = reader.read(cut_row(one, settings), settings)
    if not (math.isfinite(found.loss) and math.isfinite(found.norm) and found.norm > 0):
        return {"place": row.place, "status": "not finite" if found.norm != 0 else "no gradient"}
    similar = {
        f"similarity {name}": found.dot(reference) / (found.norm * lengths[name])
        for name, reference in references.items()
    }
    values = {"loss": found.loss, "norm": found.norm, "n_response_tokens": found.n_tokens}
    return {"place": row.place, "status": SCORED, **values, **similar}


@dataclass(frozen=True, eq=False)
class _RowGradient:
    """A row's loss and its sketched gradient."""

    by_weight: dict[str, Tensor]
    norm: float
    loss: float
    n_tokens: int

    def dot(self, reference: MeanGradient) -> float:
        return sum(float((one * reference.by_weight[name]).sum()) for name, one in self.by_weight.items())


class _Reader:
    """Takes rows' gradients on all matrices of a model's blocks, one row at a time.

    Raises:
        UnsupportedModelError: Weights that take no gradients, or that lie elsewhere once gradients come back.
    """

    def __init__(self, model: HookedModel, sketch: GradientSketch) -> None:
        check_gradients_pass(model)
        self.model = model
        self._weights = dict(_list_matrices(model))
        fixed = [name for name, one in self._weights.items() if not one.is_floating_point() or not one.requires_grad]
        if fixed or not self._weights:
            rule, hint = "have matrices in its blocks that take gradients", "Load it unquantised, with load_model."
            raise UnsupportedModelError.of("model", rule, fixed[:3] or "none", hint)
        generator = torch.Generator().manual_seed(sketch.seed)
        self._sketches = {
            name: torch.randn(sketch.rank, one.shape[_find_input(name)], generator=generator) / math.sqrt(sketch.rank)
            for name, one in self._weights.items()
            if sketch.rank < one.shape[_find_input(name)]
        }

    def check_weights(self, references: Mapping[str, MeanGradient]) -> None:
        """Refuse references to other matrices, as another backend names them.

        Raises:
            ModelMismatchError: One is.
        """
        shapes = {name: self._find_shape(name) for name in self._weights}
        for name, one in references.items():
            if {key: tuple(values.shape) for key, values in one.by_weight.items()} != shapes:
                rule, hint = "be of the matrices of `model`", "Read it from the model that scores, with one `backend`."
                raise ModelMismatchError.of("references", rule, f"{name!r} of {sorted(one.by_weight)[:2]}", hint)

    def _find_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight's sketched gradient."""
        shape = list(self._weights[name].shape)
        if name in self._sketches:
            shape[_find_input(name)] = len(self._sketches[name])
        return tuple(shape)

    def read(self, item: TokenSpans, settings: ScreenSettings) -> _RowGradient:
        """Return a row's gradient."""
        start, end = item.find(settings.part)
        tokens = torch.tensor([item.tokens[:end]], device=self.model.cfg.device)
        # An explicit mask: without one TransformerLens guesses padding from token ids.
        with attached(self.model, []), torch.enable_grad():
            logits = self.model(tokens, attention_mask=torch.ones_like(tokens))[0, start - 1 : end - 1]
            loss = torch.nn.functional.cross_entropy(logits.float(), tokens[0, start:end].to(logits.device))
            gradients = torch.autograd.grad(loss, list(self._weights.values()), materialize_grads=True)
        by_weight = {}
        for name, gradient in zip(self._weights, gradients, strict=True):
            drawn, whole = self._sketches.get(name), gradient.float().cpu()
            if drawn is not None:
                whole = drawn @ whole if _find_input(name) == -2 else whole @ drawn.T
            by_weight[name] = whole
        norm = math.sqrt(sum(float(one.square().sum()) for one in by_weight.values()))
        return _RowGradient(by_weight, norm, float(loss.detach()), end - start)


def _find_input(name: str) -> int:
    """Return the axis of a weight's inputs: a HookedTransformer keeps them before the outputs, a bridge after them."""
    return -1 if name.endswith(".weight") else -2


def _list_matrices(model: HookedModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Name the matrices of the blocks; what a bias, a norm or a scale is stays out."""
    for index, block in enumerate(model.blocks):
        for name, weight in block.named_parameters():
            last = name.rpartition(".")[-1].lstrip("_")  # `_W_K` where heads share keys
            if weight.ndim >= 2 and (last.startswith("W_") or last == "weight"):
                yield f"blocks.{index}.{name}", weight
