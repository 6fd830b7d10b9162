"""Tokens drawn from logits, each from one uniform number."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

# What is drawn from logits that are not finite.
NOT_FINITE = -1
# Probabilities are formed for this many rows at a time: larger buffers are fetched anew from the system each time.
_DRAWN_AT_ONCE = 64


def draw_tokens(
    logits: Float[Tensor, "row vocab"], draws: Float[Tensor, " row"], temperature: float, top_p: float
) -> Int[Tensor, " row"]:
    r"""Turn one uniform draw a row into a token, by inverting the cumulative distribution.

    The token is the first ``t`` with :math:`\sum_{s \le t} p_s > u`, where ``p`` is the tempered (and, for
    ``top_p < 1``, truncated) distribution.

    Args:
        logits: Any float dtype; computed in float32.
        draws: Uniform in [0, 1).
        temperature: 0 takes the most likely token.
        top_p: Probability mass to keep.

    Returns:
        Token ids; ``NOT_FINITE`` for a row with NaN, infinity, or nothing but negative infinity.

    Example:
        >>> draw_tokens(torch.tensor([[0.0, 0.0]]), torch.tensor([0.7]), temperature=1.0, top_p=1.0)
        tensor([1])
    """
    if temperature == 0:
        highest, tokens = logits.max(dim=-1)  # NaN counts as the highest
        return tokens.masked_fill(~highest.isfinite(), NOT_FINITE)
    parts = zip(logits.split(_DRAWN_AT_ONCE), draws.split(_DRAWN_AT_ONCE), strict=True)
    return torch.cat([_draw(part, part_draws, temperature, top_p) for part, part_draws in parts])


def _draw(
    logits: Float[Tensor, "row vocab"], draws: Float[Tensor, " row"], temperature: float, top_p: float
) -> Int[Tensor, " row"]:
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        # A token stays if the mass before it is still short of top_p; the first always stays.
        dropped = ordered.cumsum(dim=-1) - ordered >= top_p
        dropped[:, 0] = False
        ordered = ordered.masked_fill(dropped, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return _invert_cumulative(probabilities, draws.to(probabilities))


def _invert_cumulative(probabilities: Float[Tensor, "row vocab"], draws: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Find each row's first token whose cumulative mass exceeds ``draw * total``, in blocks of 256 tokens.

    Summing blocks first touches the vocabulary once, vectorised; a plain cumulative sum is several times slower.
    """
    n_rows, vocab = probabilities.shape
    block = 256
    padded = torch.nn.functional.pad(probabilities, (0, -vocab % block)).view(n_rows, -1, block)
    block_mass = padded.sum(dim=-1)
    block_ends = block_mass.cumsum(dim=-1)
    target = draws * block_ends[:, -1]
    index = _find_first_above(block_ends, block_mass, target)
    # The softmax of a row with NaN or infinity is NaN throughout, and so is its mass.
    is_finite = block_ends[:, -1].isfinite()
    rows = torch.arange(n_rows, device=probabilities.device)
    before = block_ends[rows, index] - block_mass[rows, index]
    inside = padded[rows, index]
    token = index * block + _find_first_above(inside.cumsum(dim=-1), inside, (target - before).clamp_min(0.0))
    return token.masked_fill(~is_finite, NOT_FINITE)


def _find_first_above(
    ends: Float[Tensor, "row part"], masses: Float[Tensor, "row part"], target: Float[Tensor, " row"]
) -> Int[Tensor, " row"]:
    """Find each row's first part whose end exceeds the target; the last with any mass, where rounding leaves none."""
    last_massive = masses.shape[1] - 1 - masses.gt(0).flip(-1).int().argmax(dim=-1)
    return torch.searchsorted(ends, target[:, None], right=True)[:, 0].minimum(last_massive)
