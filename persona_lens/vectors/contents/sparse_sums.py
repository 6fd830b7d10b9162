"""A vector as a sum of few directions out of many: orthogonal matching pursuit, by scikit-learn."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.unembedding import read_token_rows
from persona_lens.models.hooked_model import HookedModel
from persona_lens.records import Record
from persona_lens.tensors.directions import normalize


@checked
@dataclass(frozen=True, eq=False)
class SparseSum(Record):
    """A direction as a sum of few unit directions of a dictionary.

    Args:
        chosen: Indices in the dictionary, in the order in which they were taken.
        coefficients: Of the whole sum, as shares of the direction's length; below 0 where an atom is subtracted.
        explained: Share of the squared length that the sum of the first ones explains, from one to all.
    """

    chosen: tuple[int, ...]
    coefficients: tuple[float, ...]
    explained: Float[Tensor, " term"]


@checked
def sum_sparsely(
    directions: Float[Tensor, "direction d_model"], dictionary: Float[Tensor, "atom d_model"], n_terms: int = 32
) -> tuple[SparseSum, ...]:
    r"""Write each direction as a sum of few atoms, each taken to be the one nearest to what is left.

    .. math:: v / |v| \approx \sum_{i \le k} c_i\, d_i, \quad
        \text{explained}_k = 1 - \bigl| v / |v| - \sum_{i \le k} c_i d_i \bigr|^2

    Coefficients of either sign; all are fitted anew with each atom. A dictionary of many atoms explains much of *any*
    direction: only what random directions do not reach is about the vector.

    Args:
        directions: Of any length above zero.
        dictionary: Atoms of any length above zero, such as :func:`persona_lens.models.read_token_rows` or
            ``autoencoder.directions``; half of its memory again is used.
        n_terms: Atoms to take, at most ``d_model`` and the number of atoms; fewer come back where a sum is exact.

    Raises:
        InvalidArgumentError: Widths that differ, an atom or direction without length, or too many terms.

    Reference:
        Pati et al., Orthogonal matching pursuit (Asilomar 1993); scikit-learn's ``orthogonal_mp``.

    Example:
        >>> atoms = torch.eye(3)
        >>> (found,) = sum_sparsely(torch.tensor([[0.0, -3.0, 4.0]]), atoms, n_terms=2)
        >>> found.chosen, [round(one, 2) for one in found.explained.tolist()]
        ((2, 1), [0.64, 1.0])
    """
    if directions.shape[1] != dictionary.shape[1] or 0 in directions.shape or len(dictionary) == 0:
        rule = f"have the width of `directions`, {directions.shape[1]}, and an atom"
        raise InvalidArgumentError.of("dictionary", rule, tuple(dictionary.shape))
    most = min(dictionary.shape)
    if not 1 <= n_terms <= most:
        raise InvalidArgumentError.of("n_terms", f"be in [1, {most}], as `dictionary` spans no more", n_terms)
    atoms = normalize(dictionary).cpu().numpy().T
    units = normalize(directions).cpu()
    return tuple(_pursue(atoms, unit, n_terms) for unit in units)


@checked
def sum_token_directions(
    model: HookedModel, directions: Float[Tensor, "direction d_model"], n_terms: int = 32
) -> tuple[SparseSum, ...]:
    """Write each direction as a sum of few tokens' directions in the unembedding; an atom is a token's id.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        directions: In the residual stream, of any layer: near the end they may be sums of few, early ones are not.
        n_terms: Tokens to take.

    Raises:
        InvalidArgumentError: As :func:`sum_sparsely`.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> model, vector = pl.load_model(), pl.load_vector("evil")  # doctest: +SKIP
        >>> (found,) = pl.vectors.sum_token_directions(model, vector.directions[15:16])  # doctest: +SKIP
        >>> model.tokenizer.batch_decode(found.chosen)  # doctest: +SKIP
    """
    if directions.shape[1] != model.cfg.d_model:
        raise InvalidArgumentError.of("directions", f"have width {model.cfg.d_model}", directions.shape[1])
    return sum_sparsely(directions, read_token_rows(model), n_terms)


def _pursue(atoms: Float[ndarray, "d_model atom"], unit: Float[Tensor, " d_model"], n_terms: int) -> SparseSum:
    from sklearn.linear_model import orthogonal_mp  # slow to import

    target = unit.numpy()
    with warnings.catch_warnings():  # a sum that is exact ends early, and there is nothing more to take
        warnings.simplefilter("ignore", RuntimeWarning)
        path = orthogonal_mp(atoms, target, n_nonzero_coefs=n_terms, return_path=True)
    path = torch.from_numpy(path.reshape(len(path), -1)).double()
    order, seen = [], set()
    for step in path.T:
        new = [index for index in step.nonzero().flatten().tolist() if index not in seen]
        order += new
        seen |= set(new)
    used = torch.from_numpy(atoms[:, order]).double()
    left = unit.double()[:, None] - used @ path[order]
    explained = (1 - left.square().sum(dim=0)).clamp(0.0, 1.0)
    return SparseSum(tuple(order), tuple(path[order, -1].tolist()), explained.float())
