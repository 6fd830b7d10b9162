"""A vector beside an autoencoder's features, and how far its decomposition into them can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.records import Record
from persona_lens.tensors.directions import cosine, normalize
from persona_lens.vectors.contents.autoencoders import SparseAutoencoder
from persona_lens.vectors.contents.sparse_sums import sum_sparsely


@checked
@dataclass(frozen=True)
class FeatureCosine(Record):
    """A feature with the cosine of its decoder direction with a vector."""

    feature: int
    cosine: float


@checked
def rank_features(
    direction: Float[Tensor, " d_model"], autoencoder: SparseAutoencoder, n: int = 50
) -> tuple[FeatureCosine, ...]:
    """Return the features whose decoder directions lie nearest to a vector or to its opposite, the nearest first.

    Args:
        direction: At the autoencoder's layer, of any length.
        autoencoder: Of the same model.
        n: Features.

    Raises:
        InvalidArgumentError: Another width, a direction without length, or more features than there are.

    Reference:
        Persona Vectors (arXiv 2507.21509), appendix M.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.rank_features(vector.directions[15], autoencoder)[0]  # doctest: +SKIP
        FeatureCosine(feature=911, cosine=0.31)
    """
    _check_width(direction, autoencoder)
    if not 1 <= n <= autoencoder.n_features:
        raise InvalidArgumentError.of("n", f"be in [1, {autoencoder.n_features}]", n)
    cosines = autoencoder.directions @ normalize(direction).cpu()
    order = cosines.abs().argsort(descending=True, stable=True)[:n]
    return tuple(FeatureCosine(int(index), float(cosines[index])) for index in order)


@checked
@dataclass(frozen=True, eq=False)
class DecompositionCheck(Record):
    """Whether an autoencoder can say what is in a vector.

    Args:
        relative_norm: The vector's length as a share of the mean length of the activations.
        n_firing: Features that fire for the vector.
        shared_with_zero: Share of these that fire for a stream of zeros too, and so say nothing of the vector.
        reconstruction_cosine: Of the vector with what the autoencoder makes of it less what it makes of zeros.
        shifted_cosine: Of the vector with what adding it to the mean activation changes in the reconstruction.
        negative_share: Share of the squared cosines with decoder directions that lies with those below zero.
        explained: Share of the squared length that a sum of ``n_terms`` decoder directions of either sign explains.
        negative_terms: Share of that sum's terms that are subtracted.
        n_terms: Terms.
    """

    relative_norm: float
    n_firing: int
    shared_with_zero: float
    reconstruction_cosine: float
    shifted_cosine: float
    negative_share: float
    explained: float
    negative_terms: float
    n_terms: int


@checked
def check_decomposition(
    direction: Float[Tensor, " d_model"],
    autoencoder: SparseAutoencoder,
    activations: Float[Tensor, "token d_model"],
    *,
    n_terms: int = 16,
) -> DecompositionCheck:
    """Measure how far an autoencoder misleads about a vector, before its features are believed.

    A steering vector is a difference of activations. An encoder knows activations only: its biases count for a stream
    of their length, and it has no features below zero.

    Args:
        direction: The vector at the autoencoder's layer, raw: its length counts.
        autoencoder: Of the same model.
        activations: Ordinary tokens' at that layer.
        n_terms: Of the sum of either sign that is compared.

    Raises:
        InvalidArgumentError: Another width, a direction without length, no activations or too many terms.

    Reference:
        Mayne, Yang and Mahdi, Can sparse autoencoders be used to decompose and interpret steering vectors? (arXiv
        2411.08790): steering vectors lie outside what the encoder was made for, and project negatively on features.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.check_decomposition(vector.directions[15], autoencoder, activations)  # doctest: +SKIP
    """
    _check_width(direction, autoencoder)
    if activations.shape[1] != direction.shape[0] or len(activations) == 0:
        raise InvalidArgumentError.of("activations", f"have width {direction.shape[0]}", tuple(activations.shape))
    vector = direction.float().cpu()
    cosines = autoencoder.directions @ normalize(vector)
    wide = activations.float().cpu()
    mean = wide.mean(dim=0)
    zero = torch.zeros_like(vector)
    of_vector, of_zero = (autoencoder.encode(one) > 0 for one in (vector, zero))
    (found,) = sum_sparsely(vector[None], autoencoder.decoder, n_terms)
    below = cosines.clamp(max=0.0).square().sum() / cosines.square().sum()
    return DecompositionCheck(
        relative_norm=float(vector.norm() / wide.norm(dim=1).mean()),
        n_firing=int(of_vector.sum()),
        shared_with_zero=float((of_vector & of_zero).sum() / of_vector.sum().clamp(min=1)),
        reconstruction_cosine=_compare(autoencoder, vector, zero),
        shifted_cosine=_compare(autoencoder, vector, mean),
        negative_share=float(below),
        explained=float(found.explained[-1]),
        negative_terms=sum(one < 0 for one in found.coefficients) / len(found.coefficients),
        n_terms=n_terms,
    )


def _compare(
    autoencoder: SparseAutoencoder, vector: Float[Tensor, " d_model"], start: Float[Tensor, " d_model"]
) -> float:
    """Return the cosine of a vector with the change that it makes in the reconstruction; 0 where it makes none."""
    with_it, without = (autoencoder.decode(autoencoder.encode(one)) for one in (start + vector, start))
    change = with_it - without
    return float(cosine(change, vector)) if bool(change.norm() > 0) else 0.0


def _check_width(direction: Float[Tensor, " d_model"], autoencoder: SparseAutoencoder) -> None:
    if direction.shape[0] != autoencoder.decoder.shape[1]:
        raise InvalidArgumentError.of("direction", f"have width {autoencoder.decoder.shape[1]}", direction.shape[0])
