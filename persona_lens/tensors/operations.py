"""What can be done to activations: small frozen objects that map activations to activations.

Each is called with activations ``"*batch d_model"`` and returns a tensor of the same shape, dtype and device.
None writes into its argument. Gradients pass through to the activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors.directed import Directed, check_width
from persona_lens.tensors.directions import widen

# The next norm squares what it reads; where that overflows, it gives zeros, and text comes out that means nothing.
_LONGEST_MOVE = 1e18


@runtime_checkable
class Operation(Protocol):
    """What can be done to activations: the package's own, from :class:`Add` to :class:`Gate`, or one's own."""

    @property
    def d_model(self) -> int:
        """Width of the activations that it acts on."""
        ...

    def __call__(self, activations: Float[Tensor, "*batch d_model"], /) -> Float[Tensor, "*batch d_model"]:
        """Return the changed activations; the argument is left as it is."""
        ...


@checked
@dataclass(frozen=True, eq=False)
class Add(Directed):
    """Add a multiple of a raw vector.

    ``h <- h + coefficient * v``. The vector is not normalised, so coefficient 1 moves by the mean difference
    of the two classes. Coefficient 0 returns the activations themselves.

    Attributes:
        direction: Raw vector, in residual-stream units.
        coefficient: Multiples of the vector; negative steers away from the trait.

    Raises:
        InvalidArgumentError: ``direction`` is not one finite, nonzero vector, ``coefficient`` is not finite, or both
            move activations by more than 1e18, whose square float32 does not hold.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.2.

    Example:
        >>> Add(torch.tensor([1.0, -2.0]), coefficient=2.0)(torch.tensor([[10.0, 10.0]]))
        tensor([[12.,  6.]])
    """

    coefficient: float

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        object.__setattr__(self, "coefficient", plain_number(self.coefficient))
        try:
            is_finite = math.isfinite(self.coefficient)
        except TypeError:  # no number at all
            is_finite = False
        if not is_finite:
            raise InvalidArgumentError.of("coefficient", "be finite", self.coefficient)
        length = abs(self.coefficient) * float(self.direction.detach().norm())
        if length > _LONGEST_MOVE:
            rule = f"move activations by at most {_LONGEST_MOVE:g}, whose square float32 holds"
            raise InvalidArgumentError.of("coefficient", rule, f"{self.coefficient}, a move by {length:.3g}")

    @cached_property
    def scaled(self) -> Float[Tensor, " d_model"]:
        """What is added, ``coefficient * v``, made once: a hook runs at every token."""
        return self.coefficient * self.direction

    def __call__(self, activations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the steered activations."""
        check_width(activations, self.d_model)
        if self.coefficient == 0:
            return activations
        return activations + self.scaled.to(activations)


@checked
@dataclass(frozen=True, eq=False)
class Ablate(Directed):
    """Remove the component along a direction.

    ``h <- h - (h · u) u`` with ``u = v / |v|``, in float32. Doing it twice is doing it once, and the result's
    projection is zero, both up to the rounding of the activations' dtype.

    Attributes:
        direction: Raw or unit vector; its length does not matter.

    Raises:
        InvalidArgumentError: ``direction`` is not one finite, nonzero vector.

    Reference:
        Persona Vectors (arXiv 2507.21509), appendix J: zero-ablation as in CAFT.

    Example:
        >>> Ablate(torch.tensor([5.0, 0.0]))(torch.tensor([[3.0, 4.0]]))
        tensor([[0., 4.]])
    """

    def __call__(self, activations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the activations without their component along the direction."""
        check_width(activations, self.d_model)
        wide = widen(activations)
        unit = self.unit.to(wide)
        coordinate = (wide * unit).sum(dim=-1, keepdim=True)
        return (wide - coordinate * unit).to(activations.dtype)


@checked
@dataclass(frozen=True, eq=False)
class Cap(Directed):
    """Keep the coordinate along a direction between bounds.

    ``h <- h + (clamp(c, floor, ceiling) - c) u`` with ``u = v / |v|`` and ``c = h · u``, in float32. Rows
    inside the bounds come back bit by bit as they were.

    Attributes:
        direction: Raw or unit vector; its length does not matter.
        floor: Lowest coordinate allowed, in residual-stream units; None for no lower bound.
        ceiling: Highest coordinate allowed, likewise.

    Raises:
        InvalidArgumentError: ``direction`` is not one finite, nonzero vector; both bounds are None; a bound
            is not finite; or ``floor`` is above ``ceiling``.

    Example:
        >>> Cap(torch.tensor([5.0, 0.0]), ceiling=1.0)(torch.tensor([[3.0, 4.0], [-3.0, 4.0]]))
        tensor([[ 1.,  4.],
                [-3.,  4.]])
    """

    floor: float | None = None
    ceiling: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        for name, bound in (("floor", self.floor), ("ceiling", self.ceiling)):
            object.__setattr__(self, name, plain_number(bound))
            if bound is not None and not math.isfinite(bound):
                hint = "Use None for no bound."
                raise InvalidArgumentError.of(name, "be finite or None", bound, hint)
        if self.floor is None and self.ceiling is None:
            raise InvalidArgumentError.of("ceiling", "be given, or `floor`, or both", None)
        if self.floor is not None and self.ceiling is not None and self.floor > self.ceiling:
            rule = f"be at most `ceiling`, here {self.ceiling}"
            raise InvalidArgumentError.of("floor", rule, self.floor)

    def __call__(self, activations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the activations with their coordinate inside the bounds."""
        check_width(activations, self.d_model)
        wide = widen(activations)
        unit = self.unit.to(wide)
        coordinate = (wide * unit).sum(dim=-1, keepdim=True)
        step = coordinate.clamp(self.floor, self.ceiling) - coordinate
        moved = (wide + step * unit).to(activations.dtype)
        # Adding 0 to -0.0 would change its sign.
        return torch.where(step == 0, activations, moved)


@checked
@dataclass(frozen=True, eq=False)
class KeepNorm:
    """Do other operations in order, and scale each activation that they changed back to the norm that it had.

    ``h <- h' * |h| / |h'|``; see :func:`restore_norm`.

    Attributes:
        operations: What is done, in order.

    Raises:
        InvalidArgumentError: No operation, or operations of different widths.

    Example:
        >>> KeepNorm((Add(torch.tensor([6.0, 3.0]), 1.0),))(torch.tensor([[0.0, 5.0]]))
        tensor([[3., 4.]])
    """

    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        """Check the field."""
        check_one_width(self.operations)

    @property
    def d_model(self) -> int:
        """Width of the activations that it acts on."""
        return self.operations[0].d_model

    def __call__(self, activations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the changed activations, each with its own norm."""
        return restore_norm(apply_in_order(self.operations, activations), activations)


def plain_number(value: Any) -> Any:
    """Return a real number of another library, such as NumPy's float32, as a float; all else as it is.

    A whole number stays one: what results are stored under depends on how it is written.

    Example:
        >>> import numpy as np
        >>> plain_number(np.float32(0.5)), plain_number(2), plain_number(None)
        (0.5, 2, None)
    """
    is_foreign = isinstance(value, Real) and not isinstance(value, int | float)
    return float(value) if is_foreign else value


@checked
def restore_norm(
    changed: Float[Tensor, "*batch d_model"], original: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """Scale activations to the norm that they had before an intervention.

    ``h <- h' * |h| / |h'|``, in float32. What the intervention left as it was comes back bit by bit, and so does an
    activation of zero.

    Args:
        changed: Activations after the intervention.
        original: The same ones before it.

    Returns:
        The changed directions with the original norms.

    Example:
        >>> restore_norm(torch.tensor([[6.0, 8.0]]), torch.tensor([[0.0, 5.0]]))
        tensor([[3., 4.]])
    """
    if changed.shape != original.shape:
        rule = f"have the shape of `changed`, {tuple(changed.shape)}"
        raise InvalidArgumentError.of("original", rule, tuple(original.shape))
    wide, norm = widen(changed), widen(original).norm(dim=-1, keepdim=True)
    now = wide.norm(dim=-1, keepdim=True)
    scaled = (wide * (norm / now.where(now > 0, 1.0))).to(changed.dtype)
    untouched = (changed == original).all(dim=-1, keepdim=True)
    return torch.where(untouched | (now == 0), changed, scaled)


def apply_in_order(
    operations: Sequence[Operation], activations: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """Do one operation after the other; none leaves the activations themselves."""
    for operation in operations:
        activations = operation(activations)
    return activations


def check_one_width(operations: Sequence[Operation]) -> None:
    """Refuse no operations, and operations of different widths."""
    widths = {operation.d_model for operation in operations}
    if len(widths) != 1:
        rule = "hold at least one operation, all of one width"
        raise InvalidArgumentError.of("operations", rule, sorted(widths))
