"""The one right-padding: rows of token ids in, a rectangle out, with what is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PaddedTokens:
    """Rows of unequal length, padded at their ends.

    Args:
        tokens: Token ids; 0 at padding, which means nothing.
        is_padding: True behind each row's end.
        lengths: Tokens of each row.
    """

    tokens: Int[Tensor, "row pos"]
    is_padding: Bool[Tensor, "row pos"]
    lengths: Int[Tensor, " row"]

    def take_last(self, values: Shaped[Tensor, "row pos *rest"]) -> Shaped[Tensor, "row *rest"]:
        """Return what stands at each row's last token."""
        lengths = self.lengths.to(values.device)
        return values[torch.arange(len(lengths), device=values.device), lengths - 1]


def pad_right(rows: Sequence[Sequence[int]], *, multiple: int = 1) -> PaddedTokens:
    """Pad rows of token ids to one length.

    Args:
        rows: At least one; any of them may be empty.
        multiple: The length is rounded up to a multiple of this, and is never 0. It keeps the shapes of the matrix
            products, and so their rounding, the same whatever the longest row is.

    Example:
        >>> pad_right([(5, 6, 7), (8,)]).tokens
        tensor([[5, 6, 7],
                [8, 0, 0]])
    """
    lengths = torch.tensor([len(row) for row in rows])
    n_pos = max(1, -(-int(lengths.max()) // multiple) * multiple)
    tokens = torch.zeros((len(rows), n_pos), dtype=torch.long)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return PaddedTokens(tokens, torch.arange(n_pos) >= lengths[:, None], lengths)
