"""Removing what several directions span, at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors.directed import check_direction, check_width
from persona_lens.tensors.directions import normalize, widen

# Of unit directions' smallest singular value. Below, the last axis of their span is the rounding of float32 vectors
# grown a thousandfold.
_LEAST_INDEPENDENT = 1e-4


@checked
@dataclass(frozen=True, eq=False)
class AblateSubspace:
    """Remove the components in the span of several directions.

    ``h <- h - B^T B h``, where the rows of ``B`` are an orthonormal basis of the span, in float32. Neither the order
    nor the lengths of the directions matter, and no direction is left in part, as it is where directions that are not
    orthogonal are removed one after the other. Doing it twice is doing it once, up to the rounding of the activations'
    dtype.

    Attributes:
        directions: Raw or unit vectors, one a row.

    Raises:
        InvalidArgumentError: ``directions`` holds none, more than its width, one that is not finite or zero, or one
            that the others (nearly) span: the smallest singular value of the unit vectors is below 0.0001.

    Reference:
        Concept Ablation Fine-Tuning (arXiv 2507.16795), which projects several directions out together.

    Example:
        >>> AblateSubspace(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))(torch.tensor([[3.0, 4.0, 5.0]])).round()
        tensor([[0., 0., 5.]])
    """

    directions: Float[Tensor, "n_directions d_model"]

    def __post_init__(self) -> None:
        """Check the field."""
        shape = tuple(self.directions.shape)
        if len(shape) != 2 or not 1 <= shape[0] <= shape[1]:
            rule = "be at least one vector, one a row, and at most as many as their width"
            raise InvalidArgumentError.of("directions", rule, shape)
        for direction in self.directions:
            check_direction(direction)
        smallest = float(torch.linalg.svdvals(self._units)[-1])
        if smallest < _LEAST_INDEPENDENT:
            rule = f"be linearly independent: a smallest singular value of {_LEAST_INDEPENDENT:g} or more"
            raise InvalidArgumentError.of("directions", rule, f"{smallest:.1g}", "Leave out what the others span.")

    @property
    def d_model(self) -> int:
        """Width of the activations that it acts on."""
        return self.directions.shape[1]

    @property
    def _units(self) -> Float[Tensor, "n_directions d_model"]:
        return normalize(self.directions.detach().cpu().double())

    @cached_property
    def basis(self) -> Float[Tensor, "n_directions d_model"]:
        """An orthonormal basis of the span, made once: a hook runs at every token."""
        basis: Tensor = torch.linalg.svd(self._units, full_matrices=False).Vh
        return basis.float()

    def __call__(self, activations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the activations without their components in the span."""
        check_width(activations, self.d_model)
        wide = widen(activations)
        for unit in self.basis.to(wide):
            wide = wide - (wide * unit).sum(dim=-1, keepdim=True) * unit
        return wide.to(activations.dtype)
