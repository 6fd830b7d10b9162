"""Ways to find a direction from paired activations, one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_tensors
from persona_lens.errors import InvalidArgumentError
from persona_lens.storage import collect_versions
from persona_lens.tensors.directions import cosine, mean_difference, normalize
from persona_lens.vectors.cleaned import WithoutShared
from persona_lens.vectors.pairs import ActivationPairs, check_sides
from persona_lens.vectors.persona_vector import ExtractionCounts, PersonaVector


@runtime_checkable
class Estimator(Protocol):
    """A way to find a direction: :class:`MeanDifference` and its like, or one's own."""

    def estimate(
        self, positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"], layer: int
    ) -> Float[Tensor, " d_model"]:
        """Return a direction of any length and sign, from one layer's activations of the pairs."""
        ...


@checked
@dataclass(frozen=True)
class MeanDifference:
    """The mean of the answers with the trait less the mean of those without: the paper's persona vector.

    When to use it: first. It is the direction that moves the mean, needs no setting, and its noise falls with the
    number of pairs.

    Memory: one vector beyond the activations; :func:`persona_lens.extract_persona_vector` and
    :func:`persona_lens.read_persona_vector` form it without keeping activations at all.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2.
    """

    def estimate(
        self, positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"], layer: int
    ) -> Float[Tensor, " d_model"]:
        """Return the difference of the means."""
        return mean_difference(positive, negative)


@checked
@dataclass(frozen=True)
class FirstComponent:
    r"""The first principal component of the answers around each pair's midpoint: control vectors' "PCA".

    .. math:: \arg\max_{|u| = 1} \sum_i (d_i \cdot u)^2, \quad d_i = a_i^+ - a_i^-

    Around its midpoint a pair is :math:`\pm d_i / 2`, so its mean is zero and nothing else is taken away: what the
    differences have in common stays, where centring them would remove the very thing looked for.

    When to use it: to compare with control vectors, or where a few pairs of another nature would spoil a mean. Long
    differences count by their square, so a direction in which pairs differ much, with either sign, can win over
    one in which they all differ a little the same way; then the mean difference is better.

    Deterministic: the whole singular value decomposition is taken, where peers draw a random start.
    Memory: ``2 * pair * d_model`` numbers of 8 bytes and as many for the decomposition, one layer at a time.

    Reference:
        Representation Engineering (arXiv 2310.01405), section 3.1; repeng's ``pca_center``.

    Example:
        >>> difference = torch.tensor([[4.0, 1.0], [4.0, -1.0]])
        >>> found = FirstComponent().estimate(difference, torch.zeros(2, 2), 0)
        >>> found.abs()
        tensor([1., 0.])
    """

    def estimate(
        self, positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"], layer: int
    ) -> Float[Tensor, " d_model"]:
        """Return the component, of length one; zero where no pair differs."""
        from sklearn.decomposition import PCA  # slow to import

        check_sides(positive, negative)
        if positive.shape != negative.shape:
            rule = f"pair up with `positive`, of shape {tuple(positive.shape)}"
            raise InvalidArgumentError.of("negative", rule, tuple(negative.shape))
        half = ((positive.double() - negative.double()) / 2).cpu().numpy()
        if not half.any():
            return torch.zeros(positive.shape[1])
        component = PCA(n_components=1, svd_solver="full").fit(np.concatenate([half, -half])).components_[0]
        return torch.from_numpy(component).float()


@checked
def find_vector(pairs: ActivationPairs, estimator: Estimator = MeanDifference()) -> PersonaVector:
    r"""Find a direction at every layer, whatever the estimator, in the paper's unit.

    Each direction :math:`u` is scaled and signed so that one step along it leads from the mean of the answers without
    the trait to that of those with it, as far as :math:`u` sees them:

    .. math:: v = u \, (\bar a_+ - \bar a_-) \cdot u, \quad |u| = 1

    For the mean difference that is the difference itself, so coefficients of one estimator mean what those of another
    do.

    Args:
        pairs: From :func:`persona_lens.vectors.read_pairs` or :func:`persona_lens.vectors.sample_pairs`.
        estimator: The way.

    Returns:
        The vector, for the response mean; the split-half cosine is that of the pairs' even and odd questions.

    Raises:
        InvalidArgumentError: An estimator found no direction at a layer, or one that the classes do not differ along.
        ModelMismatchError: An estimator that rests on vectors of another model.

    Example:
        >>> import persona_lens as pl
        >>> pairs = pl.vectors.read_pairs(model, "evil", examples)  # doctest: +SKIP
        >>> vector = pl.vectors.find_vector(pairs, pl.vectors.MeanDifference())  # doctest: +SKIP
    """
    if isinstance(estimator, WithoutShared):
        estimator.check_model(pairs.model)
    halves = [[i for i, question in enumerate(pairs.questions) if question % 2 == half] for half in (0, 1)]
    found = _estimate_layers(pairs, estimator)
    split_half = {}
    if min(map(len, halves)) >= 2:
        first, second = (_estimate_layers(pairs.take(half), estimator) for half in halves)
        split_half["response_mean"] = cosine(first, second)
    return PersonaVector(
        trait=pairs.trait,
        model=pairs.model,
        by_position={"response_mean": found},
        counts=ExtractionCounts(pairs=len(pairs), kept=len(pairs)),
        split_half_cosine=split_half,
        provenance=pairs.provenance | {"estimator": describe_estimator(estimator), "versions": collect_versions()},
    )


def _estimate_layers(pairs: ActivationPairs, estimator: Estimator) -> Float[Tensor, "layer d_model"]:
    directions = []
    for layer in range(pairs.model.n_layers):
        positive, negative = pairs.positive[:, layer], pairs.negative[:, layer]
        found = estimator.estimate(positive, negative, layer)
        if not bool(torch.isfinite(found).all()) or not bool(found.any()):
            rule = f"find a finite direction with a length above zero at layer {layer}"
            raise InvalidArgumentError.of("estimator", rule, type(estimator).__name__)
        unit = normalize(found.float())
        length = float(mean_difference(positive, negative) @ unit)
        if length == 0:
            rule = f"find a direction along which the means of the two classes differ at layer {layer}"
            raise InvalidArgumentError.of("estimator", rule, type(estimator).__name__)
        directions.append(unit * length)
    return torch.stack(directions)


def describe_estimator(estimator: Estimator) -> dict[str, Any]:
    """Return an estimator's kind and its settings as JSON-able values, tensors and vectors as hashes."""

    def describe(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [describe(one) for one in value]
        if isinstance(value, PersonaVector):
            return f"{value.trait} {value.digest}"
        if isinstance(value, Tensor):
            return hash_tensors({"": value.detach().cpu()})
        return value if isinstance(value, int | float | str | bool | None) else repr(value)

    names: list[str] = [one.name for one in fields(estimator)] if is_dataclass(estimator) else []
    return {"kind": type(estimator).__name__} | {name: describe(getattr(estimator, name)) for name in names}
