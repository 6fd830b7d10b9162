"""What the drawing module is given: a read conversation as compact JSON, projections in half precision."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from persona_lens.live.conversation import ReadConversation, ReadVariant

_LARGEST_HALF = 60000.0


def pack_conversation(read: ReadConversation) -> dict[str, Any]:
    """Return a conversation as JSON-able values: about 3 bytes a projection.

    Args:
        read: What was read.

    Returns:
        What ``static/conversation.js`` draws. Numbers that are not known are None.
    """
    return {
        "model": read.model.name,
        "n_layers": read.model.n_layers,
        "traits": list(read.traits),
        "roles": list(read.roles),
        "along": read.along,
        "layer": read.layer,
        "mean": _write_known(read.ordinary_mean),
        "std": _write_known(read.ordinary_std),
        "thresholds": _write_known(read.thresholds),
        "variants": [pack_variant(variant) for variant in read.variants],
    }


def pack_variant(variant: ReadVariant) -> dict[str, Any]:
    """Return a variant as JSON-able values."""
    packed = pack_tokens(variant.texts, variant.turns, variant.steered, variant.projections)
    return {"coefficient": variant.coefficient, "additions": describe_additions(variant), **packed}


def describe_additions(variant: ReadVariant) -> dict[int, str]:
    """Return what was added to messages beside the variant's coefficient, in words, by turn."""
    texts: dict[int, list[str]] = {}
    for one in variant.additions:
        texts.setdefault(one.turn, []).append(f"{one.trait} × {one.coefficient:g} at layer {one.layer}")
    return {turn: ", ".join(parts) for turn, parts in texts.items()}


def pack_tokens(
    texts: Sequence[str],
    turns: Sequence[int],
    steered: Bool[Tensor, " token"],
    projections: Float[Tensor, "trait layer token"],
) -> dict[str, Any]:
    """Return some tokens as JSON-able values, projections as little-endian halves ``[token, trait, layer]`` in base64.

    Where they exceed what a half can hold, ``scale`` is the power of two that multiplies them.
    """
    finite = projections[projections.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    scale = 2.0 ** max(0, math.ceil(math.log2(largest / _LARGEST_HALF))) if largest else 1.0
    halves = (projections / scale).permute(2, 0, 1).to(torch.float16).contiguous().numpy().astype("<f2")
    return {
        "texts": list(texts),
        "turns": list(turns),
        "steered": "".join("1" if one else "0" for one in steered.tolist()),
        "scale": scale,
        "projections": base64.b64encode(halves.tobytes()).decode("ascii"),
    }


def _write_known(values: Float[Tensor, "trait layer"]) -> list[list[float | None]]:
    return [[float(f"{one:.4g}") if math.isfinite(one) else None for one in row] for row in values.tolist()]
