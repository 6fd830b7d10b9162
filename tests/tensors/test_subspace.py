"""Properties of removing what several directions span."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors import Ablate, AblateSubspace, project
from tests.tensors.test_operations import directions, tensors

PROPERTY = settings(deadline=None, max_examples=40)


def is_well_conditioned(rows: Tensor) -> bool:
    """Whether float32 tells the directions apart well."""
    return bool(torch.linalg.svdvals(rows / rows.norm(dim=-1, keepdim=True))[-1] > 0.05)


def many(width: int, n: int) -> st.SearchStrategy[Tensor]:
    """Draw several directions, none nearly spanned by the others."""
    return st.lists(directions(width), min_size=n, max_size=n).map(torch.stack).filter(is_well_conditioned)


def make(n: int, width: int = 576, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return activations and directions that share most of what they are."""
    generator = torch.Generator().manual_seed(seed)
    h, common = torch.randn(7, width, generator=generator), torch.randn(width, generator=generator)
    return h, common + 0.5 * torch.randn(n, width, generator=generator)


@PROPERTY
@given(tensors(3, 6), many(6, 3))
def test_no_direction_of_the_span_is_left_and_twice_is_once(h: Tensor, rows: Tensor) -> None:
    once = AblateSubspace(rows)(h)
    for direction in (*rows, rows.sum(dim=0)):
        if float(direction.norm()) > 1e-2:
            assert project(once, direction).abs().max() < 1e-3
    assert_close(AblateSubspace(rows)(once), once, atol=1e-4, rtol=0)


@PROPERTY
@given(tensors(3, 6), many(6, 3), st.permutations([0, 1, 2]), st.floats(0.01, 100))
def test_neither_order_nor_lengths_nor_signs_matter(h: Tensor, rows: Tensor, order: list[int], factor: float) -> None:
    changed = rows[order] * torch.tensor([[factor], [1.0], [-1.0]])
    assert_close(AblateSubspace(changed)(h), AblateSubspace(rows)(h), atol=1e-3, rtol=0)


@PROPERTY
@given(tensors(3, 5), directions(5))
def test_one_direction_is_ablated_as_it_is_alone(h: Tensor, direction: Tensor) -> None:
    assert_close(AblateSubspace(direction[None])(h), Ablate(direction)(h), atol=1e-4, rtol=0)


def test_it_is_the_projection_by_the_normal_equations() -> None:
    h, rows = make(5)
    exact = (
        h.double() - h.double() @ rows.double().T @ torch.linalg.inv(rows.double() @ rows.double().T) @ rows.double()
    )
    assert_close(AblateSubspace(rows)(h), exact.float(), atol=1e-5, rtol=0)


def test_one_after_the_other_leaves_part_where_directions_are_not_orthogonal() -> None:
    h, rows = make(2)
    left = Ablate(rows[1])(Ablate(rows[0])(h))
    assert project(left, rows[0]).abs().max() > 0.1
    assert project(AblateSubspace(rows)(h), rows[0]).abs().max() < 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_in_half_precision_only_the_end_is_rounded(dtype: torch.dtype, tolerance: float) -> None:
    h, rows = make(4)
    exact = AblateSubspace(rows.double())(h.to(dtype).double())
    error = (AblateSubspace(rows)(h.to(dtype)).double() - exact).abs()
    assert bool((error <= tolerance * exact.abs().clamp(min=1e-2)).all())


def test_no_gradient_passes_along_the_span() -> None:
    h = torch.randn(2, 3, requires_grad=True)
    AblateSubspace(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))(h).sum().backward()
    assert h.grad is not None
    assert_close(h.grad, torch.tensor([[0.0, 0.0, 1.0]] * 2))


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        (torch.ones(0, 3), "at least one vector"),
        (torch.eye(3)[:, :2], "at most as many as their width"),
        (torch.ones(3), "one a row"),
        (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "a length above zero"),
        (torch.tensor([[1.0, torch.nan]]), "finite"),
        (torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]), "linearly independent"),
        (torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1e-5]]), "linearly independent"),
    ],
)
def test_what_spans_no_subspace_that_can_be_told_is_refused(rows: Tensor, rule: str) -> None:
    initialize = inspect.unwrap(AblateSubspace.__init__)  # users run without the shape checks that pytest adds
    with pytest.raises(InvalidArgumentError, match=f"`directions?` must .*{rule}"):
        initialize(object.__new__(AblateSubspace), rows)


def test_short_directions_are_as_good_as_long_ones() -> None:
    h, rows = make(2)
    assert_close(AblateSubspace(rows * torch.tensor([[1e-20], [1e10]]))(h), AblateSubspace(rows)(h), atol=1e-5, rtol=0)
