"""Properties of turning activations towards a direction."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors import Rotate
from tests.tensors.test_operations import directions, same_bits, tensors

PROPERTY = settings(deadline=None, max_examples=60)
ANGLES = st.floats(-180, 180).filter(lambda degrees: degrees == 0 or abs(degrees) > 1e-3)


def measure_angles(h: Tensor, direction: Tensor) -> Tensor:
    """Return degrees between activations and a direction, in float64, by another formula than the operation's."""
    unit, own = direction.double() / direction.double().norm(), h.double() / h.double().norm(dim=-1, keepdim=True)
    return torch.rad2deg(2 * torch.atan2((own - unit).norm(dim=-1), (own + unit).norm(dim=-1)))


def spanning(h: Tensor, direction: Tensor) -> bool:
    """Whether all activations have a length, and a plane with the direction that float32 tells well."""
    if float(h.norm(dim=-1).min()) < 1:
        return False
    angles = measure_angles(h, direction)
    return bool(((angles > 1) & (angles < 179)).all())


@PROPERTY
@given(tensors(3, 4), directions(4), ANGLES)
def test_every_norm_is_kept(h: Tensor, direction: Tensor, degrees: float) -> None:
    assert_close(Rotate(direction, degrees)(h).norm(dim=-1), h.norm(dim=-1), atol=1e-4, rtol=1e-5)


@PROPERTY
@given(tensors(3, 4), directions(4), ANGLES)
def test_the_angle_falls_by_the_degrees_and_stops_at_the_direction_and_at_its_opposite(
    h: Tensor, direction: Tensor, degrees: float
) -> None:
    assume(spanning(h, direction))
    expected = (measure_angles(h, direction) - degrees).clamp(0, 180)
    assert_close(measure_angles(Rotate(direction, degrees)(h), direction), expected, atol=0.02, rtol=0)


@PROPERTY
@given(tensors(3, 4), directions(4), ANGLES)
def test_nothing_leaves_the_plane_nor_crosses_to_its_other_side(h: Tensor, direction: Tensor, degrees: float) -> None:
    assume(spanning(h, direction))
    unit = direction / direction.norm()
    across = h - (h @ unit)[:, None] * unit
    across = across / across.norm(dim=-1, keepdim=True)
    turned = Rotate(direction, degrees)(h)
    along, aside = (turned @ unit)[:, None], (turned * across).sum(dim=-1, keepdim=True)
    assert_close(along * unit + aside * across, turned, atol=2e-3, rtol=1e-3)
    assert bool((aside >= -1e-3).all())


@PROPERTY
@given(tensors(3, 4), directions(4), st.floats(0.1, 90), st.floats(0.1, 90), st.sampled_from([1, -1]))
def test_two_turns_the_same_way_are_one_by_the_sum(
    h: Tensor, direction: Tensor, first: float, second: float, sign: int
) -> None:
    assume(spanning(h, direction))
    once = Rotate(direction, sign * (first + second))(h)
    angles = measure_angles(Rotate(direction, sign * first)(h), direction)
    assume(bool((((angles > 1) & (angles < 179)) | (angles < 1e-2) | (angles > 179.99)).all()))
    twice = Rotate(direction, sign * second)(Rotate(direction, sign * first)(h))
    assert_close(twice, once, atol=0.05, rtol=1e-3)


@PROPERTY
@given(tensors(3, 4), directions(4), ANGLES)
def test_a_turn_that_met_no_end_is_undone_by_its_opposite(h: Tensor, direction: Tensor, degrees: float) -> None:
    assume(spanning(h, direction))
    there = Rotate(direction, degrees)(h)
    assume(spanning(there, direction))
    assume(
        bool(((measure_angles(h, direction) - degrees).clamp(1, 179) == measure_angles(h, direction) - degrees).all())
    )
    assert_close(Rotate(direction, -degrees)(there), h, atol=0.02, rtol=1e-3)


@PROPERTY
@given(directions(4), st.floats(0.1, 100), ANGLES, st.sampled_from([torch.float32, torch.float64]))
def test_what_spans_no_plane_with_the_direction_comes_back_bit_by_bit(
    direction: Tensor, length: float, degrees: float, dtype: torch.dtype
) -> None:
    along = length * direction.to(dtype)
    h = torch.stack([torch.zeros_like(along), -torch.zeros_like(along), along, -along])
    assert same_bits(Rotate(direction, degrees)(h).float(), h.float())


def test_zero_degrees_return_the_activations_themselves() -> None:
    h = torch.randn(3, 4)
    assert Rotate(torch.ones(4), 0.0)(h) is h


@pytest.mark.parametrize(("degrees", "sign"), [(180.0, 1), (-180.0, -1)])
def test_half_a_turn_lays_all_along_the_direction_or_against_it(degrees: float, sign: int) -> None:
    h, direction = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), torch.arange(1.0, 9.0)
    expected = sign * h.norm(dim=-1, keepdim=True) * direction / direction.norm()
    assert_close(Rotate(direction, degrees)(h), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@pytest.mark.parametrize("degrees", [-25.0, 40.0, 90.0])
def test_in_half_precision_only_the_end_is_rounded(dtype: torch.dtype, tolerance: float, degrees: float) -> None:
    generator = torch.Generator().manual_seed(0)
    h, direction = torch.randn(8, 576, generator=generator).to(dtype), torch.randn(576, generator=generator)
    exact = Rotate(direction.double(), degrees)(h.double())
    error = (Rotate(direction, degrees)(h).double() - exact).abs()
    assert bool((error <= tolerance * exact.abs().clamp(min=1e-2)).all())


def test_in_many_dimensions_a_turn_is_that_of_a_rotation_matrix() -> None:
    """The oracle: the exponential of the plane's generator."""
    generator = torch.Generator().manual_seed(1)
    h, direction = torch.randn(16, generator=generator).double(), torch.randn(16, generator=generator).double()
    unit = direction / direction.norm()
    across = h - (h @ unit) * unit
    across /= across.norm()
    turn = torch.linalg.matrix_exp(math.radians(33.0) * (torch.outer(unit, across) - torch.outer(across, unit)))
    assert_close(Rotate(direction, 33.0)(h), turn @ h)


def test_gradients_are_those_of_finite_differences_and_finite_at_the_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(5, generator=generator).double()
    h = torch.randn(3, 5, generator=generator).double().requires_grad_()
    for degrees in (30.0, -30.0, 180.0):
        assert torch.autograd.gradcheck(Rotate(direction, degrees), (h,))
    ends = torch.stack([torch.zeros(5).double(), direction, -2 * direction]).requires_grad_()
    Rotate(direction, 30.0)(ends).sum().backward()
    assert ends.grad is not None
    assert torch.equal(ends.grad, torch.ones(3, 5).double())  # they come back as they are


@pytest.mark.parametrize("degrees", [181.0, -180.5, math.nan, math.inf])
def test_an_angle_out_of_range_is_refused(degrees: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"`degrees` must be in \[-180, 180\]"):
        Rotate(torch.ones(2), degrees)
