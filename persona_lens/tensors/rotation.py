"""Turning activations towards a direction, at the norm that they have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors.directed import Directed, check_width
from persona_lens.tensors.directions import normalize, widen
from persona_lens.tensors.operations import plain_number

# Of the norm, in roundings: what is left across the direction by less is rounding, and points nowhere.
_PARALLEL = 16


@checked
@dataclass(frozen=True, eq=False)
class Rotate(Directed):
    """Turn each activation by an angle towards a direction, at constant norm, and never past the direction.

    With ``u = v / |v|``, ``theta`` the angle between ``h`` and ``u``, and ``w`` the unit vector across ``u`` in the
    plane of the two: ``h <- |h| (cos(phi) u + sin(phi) w)``, where ``phi = clamp(theta - degrees, 0, 180)``, in
    float32. Activations of zero, and those along the direction or against it, which span no plane with it, come back
    bit by bit as they were.

    Attributes:
        direction: Raw or unit vector; its length does not matter.
        degrees: The angle, in [-180, 180]; negative turns away, never past the opposite. 0 returns the activations
            themselves, 180 lays all of them along the direction.

    Raises:
        InvalidArgumentError: ``direction`` is not one finite, nonzero vector, or ``degrees`` is out of range.

    Reference:
        Householder Pseudo-Rotation (arXiv 2409.10053), which turns activations at their norm; Angular Steering
        (arXiv 2510.26243), which turns what lies in one fixed plane.

    Example:
        >>> Rotate(torch.tensor([2.0, 0.0]), degrees=90.0)(torch.tensor([[-3.0, 4.0], [4.0, 3.0]]))
        tensor([[4., 3.],
                [5., 0.]])
    """

    degrees: float

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        object.__setattr__(self, "degrees", plain_number(self.degrees))
        if not -180 <= self.degrees <= 180:
            raise InvalidArgumentError.of("degrees", "be in [-180, 180]", self.degrees)

    @cached_property
    def _exact(self) -> Float[Tensor, " d_model"]:
        """The unit direction in float64, as float64 activations need it: what its length lacks would turn them too."""
        return normalize(self.direction.cpu().double())

    def __call__(self, activations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the turned activations, each with its own norm."""
        check_width(activations, self.d_model)
        if self.degrees == 0:
            return activations
        wide = widen(activations)
        unit = self._exact.to(wide)
        along = (wide * unit).sum(dim=-1, keepdim=True)
        rest = wide - along * unit
        across, norm = rest.norm(dim=-1, keepdim=True), wide.norm(dim=-1, keepdim=True)
        is_parallel = across <= _PARALLEL * torch.finfo(wide.dtype).eps * norm
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        turned_along, turned_across = along * cos + across * sin, across * cos - along * sin
        # The angle is in [0, 180] before: its sine is negative only where it was turned past an end.
        is_past = turned_across <= 0
        turned_along = torch.where(is_past, math.copysign(1.0, self.degrees) * norm, turned_along)
        scale = turned_across.clamp(min=0) / across.where(~is_parallel, 1.0)
        turned = (turned_along * unit + scale * rest).to(activations.dtype)
        return torch.where(is_parallel, activations, turned)
