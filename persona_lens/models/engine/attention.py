"""Attention over a slot cache: what sampling and scoring need, and nothing that interpretability hooks see.

Rows are left-aligned: row r's token at position p lies at index p of its slot, so no padding precedes a token
and positions are exact whatever the row's neighbours. Keys are cached after rotation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# Key lengths are rounded up to this, and masked, so that a row's sums are taken in the same order whatever the
# longest row beside it: with it, a row's logits do not depend on its batch (tests/models/test_decoding.py).
KEY_LENGTH_MULTIPLE = 64

# On a CPU, up to this many keys, two batched matrix products are 1.5 to 3 times faster than the fused attention kernel,
# which is made for long sequences. Depends on lengths alone, not on the number of rows: a row's sums stay its own.
_MAX_KEYS_WITH_SCORES = 192


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


class SlotCache:
    """Keys and values of all layers for a fixed number of rows ("slots"), each filled from position 0.

    Args:
        n_layers: Number of layers.
        n_slots: Number of rows.
        max_length: Positions a row can hold; rounded up to a multiple of 64.
        n_kv_heads: Key/value heads of a layer.
        d_head: Width of a head.
        dtype: Element type, the model's.
        device: Where the buffers lie.
    """

    def __init__(
        self,
        n_layers: int,
        n_slots: int,
        max_length: int,
        n_kv_heads: int,
        d_head: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (n_layers, n_slots, n_kv_heads, round_up(max_length, KEY_LENGTH_MULTIPLE), d_head)
        # Zeros, not empty: masked positions are multiplied by zero, and zero times an uninitialised NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def n_slots(self) -> int:
        """Number of rows."""
        return self.keys.shape[1]

    def read_prefix(self, slot: int, length: int) -> tuple[Tensor, Tensor]:
        """Copy the first ``length`` positions of a slot: keys and values ``[layer, kv_head, pos, d_head]``."""
        return self.keys[:, slot, :, :length].clone(), self.values[:, slot, :, :length].clone()

    def write_prefix(self, slot: int, keys: Tensor, values: Tensor) -> None:
        """Put a prefix ``[layer, kv_head, pos, d_head]`` at the start of a slot."""
        length = keys.shape[2]
        self.keys[:, slot, :, :length] = keys
        self.values[:, slot, :, :length] = values

    def move_slot(self, source: int, target: int, length: int) -> None:
        """Copy one slot's first ``length`` positions over another's."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]

    def append(
        self,
        layer: int,
        keys: Float[Tensor, "row kv_head pos d_head"],
        values: Float[Tensor, "row kv_head pos d_head"],
        span: Span,
    ) -> tuple[Float[Tensor, "row kv_head key d_head"], Float[Tensor, "row kv_head key d_head"]]:
        """Write a layer's new keys and values at each row's positions; return all that the rows may attend to."""
        n_rows, _, n_pos, _ = keys.shape
        layer_keys, layer_values = self.keys[layer], self.values[layer]
        if n_pos == 1:
            layer_keys[span.rows, :, span.starts] = keys[:, :, 0]
            layer_values[span.rows, :, span.starts] = values[:, :, 0]
        else:
            layer_keys[span.rows[:, None], :, span.positions] = keys.transpose(1, 2)
            layer_values[span.rows[:, None], :, span.positions] = values.transpose(1, 2)
        return layer_keys[:n_rows, :, : span.key_length], layer_values[:n_rows, :, : span.key_length]


class Span:
    """Where a batch of new tokens lies: rows ``0..n_rows``, positions ``starts[r] .. starts[r] + n_pos``.

    Args:
        starts: First position of each row's new tokens.
        n_pos: Number of new tokens a row, right-padding included.
    """

    def __init__(self, starts: Int[Tensor, " row"], n_pos: int) -> None:
        self.starts = starts
        self.rows = torch.arange(starts.shape[0], device=starts.device)
        self.positions = starts[:, None] + torch.arange(n_pos, device=starts.device)
        self.key_length = round_up(int(starts.max()) + n_pos, KEY_LENGTH_MULTIPLE)
        self._masks: dict[tuple[torch.dtype, int | None], Tensor] = {}

    def mask(self, dtype: torch.dtype, window: int | None = None) -> Float[Tensor, "row 1 pos key"]:
        """Return the additive mask: 0 where a token may look (itself and earlier, within ``window``), else -inf."""
        if (dtype, window) not in self._masks:
            key_positions = torch.arange(self.key_length, device=self.starts.device)
            visible = key_positions <= self.positions[:, :, None]
            if window is not None:
                visible &= key_positions > self.positions[:, :, None] - window
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self._masks[dtype, window] = mask.masked_fill_(~visible, float("-inf"))[:, None]
        return self._masks[dtype, window]


def attend_grouped(
    queries: Float[Tensor, "row head pos d_head"],
    keys: Float[Tensor, "row kv_head key d_head"],
    values: Float[Tensor, "row kv_head key d_head"],
    mask: Float[Tensor, "row 1 pos key"],
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " head"] | None = None,
) -> Float[Tensor, "row head pos d_head"]:
    """Scaled dot-product attention whose query heads share key/value heads, without repeating the latter.

    The query heads of a group are laid along the position axis, so one group is one ordinary attention.

    Args:
        queries: Rotated queries.
        keys: Rotated keys.
        values: Values.
        mask: Additive mask.
        scale: Factor on the scores before the softmax.
        softcap: ``softcap * tanh(score / softcap)`` before the mask (Gemma 2), if any.
        sinks: Each head's score of a key that has no value (gpt-oss), if any: attention to nothing.

    Returns:
        The heads' outputs.
    """
    n_rows, n_heads, n_pos, d_head = queries.shape
    n_kv_heads, n_keys = keys.shape[1:3]
    group = n_heads // n_kv_heads
    grouped = queries.reshape(n_rows, n_kv_heads, group * n_pos, d_head)
    few_scores = n_pos == 1 or n_keys <= _MAX_KEYS_WITH_SCORES
    if softcap is None and sinks is None and not (few_scores and queries.device.type == "cpu"):
        # A single query position broadcasts; several are repeated in the same head-major order as the queries.
        expanded = mask.expand(n_rows, 1, group, n_keys) if n_pos == 1 else mask.repeat(1, 1, group, 1)
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=expanded, scale=scale)
        return out.reshape(n_rows, n_heads, n_pos, d_head)
    scores = torch.matmul(grouped, keys.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    # In place: the scores are as large as all the rest together.
    scores.view(n_rows, n_kv_heads, group, n_pos, n_keys).add_(mask[:, :, None])
    if sinks is not None:
        nothing = sinks.float().view(n_kv_heads, group, 1, 1).expand(-1, -1, n_pos, 1).reshape(n_kv_heads, -1, 1)
        scores = torch.cat([scores, nothing.expand(n_rows, -1, -1, -1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :n_keys]
    out = torch.matmul(weights.to(values.dtype), values)
    return out.reshape(n_rows, n_heads, n_pos, d_head)
