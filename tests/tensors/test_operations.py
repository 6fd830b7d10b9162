"""Properties of what can be done to activations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.testing import assert_close

from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors.directions import cosine, project
from persona_lens.tensors.gating import Gate
from persona_lens.tensors.operations import Ablate, Add, Cap, KeepNorm, Operation, restore_norm
from persona_lens.tensors.rotation import Rotate
from persona_lens.tensors.subspace import AblateSubspace

PROPERTY = settings(deadline=None, max_examples=60)
ENTRIES = st.floats(-100, 100, width=32)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTERVENTIONS = [
    lambda direction: Add(direction, coefficient=1.5),
    Ablate,
    # Out of reach of the normal activations below, so that every row moves.
    lambda direction: Cap(direction, floor=20.0, ceiling=30.0),
    lambda direction: Rotate(direction, degrees=-20.0),
    lambda direction: AblateSubspace(torch.stack([direction, direction * torch.linspace(1, 3, len(direction))])),
    lambda direction: Gate((Ablate(direction),), direction, below=100.0),
]


def tensors(*shape: int) -> st.SearchStrategy[Tensor]:
    """Draw float32 tensors of a shape."""
    return arrays("float32", shape, elements=ENTRIES).map(torch.from_numpy)


def directions(width: int) -> st.SearchStrategy[Tensor]:
    """Draw vectors that are not (nearly) zero."""
    return tensors(width).filter(lambda vector: bool(vector.norm() > 1e-2))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare float32 tensors bit by bit: -0.0 is not 0.0."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@PROPERTY
@given(tensors(3, 4), directions(4), st.sampled_from([0.0, -0.0]), st.sampled_from(DTYPES))
def test_adding_with_coefficient_zero_is_exact_identity(
    activations: Tensor, direction: Tensor, zero: float, dtype: torch.dtype
) -> None:
    before = activations.to(dtype)
    assert Add(direction, coefficient=zero)(before) is before


@PROPERTY
@given(tensors(3, 4), directions(4), st.floats(-10, 10))
def test_adding_moves_by_multiples_of_the_raw_vector(h: Tensor, direction: Tensor, coefficient: float) -> None:
    moved = Add(direction, coefficient)(h) - h
    assert_close(moved, (coefficient * direction).expand(3, 4), atol=1e-3, rtol=1e-4)


@PROPERTY
@given(tensors(3, 4), directions(4), st.floats(-10, 10))
def test_adding_and_subtracting_cancel(h: Tensor, direction: Tensor, coefficient: float) -> None:
    there = Add(direction, coefficient)(h)
    assert_close(Add(direction, -coefficient)(there), h, atol=1e-3, rtol=0)


@PROPERTY
@given(tensors(3, 4), directions(4))
def test_ablation_leaves_zero_projection(h: Tensor, direction: Tensor) -> None:
    assert_close(project(Ablate(direction)(h), direction), torch.zeros(3), atol=1e-4, rtol=0)


@PROPERTY
@given(tensors(3, 4), directions(4))
def test_ablation_is_idempotent(h: Tensor, direction: Tensor) -> None:
    once = Ablate(direction)(h)
    assert_close(Ablate(direction)(once), once, atol=1e-4, rtol=0)


@PROPERTY
@given(tensors(3, 4), directions(4))
def test_ablation_changes_nothing_across_the_direction(h: Tensor, direction: Tensor) -> None:
    removed = h - Ablate(direction)(h)
    along = project(h, direction)[:, None] * direction / direction.norm()
    assert_close(removed, along, atol=1e-3, rtol=1e-4)


@PROPERTY
@given(tensors(3, 4), directions(4), st.floats(0.01, 1000))
def test_ablation_does_not_depend_on_the_length_of_the_direction(h: Tensor, direction: Tensor, factor: float) -> None:
    assert_close(Ablate(factor * direction)(h), Ablate(direction)(h), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_ablation_in_half_precision_is_only_rounded_at_the_end(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    h, direction = torch.randn(8, 576, generator=generator).to(dtype), torch.randn(576, generator=generator)
    unit = direction.double() / direction.double().norm()
    exact = h.double() - (h.double() @ unit)[:, None] * unit
    assert torch.equal(Ablate(direction)(h), exact.to(dtype)) or (
        # Float32 may land on the other side of a rounding boundary, by one unit in the last place.
        ((Ablate(direction)(h).double() - exact).abs() <= tolerance * exact.abs().clamp(min=1e-2)).all()
    )


@st.composite
def bounds(draw: st.DrawFn) -> tuple[float | None, float | None]:
    """Draw a floor and a ceiling, at most one of them None."""
    low, high = sorted([draw(st.floats(-50, 50)), draw(st.floats(-50, 50))])
    return draw(st.sampled_from([(low, high), (low, None), (None, high)]))


@PROPERTY
@given(tensors(3, 4), directions(4), bounds())
def test_capping_clamps_the_coordinate_and_nothing_else(
    h: Tensor, direction: Tensor, between: tuple[float | None, float | None]
) -> None:
    floor, ceiling = between
    capped = Cap(direction, floor, ceiling)(h)
    assert_close(project(capped, direction), project(h, direction).clamp(floor, ceiling), atol=1e-3, rtol=0)
    assert_close(Ablate(direction)(capped), Ablate(direction)(h), atol=1e-3, rtol=0)


@PROPERTY
@given(tensors(3, 4), directions(4), bounds())
def test_capping_leaves_rows_inside_the_bounds_bit_by_bit(
    h: Tensor, direction: Tensor, between: tuple[float | None, float | None]
) -> None:
    floor, ceiling = between
    coordinates = project(h, direction)
    inside = coordinates == coordinates.clamp(floor, ceiling)
    assert same_bits(Cap(direction, floor, ceiling)(h)[inside], h[inside])


def test_capping_inside_the_bounds_keeps_negative_zeros() -> None:
    h = torch.tensor([[-0.0, 1.0]])
    assert same_bits(Cap(torch.tensor([0.0, 1.0]), ceiling=5.0)(h), h)


@pytest.mark.parametrize("make", INTERVENTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_and_dtype_are_preserved_and_nothing_is_written_in_place(
    make: Callable[[Tensor], Operation], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(8, generator=generator)
    for shape in [(8,), (3, 8), (2, 3, 8), (0, 8)]:
        h = torch.randn(shape, generator=generator).to(dtype)
        h_before, direction_before = h.clone(), direction.clone()
        changed = make(direction)(h)
        assert changed.shape == h.shape
        assert changed.dtype == dtype
        assert torch.equal(h, h_before)
        assert torch.equal(direction, direction_before)
        assert h.numel() == 0 or not torch.equal(changed, h)


@pytest.mark.parametrize("make", INTERVENTIONS)
def test_a_bfloat16_direction_leaves_float32_activations_float32(make: Callable[[Tensor], Operation]) -> None:
    direction = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert make(direction)(torch.ones(3, 2)).dtype == torch.float32


@pytest.mark.parametrize("make", INTERVENTIONS)
def test_a_row_does_not_depend_on_the_other_rows(make: Callable[[Tensor], Operation]) -> None:
    generator = torch.Generator().manual_seed(0)
    intervene = make(torch.randn(576, generator=generator))
    h = torch.randn(5, 7, 576, generator=generator)
    assert torch.equal(intervene(h)[3, 2:4], intervene(h[3, 2:4]))


@pytest.mark.parametrize("make", INTERVENTIONS)
def test_autocast_changes_nothing(make: Callable[[Tensor], Operation]) -> None:
    generator = torch.Generator().manual_seed(0)
    intervene = make(torch.randn(64, generator=generator))
    h = torch.randn(3, 64, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = intervene(h)
    assert torch.equal(lowered, intervene(h))


def test_gradients_flow_through_addition_and_not_along_an_ablated_direction() -> None:
    direction = torch.tensor([2.0, 0.0])
    for intervention, expected in [(Add(direction, 3.0), [1.0, 1.0]), (Ablate(direction), [0.0, 1.0])]:
        h = torch.ones(2, requires_grad=True)
        intervention(h).sum().backward()
        assert h.grad is not None
        assert torch.equal(h.grad, torch.tensor(expected))


@pytest.mark.parametrize(("kind", "options"), [(Add, {"coefficient": 1.0}), (Ablate, {}), (Cap, {"floor": 0.0})])
@pytest.mark.parametrize(
    ("direction", "rule"),
    [
        (torch.zeros(3), "a length above zero"),
        (torch.tensor([1.0, torch.nan]), "finite"),
        (torch.tensor([1.0, torch.inf]), "finite"),
        (torch.ones(2, 3), "one floating-point vector"),
        (torch.ones(3, dtype=torch.long), "one floating-point vector"),
        (torch.tensor(1.0), "one floating-point vector"),
    ],
)
def test_a_bad_direction_is_refused_when_the_intervention_is_made(
    kind: type[Operation], options: dict[str, float], direction: Tensor, rule: str
) -> None:
    # Unwrapped: users run without the shape checks that pytest adds.
    initialize = inspect.unwrap(kind.__init__)
    with pytest.raises(InvalidArgumentError, match=f"`direction` must .*{rule}"):
        initialize(object.__new__(kind), direction, **options)


@pytest.mark.parametrize("make", INTERVENTIONS)
def test_activations_of_another_width_are_refused(make: Callable[[Tensor], Operation]) -> None:
    with pytest.raises(InvalidArgumentError, match="`activations` must have the direction's width 3"):
        make(torch.ones(3))(torch.ones(2, 1))


@pytest.mark.parametrize("coefficient", [torch.nan, torch.inf, -torch.inf])
def test_a_coefficient_that_is_not_finite_is_refused(coefficient: float) -> None:
    with pytest.raises(InvalidArgumentError, match="`coefficient` must be finite"):
        Add(torch.ones(2), coefficient)


@pytest.mark.parametrize(
    ("floor", "ceiling", "parameter"),
    [
        (None, None, "ceiling"),
        (1.0, 0.5, "floor"),
        (torch.nan, 1.0, "floor"),
        (-torch.inf, 1.0, "floor"),
        (0.0, torch.nan, "ceiling"),
    ],
)
def test_impossible_bounds_are_refused(floor: float | None, ceiling: float | None, parameter: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^`{parameter}`"):
        Cap(torch.ones(2), floor, ceiling)


def test_equal_bounds_set_the_coordinate() -> None:
    capped = Cap(torch.tensor([0.0, 2.0]), floor=3.0, ceiling=3.0)(torch.tensor([[1.0, 9.0], [1.0, -9.0]]))
    assert torch.equal(capped, torch.tensor([[1.0, 3.0], [1.0, 3.0]]))


def test_interventions_are_frozen_and_hashable_by_identity() -> None:
    intervention = Add(torch.ones(2), 1.0)
    with pytest.raises(FrozenInstanceError):
        intervention.coefficient = 2.0  # type: ignore[misc]
    assert len({intervention, Add(torch.ones(2), 1.0)}) == 2


def test_what_has_a_width_and_maps_activations_is_an_operation() -> None:
    one = Add(torch.ones(2), 1.0)
    assert all(isinstance(each, Operation) for each in (one, Ablate(torch.ones(2)), KeepNorm((one,))))
    assert isinstance(Cap(torch.ones(2), ceiling=1.0), Operation)
    assert not isinstance(abs, Operation)


@given(st.floats(-5, 5), st.integers(0, 5))
def test_restored_norms_are_those_before_and_untouched_rows_come_back_bit_by_bit(coefficient: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    original = torch.randn(4, 6, generator=generator)
    changed = original.clone()
    changed[:2] = Add(torch.randn(6, generator=generator), coefficient)(original[:2])
    restored = restore_norm(changed, original)
    torch.testing.assert_close(restored.norm(dim=-1), original.norm(dim=-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cosine(restored, changed), torch.ones(4), atol=1e-5, rtol=1e-5)
    assert torch.equal(restored[2:], original[2:])


def test_an_activation_of_zero_stays_zero_when_its_norm_is_restored() -> None:
    assert restore_norm(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]
    assert restore_norm(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).tolist() == [[0.0, 0.0]]


def test_keeping_the_norm_does_the_operations_in_order_and_then_restores_it():
    shift, removal = Add(torch.tensor([6.0, 3.0]), 1.0), Ablate(torch.tensor([0.0, 1.0]))
    rows = torch.tensor([[0.0, 5.0], [3.0, 4.0]])
    kept = KeepNorm((shift, removal))(rows)
    torch.testing.assert_close(kept, restore_norm(removal(shift(rows)), rows))
    torch.testing.assert_close(kept.norm(dim=-1), rows.norm(dim=-1))


@pytest.mark.parametrize("operations", [(), (Add(torch.ones(2), 1.0), Add(torch.ones(3), 1.0))])
def test_keeping_the_norm_needs_operations_of_one_width(operations):
    with pytest.raises(InvalidArgumentError, match="operations"):
        KeepNorm(operations)


@pytest.mark.parametrize("coefficient", [1e30, -1e30, 1e300])
def test_a_move_whose_square_overflows_is_refused(coefficient):
    """The next norm would make zeros of it, and text would come out all the same."""
    with pytest.raises(InvalidArgumentError, match="`coefficient` must move activations by at most"):
        Add(torch.ones(4), coefficient)
    Add(torch.ones(4), 1e17)
