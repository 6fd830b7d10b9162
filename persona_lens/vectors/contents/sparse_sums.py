"""A vector as a sum of few directions out of many: orthogonal matching pursuit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.unembedding import read_token_rows
from persona_lens.models.hooked_model import HookedModel
from persona_lens.records import Record
from persona_lens.tensors.directions import normalize

# What float32 atoms no longer tell from nothing: of a unit's squared length, and of a cosine.
_EXACT, _NO_COSINE = 1e-12, 1e-6


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
            ``autoencoder.directions``. Beside it are held its atoms at length 1, as much memory again in
            float32 and twice that while they are made: 700 MB for 151,936 tokens of width 576.
        n_terms: Atoms to take, at most ``d_model`` and the number of atoms; fewer come back where a sum
            is exact, or the atoms span no more of the direction.

    Raises:
        InvalidArgumentError: Widths that differ, an atom or direction without length, or too many terms.

    Reference:
        Pati et al., Orthogonal matching pursuit (Asilomar 1993).

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
    atoms, units = normalize(dictionary).cpu(), normalize(directions).cpu()
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


def _pursue(atoms: Float[Tensor, "atom d_model"], unit: Float[Tensor, " d_model"], n_terms: int) -> SparseSum:
    """Take the atom nearest to what is left, fit all coefficients anew, and go on."""
    unit = unit.double()
    order: list[int] = []
    explained: list[float] = []
    coefficients, left = unit.new_zeros(0), unit
    while len(order) < n_terms and float(left.square().sum()) > _EXACT:
        nearest = (atoms @ left.to(atoms.dtype)).abs()
        nearest[order] = -1.0  # what is left is at right angles to these but for rounding
        found = int(nearest.argmax())
        if float(nearest[found]) <= _NO_COSINE * float(left.norm()):
            break  # it lies outside what the atoms span
        order.append(found)
        used = atoms[order].double().T
        coefficients = torch.linalg.lstsq(used, unit[:, None]).solution[:, 0]
        left = unit - used @ coefficients
        explained.append(1 - float(left.square().sum()))
    return SparseSum(tuple(order), tuple(coefficients.tolist()), torch.tensor(explained).clamp(0.0, 1.0))
