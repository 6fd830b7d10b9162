"""How near two computations of the same numbers must come, by dtype."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Largest difference of a token's activations as a share of their length: several times what is measured on the embedded
# model, where kernels add up in other orders. Of one block; and where roundings are carried through all of 30.
_OF_A_BLOCK = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_CARRIED = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}


def block_tolerance_of(dtype: torch.dtype) -> float:
    """Return the largest relative difference that rounding within one block explains."""
    return _OF_A_BLOCK.get(dtype, _OF_A_BLOCK[torch.bfloat16])


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the largest relative difference that rounding throughout a model explains."""
    return _CARRIED.get(dtype, _CARRIED[torch.bfloat16])


def relative_difference(
    found: Float[Tensor, "*batch width"], expected: Float[Tensor, "*batch width"]
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`\|a - b\| / \|b\|` of each token, in float32; infinite where a number is none.

    Example:
        >>> relative_difference(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
        tensor(0.2000)
    """
    a, b = found.detach().cpu().float(), expected.detach().cpu().float()
    share: Tensor = (a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return share.nan_to_num(nan=torch.inf)


def greedy_shortfall(logits: Float[Tensor, "pos vocab"], tokens: tuple[int, ...]) -> float:
    """Return by how much tokens fall short of the likeliest ones, at most: 0 where each is a greedy choice.

    As a share of the logits' standard deviation, so that two of equal logits but for rounding count as a tie.

    Args:
        logits: Of the next token, at the position before each token.
        tokens: Token ids.

    Example:
        >>> greedy_shortfall(torch.tensor([[0.0, 2.0], [3.0, 1.0]]), (1, 0))
        0.0
    """
    scores = logits.detach().cpu().float()
    taken = scores[torch.arange(len(tokens)), torch.tensor(tokens)]
    return float(((scores.amax(dim=-1) - taken) / scores.std(dim=-1)).nan_to_num(nan=torch.inf).max())
