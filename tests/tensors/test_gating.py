"""Properties of acting only where a probe fires."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors import Ablate, Add, Gate, KeepNorm, Rotate, project
from tests.tensors.test_operations import directions, same_bits, tensors

PROPERTY = settings(deadline=None, max_examples=60)
BOUNDS = st.tuples(st.none() | st.floats(-50, 0, width=32), st.none() | st.floats(0.5, 50, width=32)).filter(
    lambda bounds: bounds != (None, None)
)


@PROPERTY
@given(tensors(5, 4), directions(4), directions(4), st.floats(-50, 50))
def test_the_gate_is_open_above_and_shut_at_the_threshold(
    h: Tensor, acted: Tensor, probe: Tensor, threshold: float
) -> None:
    shift = Add(acted, 2.0)
    found, is_open = Gate((shift,), probe, above=threshold)(h), project(h, probe) > threshold
    assert same_bits(found[~is_open], h[~is_open])
    assert same_bits(found[is_open], shift(h)[is_open])
    exactly = float(project(h, probe)[0])
    assert not Gate((shift,), probe, above=exactly).is_open(h)[0]
    assert not Gate((shift,), probe, below=exactly).is_open(h)[0]


@PROPERTY
@given(tensors(5, 4), directions(4), st.floats(-50, 50))
def test_below_is_above_for_the_opposite_direction(h: Tensor, probe: Tensor, threshold: float) -> None:
    below, turned = Gate((Ablate(probe),), probe, below=threshold), Gate((Ablate(probe),), -probe, above=-threshold)
    assert torch.equal(below.is_open(h), turned.is_open(h))


@PROPERTY
@given(tensors(5, 4), directions(4), BOUNDS)
def test_both_bounds_are_a_band(h: Tensor, probe: Tensor, bounds: tuple[float | None, float | None]) -> None:
    above, below = bounds
    coordinates = project(h, probe).tolist()
    low, high = -math.inf if above is None else above, math.inf if below is None else below
    assert Gate((Ablate(probe),), probe, above, below).is_open(h).tolist() == [low < c < high for c in coordinates]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrap", [lambda gate: gate, lambda gate: KeepNorm((gate,))])
def test_what_is_shut_out_comes_back_bit_by_bit_in_any_precision(dtype, wrap) -> None:
    generator = torch.Generator().manual_seed(0)
    h, probe = torch.randn(64, 8, generator=generator).to(dtype), torch.randn(8, generator=generator)
    h[:, 0] = -0.0
    gate = Gate((Rotate(probe, 30.0), Add(probe, 1.0)), probe, above=0.3)
    is_open, found = gate.is_open(h), wrap(gate)(h)
    assert found.dtype == dtype
    assert 10 < is_open.sum() < 54
    shut = found[~is_open]
    assert torch.equal(shut, h[~is_open])
    assert torch.equal(shut.signbit(), h[~is_open].signbit())
    assert bool((found != h).any(dim=-1)[is_open].all())


def test_the_probe_reads_once_before_all_that_is_done() -> None:
    direction = torch.tensor([2.0, 0.0])
    gate = Gate((Add(direction, -1.0), Add(direction, -1.0)), direction, above=1.0)
    assert gate(torch.tensor([[2.0, 5.0]])).tolist() == [[-2.0, 5.0]]


def test_a_linear_probe_with_a_bias_is_a_direction_and_a_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    h, weights, bias = torch.randn(99, 6, generator=generator), torch.randn(6, generator=generator), 0.7
    gate = Gate((Ablate(weights),), weights, above=-bias / float(weights.norm()))
    assert torch.equal(gate.is_open(h), h @ weights + bias > 0)


def test_gradients_pass_through_open_and_shut_rows() -> None:
    h = torch.tensor([[2.0, 1.0], [-2.0, 1.0]], requires_grad=True)
    Gate((Ablate(torch.tensor([1.0, 0.0])),), torch.tensor([1.0, 0.0]), above=0.0)(h).sum().backward()
    assert h.grad is not None
    assert_close(h.grad, torch.tensor([[0.0, 1.0], [1.0, 1.0]]))


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"operations": (), "above": 0.0}, "`operations` must hold at least one"),
        ({"operations": (Add(torch.ones(3), 1.0),), "above": 0.0}, "`direction` must have the operations' width 3"),
        ({}, "`above` must be given, or `below`"),
        ({"above": math.nan}, "`above` must be finite"),
        ({"below": math.inf}, "`below` must be finite"),
        ({"above": 1.0, "below": 1.0}, "`above` must be less than `below`"),
        ({"direction": torch.zeros(2), "above": 1.0}, "`direction` must have a length above zero"),
    ],
)
def test_a_gate_that_is_none_is_refused(arguments, rule) -> None:
    with pytest.raises(InvalidArgumentError, match=rule):
        Gate(**({"operations": (Add(torch.ones(2), 1.0),), "direction": torch.ones(2)} | arguments))


def test_activations_of_another_width_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="`activations` must have the direction's width 3"):
        Gate((Ablate(torch.ones(3)),), torch.ones(3), above=0.0)(torch.ones(2, 1))
