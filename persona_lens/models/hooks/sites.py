"""The sole owner of layer numbering and hook names.

A layer is a zero-based block index; its activation is the block's output, ``blocks.{layer}.hook_resid_post``. The
paper's layer L and Hugging Face's ``hidden_states[L]`` are block L - 1, but for the last entry there, which Llama- and
Qwen-shaped models take after their final norm.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError


@checked
@dataclass(frozen=True)
class Site:
    """Where in a model something is done: at a layer's output, or at one attention head's.

    Args:
        layer: Zero-based block index.
        head: Zero-based index of a head of that block's attention; None for the residual stream after the block.
    """

    layer: int
    head: int | None = None

    @property
    def hook_name(self) -> str:
        """The name of the hook point."""
        return hook_name(self.layer) if self.head is None else heads_hook_name(self.layer)

    @property
    def order(self) -> tuple[int, bool, int]:
        """Sorts as a forward pass reaches them: a block's heads come before its output."""
        return self.layer, self.head is None, self.head or 0

    def __str__(self) -> str:
        return f"layer {self.layer}" if self.head is None else f"layer {self.layer}, head {self.head}"


def hook_name(layer: int) -> str:
    """Return the name of the hook point at a layer's output.

    Example:
        >>> hook_name(14)
        'blocks.14.hook_resid_post'
    """
    return f"blocks.{layer}.hook_resid_post"


def heads_hook_name(layer: int) -> str:
    """Return the name of the hook point at the outputs of a layer's attention heads, ``[batch, pos, head, d_head]``.

    Example:
        >>> heads_hook_name(14)
        'blocks.14.attn.hook_z'
    """
    return f"blocks.{layer}.attn.hook_z"


def check_head(head: SupportsIndex, n_heads: int) -> int:
    """Return an attention head's index, as an int, if the layers have it.

    Args:
        head: Zero-based.
        n_heads: Number of query heads of a layer.

    Raises:
        InvalidArgumentError: Negative, too high, or no whole number.

    Example:
        >>> check_head(8, 9)
        8
    """
    index = _read_index(head)
    if index is None or not 0 <= index < n_heads:
        raise InvalidArgumentError.of("head", f"be in [0, {n_heads})", head, f"A layer has {n_heads} attention heads.")
    return index


def check_layer(layer: SupportsIndex, n_layers: int) -> int:
    """Return a layer, as an int, if the model has it.

    Args:
        layer: Zero-based block index: an int, or a whole number of NumPy's or torch's.
        n_layers: Number of the model's layers.

    Raises:
        LayerOutOfRangeError: Negative, too high, or no whole number.

    Example:
        >>> check_layer(29, 30)
        29
    """
    index = _read_index(layer)
    if index is None or not 0 <= index < n_layers:
        raise LayerOutOfRangeError.of("layer", f"be in [0, {n_layers})", layer, f"The model has {n_layers} layers.")
    return index


def _read_index(value: Any) -> int | None:
    """Return a whole number as an int; None for anything else, truth values included."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def resolve_layers(layers: SupportsIndex | Iterable[SupportsIndex] | str, n_layers: int) -> tuple[int, ...]:
    """Return layers as a tuple of checked, distinct block indices.

    Args:
        layers: One layer, several (a list, a range, an array or tensor of whole numbers), or ``"all"``.
        n_layers: Number of the model's layers.

    Raises:
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: An empty or repeating list, or another word than ``"all"``.

    Example:
        >>> resolve_layers("all", 3), resolve_layers([0, 2], 3), resolve_layers(1, 3)
        ((0, 1, 2), (0, 2), (1,))
    """
    if isinstance(layers, str):
        if layers != "all":
            raise InvalidArgumentError.of("layers", 'be "all", a layer or a list of layers', layers)
        return tuple(range(n_layers))
    if isinstance(layers, SupportsIndex) and (_read_index(layers) is not None or not isinstance(layers, Iterable)):
        return (check_layer(layers, n_layers),)
    resolved = tuple(check_layer(layer, n_layers) for layer in layers)
    if not resolved or len(set(resolved)) != len(resolved):
        raise InvalidArgumentError.of("layers", "name at least one layer, and none twice", layers)
    return resolved
