"""Properties of directions and of reading activations along them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor
from torch.testing import assert_close

from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors.directions import (
    cosine,
    layer_increments,
    mean_difference,
    normalize,
    project,
    project_layers,
    sample_random_directions,
    widen,
)

PROPERTY = settings(deadline=None, max_examples=60)
ENTRIES = st.floats(-100, 100, width=32)


def tensors(*shape: int) -> st.SearchStrategy[Tensor]:
    """Draw float32 tensors of a shape."""
    return arrays("float32", shape, elements=ENTRIES).map(torch.from_numpy)


def directions(*shape: int) -> st.SearchStrategy[Tensor]:
    """Draw tensors without a (nearly) zero vector along the last axis."""
    return tensors(*shape).filter(lambda vectors: bool((vectors.norm(dim=-1) > 1e-2).all()))


@st.composite
def two_classes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw samples of two classes, with none to two axes between sample and width."""
    shape = draw(array_shapes(min_dims=1, max_dims=3, max_side=3))
    n_pos, n_neg = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return draw(tensors(n_pos, *shape)), draw(tensors(n_neg, *shape))


@PROPERTY
@given(two_classes())
def test_swapping_the_classes_flips_the_sign(classes: tuple[Tensor, Tensor]) -> None:
    positive, negative = classes
    assert torch.equal(mean_difference(positive, negative), -mean_difference(negative, positive))


@PROPERTY
@given(two_classes(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(classes: tuple[Tensor, Tensor], random: Random) -> None:
    positive, negative = classes
    shuffled = random.sample(range(len(positive)), len(positive))
    expected = mean_difference(positive, negative)
    assert_close(mean_difference(positive[shuffled], negative), expected, atol=1e-4, rtol=0)


@PROPERTY
@given(two_classes(), ENTRIES)
def test_a_shift_of_both_classes_cancels(classes: tuple[Tensor, Tensor], shift: float) -> None:
    positive, negative = classes
    shifted = mean_difference(positive + shift, negative + shift)
    assert_close(shifted, mean_difference(positive, negative), atol=1e-4, rtol=0)


def test_the_mean_difference_of_bfloat16_is_accumulated_in_float32() -> None:
    # In bfloat16, 256 + 1 is 256: the second half would count for nothing.
    positive = torch.cat([torch.full((1, 3), 256.0), torch.ones(999, 3)]).to(torch.bfloat16)
    difference = mean_difference(positive, torch.zeros(1, 3, dtype=torch.bfloat16))
    assert_close(difference, torch.full((3,), 1.255))


@pytest.mark.parametrize("empty", ["positive", "negative"])
def test_an_empty_class_is_refused_by_name(empty: str) -> None:
    classes = {"positive": torch.ones(2, 3), "negative": torch.ones(2, 3)} | {empty: torch.ones(0, 3)}
    with pytest.raises(InvalidArgumentError, match=f"`{empty}` must hold at least one sample"):
        mean_difference(**classes)


@PROPERTY
@given(tensors(5, 4))
def test_increments_sum_up_to_the_directions(vectors: Tensor) -> None:
    increments = layer_increments(vectors)
    assert torch.equal(increments[0], vectors[0])
    assert_close(increments.cumsum(dim=0), vectors, atol=1e-3, rtol=0)


def test_an_increment_is_the_change_from_the_layer_before() -> None:
    increments = layer_increments(torch.tensor([[1.0, 1.0], [4.0, 0.0], [4.0, 2.0]], dtype=torch.bfloat16))
    assert torch.equal(increments, torch.tensor([[1.0, 1.0], [3.0, -1.0], [0.0, 2.0]]))


@PROPERTY
@given(directions(2, 3, 4))
def test_normalised_vectors_have_length_one_and_the_same_direction(vectors: Tensor) -> None:
    unit = normalize(vectors)
    lengths = vectors.norm(dim=-1, keepdim=True)
    assert_close(unit.norm(dim=-1), torch.ones(2, 3))
    assert_close(unit * lengths, vectors, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1.0, 1e30, 3e38])
def test_vectors_of_any_size_can_be_normalised(size: float) -> None:
    assert_close(normalize(torch.tensor([size, size])), torch.full((2,), 0.5**0.5))


@pytest.mark.parametrize("entry", [0.0, torch.nan, torch.inf, -torch.inf])
def test_a_vector_without_direction_is_refused_with_its_index(entry: float) -> None:
    vectors = torch.ones(2, 3, 4)
    vectors[1, 2] = entry
    with pytest.raises(InvalidArgumentError, match=r"index \(1, 2\)"):
        normalize(vectors)


def test_one_nan_among_finite_entries_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="NaN"):
        normalize(torch.tensor([1.0, torch.nan, 2.0]))


@PROPERTY
@given(tensors(3, 4), directions(4), st.floats(0.01, 1000))
def test_the_projection_does_not_depend_on_the_length_of_the_direction(
    activations: Tensor, direction: Tensor, factor: float
) -> None:
    expected = project(activations, direction)
    assert_close(project(activations, factor * direction), expected, atol=1e-3, rtol=1e-4)


@PROPERTY
@given(directions(4))
def test_a_direction_projects_on_itself_with_its_length(direction: Tensor) -> None:
    assert_close(project(direction, direction), direction.norm(), atol=1e-4, rtol=1e-5)


@PROPERTY
@given(tensors(5, 4), directions(4))
def test_a_projection_does_not_depend_on_the_other_rows(activations: Tensor, direction: Tensor) -> None:
    alone = torch.stack([project(row, direction) for row in activations])
    assert torch.equal(project(activations, direction), alone)


def test_bfloat16_is_projected_in_float32() -> None:
    activations = torch.randn(4, 576, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    direction = torch.randn(576, generator=torch.Generator().manual_seed(1))
    exact = activations.double() @ (direction.double() / direction.double().norm())
    assert_close(project(activations, direction), exact.float(), atol=1e-5, rtol=0)


def test_autocast_does_not_lower_the_precision_of_a_projection() -> None:
    activations = torch.randn(4, 576, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(576, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = project(activations, direction)
    assert torch.equal(lowered, project(activations, direction))


def test_gradients_flow_through_a_projection() -> None:
    activations = torch.ones(2, 2, requires_grad=True)
    project(activations, torch.tensor([0.0, 3.0])).sum().backward()
    assert activations.grad is not None
    assert torch.equal(activations.grad, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


@PROPERTY
@given(tensors(3, 2, 5, 4), directions(3, 4))
def test_projecting_layers_projects_each_on_its_own_direction(activations: Tensor, vectors: Tensor) -> None:
    coordinates = project_layers(activations, vectors)
    assert coordinates.shape == (3, 2, 5)
    for layer in range(3):
        assert torch.equal(coordinates[layer], project(activations[layer], vectors[layer]))


@PROPERTY
@given(directions(3, 4), directions(3, 4), st.floats(0.01, 1000))
def test_the_cosine_is_symmetric_bounded_and_blind_to_length(a: Tensor, b: Tensor, factor: float) -> None:
    value = cosine(a, b)
    assert torch.equal(value, cosine(b, a))
    assert (value.abs() <= 1).all()
    assert_close(cosine(factor * a, -b), -value, atol=1e-5, rtol=0)
    assert_close(cosine(a, a), torch.ones(3))


def test_the_cosine_agrees_with_torch() -> None:
    a, b = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    assert_close(cosine(a, b), torch.cosine_similarity(a, b, dim=-1))


def test_random_directions_have_the_norms_asked_for_and_follow_the_seed() -> None:
    norms = torch.tensor([0.5, 2.0, 100.0])
    drawn = sample_random_directions(norms, d_model=16, n_directions=4, seed=7)
    assert drawn.shape == (4, 3, 16)
    assert drawn.dtype == torch.float32
    assert_close(drawn.norm(dim=-1), norms.expand(4, 3))
    assert torch.equal(drawn, sample_random_directions(norms, 16, 4, seed=7))
    assert not torch.equal(drawn, sample_random_directions(norms, 16, 4, seed=8))


def test_random_directions_prefer_no_direction() -> None:
    drawn = sample_random_directions(torch.ones(2), d_model=8, n_directions=4000, seed=0)
    assert drawn.mean(dim=0).abs().max() < 0.03
    covariance = torch.einsum("nli,nlj->lij", drawn, drawn) / 4000
    assert_close(covariance, torch.eye(8).expand(2, 8, 8) / 8, atol=0.015, rtol=0)
    # Independent across layers, too.
    assert (drawn[:, 0] * drawn[:, 1]).sum(dim=-1).mean().abs() < 0.03


def test_drawing_random_directions_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    sample_random_directions(torch.ones(2), d_model=8, n_directions=3, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("norm", [0.0, -1.0, torch.nan, torch.inf])
def test_an_impossible_norm_is_refused(norm: float) -> None:
    with pytest.raises(InvalidArgumentError, match="`norms`"):
        sample_random_directions(torch.tensor([1.0, norm]), d_model=4, n_directions=1, seed=0)


@pytest.mark.parametrize(("name", "counts"), [("d_model", (0, 1)), ("n_directions", (4, 0))])
def test_drawing_nothing_is_refused(name: str, counts: tuple[int, int]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"`{name}` must be at least 1"):
        sample_random_directions(torch.ones(2), *counts, seed=0)


def test_computation_is_in_float32_or_wider() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert widen(torch.ones(2, dtype=dtype)).dtype == torch.float32
    assert widen(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (mean_difference, [(2, 3), (2, 1)]),
        (project, [(2, 3), (1,)]),
        (project_layers, [(2, 3), (1, 3)]),
        (cosine, [(2, 3), (1, 3)]),
    ],
)
def test_shapes_that_would_broadcast_are_refused(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    # Unwrapped: users run without the shape checks that pytest adds.
    with pytest.raises(InvalidArgumentError, match="in shape"):
        inspect.unwrap(function)(*(torch.ones(shape) for shape in shapes))
