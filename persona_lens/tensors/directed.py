"""What acts along one direction, and what a direction must be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors.directions import normalize


@dataclass(frozen=True, eq=False)
class Directed:
    """What acts along one direction."""

    direction: Float[Tensor, " d_model"]

    def __post_init__(self) -> None:
        """Check the field."""
        check_direction(self.direction)

    @property
    def d_model(self) -> int:
        """Width of the activations that it acts on."""
        return len(self.direction)

    @cached_property
    def unit(self) -> Float[Tensor, " d_model"]:
        """The unit direction, made once: a hook runs at every token."""
        return normalize(self.direction)


def check_direction(direction: Tensor) -> None:
    """Refuse anything but one finite, nonzero floating-point vector."""
    if direction.ndim != 1 or not direction.is_floating_point():
        got = f"shape {tuple(direction.shape)}, {direction.dtype}"
        hint = "Pick one layer's vector, e.g. `directions[layer]`."
        rule = "be one floating-point vector of width d_model"
        raise InvalidArgumentError.of("direction", rule, got, hint)
    if not torch.isfinite(direction).all():
        raise InvalidArgumentError.of("direction", "be finite", direction.tolist())
    if not direction.any():
        rule = "have a length above zero"
        raise InvalidArgumentError.of("direction", rule, direction.tolist())


def check_width(activations: Tensor, width: int) -> None:
    """Refuse activations of another width, before they broadcast."""
    if activations.shape[-1:] != (width,):
        rule = f"have the direction's width {width} as last axis"
        hint = "Was the vector made on another model?"
        raise InvalidArgumentError.of("activations", rule, tuple(activations.shape), hint)
