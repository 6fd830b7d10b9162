"""Ways to find a direction from paired activations, one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.storage import collect_versions
from persona_lens.tensors.directions import cosine, mean_difference, normalize
from persona_lens.vectors.pairs import ActivationPairs
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

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2.
    """

    def estimate(
        self, positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"], layer: int
    ) -> Float[Tensor, " d_model"]:
        """Return the difference of the means."""
        return mean_difference(positive, negative)


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

    Example:
        >>> import persona_lens as pl
        >>> pairs = pl.vectors.read_pairs(model, "evil", examples)  # doctest: +SKIP
        >>> vector = pl.vectors.find_vector(pairs, pl.vectors.MeanDifference())  # doctest: +SKIP
    """
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
    """Return an estimator's kind and its settings as JSON-able values; tensors are left out."""
    settings: dict[str, Any] = (
        {one.name: getattr(estimator, one.name) for one in fields(estimator)} if is_dataclass(estimator) else {}
    )
    return {"kind": type(estimator).__name__} | {
        name: value for name, value in settings.items() if isinstance(value, (int, float, str, bool))
    }
