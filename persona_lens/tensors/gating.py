"""Acting only where a probe fires."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors.directed import check_direction, check_width
from persona_lens.tensors.directions import project
from persona_lens.tensors.operations import Operation, apply_in_order, check_one_width, plain_number


@checked
@dataclass(frozen=True, eq=False)
class Gate:
    """Do other operations in order where the coordinate along a direction passes a threshold.

    With ``u = v / |v|`` and ``c = h · u``, in float32, read before the operations: those activations with
    ``above < c < below`` are changed, every other comes back bit by bit as it was. A probe is a direction and a
    threshold: a linear one with weights ``w`` and bias ``b`` says yes where ``w · h + b > 0``, which is
    ``direction=w, above=-b / |w|``.

    Attributes:
        operations: What is done, in order.
        direction: Raw or unit vector of the probe, any or the one that is acted along; its length does not matter.
        above: Act where the coordinate is higher, in residual-stream units; None for no such bound.
        below: Act where the coordinate is lower, likewise.

    Raises:
        InvalidArgumentError: No operation, or operations or a direction of different widths; ``direction`` is not
            one finite, nonzero vector; both bounds are None; a bound is not finite; or ``above`` is not less than
            ``below``.

    Reference:
        Conditional activation steering (arXiv 2409.05907), there decided once for each prompt.

    Example:
        >>> from persona_lens.tensors.operations import Ablate
        >>> direction = torch.tensor([2.0, 0.0])
        >>> Gate((Ablate(direction),), direction, above=1.0)(torch.tensor([[3.0, 4.0], [0.5, 4.0]]))
        tensor([[0.0000, 4.0000],
                [0.5000, 4.0000]])
    """

    operations: tuple[Operation, ...]
    direction: Float[Tensor, " d_model"]
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check_one_width(self.operations)
        check_direction(self.direction)
        if len(self.direction) != self.d_model:
            rule = f"have the operations' width {self.d_model}"
            raise InvalidArgumentError.of("direction", rule, len(self.direction))
        for name, bound in (("above", self.above), ("below", self.below)):
            object.__setattr__(self, name, plain_number(bound))
            if bound is not None and not math.isfinite(bound):
                raise InvalidArgumentError.of(name, "be finite or None", bound, "Use None for no bound.")
        if self.above is None and self.below is None:
            raise InvalidArgumentError.of("above", "be given, or `below`, or both", None)
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise InvalidArgumentError.of("above", f"be less than `below`, here {self.below}", self.above)

    @property
    def d_model(self) -> int:
        """Width of the activations that it acts on."""
        return self.operations[0].d_model

    def is_open(self, activations: Float[Tensor, "*batch d_model"]) -> Bool[Tensor, "*batch"]:
        """Return which activations it acts on."""
        check_width(activations, self.d_model)
        coordinate = project(activations, self.direction)
        is_open = torch.ones_like(coordinate, dtype=torch.bool)
        if self.above is not None:
            is_open = is_open & (coordinate > self.above)
        if self.below is not None:
            is_open = is_open & (coordinate < self.below)
        return is_open

    def __call__(self, activations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the activations, changed where the gate is open."""
        is_open = self.is_open(activations)
        return torch.where(is_open[..., None], apply_in_order(self.operations, activations), activations)
