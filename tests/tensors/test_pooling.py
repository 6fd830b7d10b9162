"""Properties of means over token spans and over streams of samples."""

from __future__ import annotations

import inspect
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.testing import assert_close

from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors.pooling import StreamingMean, masked_mean, masked_sum

PROPERTY = settings(deadline=None, max_examples=60)
ENTRIES = st.floats(-100, 100, width=32)


def tensors(*shape: int) -> st.SearchStrategy[Tensor]:
    """Draw float32 tensors of a shape."""
    return arrays("float32", shape, elements=ENTRIES).map(torch.from_numpy)


@st.composite
def spans(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw activations "batch pos d_model" and a mask that selects something in every row."""
    n_rows, n_positions = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    mask = torch.from_numpy(draw(arrays("bool", (n_rows, n_positions))))
    always = draw(st.lists(st.integers(0, n_positions - 1), min_size=n_rows, max_size=n_rows))
    mask[torch.arange(n_rows), always] = True
    return draw(tensors(n_rows, n_positions, 3)), mask


@PROPERTY
@given(spans())
def test_a_masked_mean_is_the_mean_of_the_selected_positions(span: tuple[Tensor, Tensor]) -> None:
    activations, mask = span
    by_hand = torch.stack([row[chosen].mean(dim=0) for row, chosen in zip(activations, mask, strict=True)])
    assert_close(masked_mean(activations, mask), by_hand, atol=1e-4, rtol=1e-5)
    counts = mask.sum(dim=-1, keepdim=True)
    assert_close(masked_sum(activations, mask), by_hand * counts, atol=1e-3, rtol=1e-5)


@PROPERTY
@given(spans(), st.sampled_from([0.0, 1e30, torch.nan, torch.inf, -torch.inf]))
def test_what_lies_outside_the_mask_does_not_matter(span: tuple[Tensor, Tensor], content: float) -> None:
    activations, mask = span
    filled = activations.masked_fill(~mask[..., None], content)
    assert torch.equal(masked_mean(filled, mask), masked_mean(activations, mask))
    assert torch.equal(masked_sum(filled, mask), masked_sum(activations, mask))


@PROPERTY
@given(spans(), st.integers(0, 5), st.integers(0, 5))
def test_padding_does_not_matter(span: tuple[Tensor, Tensor], left: int, right: int) -> None:
    activations, mask = span
    padded = torch.nn.functional.pad(activations, (0, 0, left, right), value=torch.nan)
    padded_mask = torch.nn.functional.pad(mask, (left, right), value=False)
    assert_close(masked_mean(padded, padded_mask), masked_mean(activations, mask), atol=1e-4, rtol=1e-5)


@PROPERTY
@given(spans(), st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(span: tuple[Tensor, Tensor], random: Random) -> None:
    activations, mask = span
    order = random.sample(range(len(mask)), len(mask))
    assert torch.equal(masked_mean(activations[order], mask[order]), masked_mean(activations, mask)[order])


def test_any_number_of_batch_axes_is_pooled() -> None:
    activations = torch.arange(24.0).reshape(2, 2, 3, 2)
    mask = torch.tensor([True, False, True])
    assert torch.equal(masked_mean(activations[0, 0], mask), torch.tensor([2.0, 3.0]))
    assert torch.equal(masked_mean(activations, mask.expand(2, 2, 3)), activations[:, :, 1])


def test_bfloat16_is_pooled_in_float32() -> None:
    # In bfloat16, 256 + 1 is 256: all but the first token would count for nothing.
    activations = torch.cat([torch.full((1, 1), 256.0), torch.ones(999, 1)]).to(torch.bfloat16)
    everything = torch.ones(1000, dtype=torch.bool)
    assert_close(masked_mean(activations, everything), torch.tensor([1.255]))
    assert_close(masked_sum(activations, everything), torch.tensor([1255.0]))


def test_gradients_stay_finite_next_to_masked_nan() -> None:
    activations = torch.tensor([[1.0], [torch.nan]], requires_grad=True)
    masked_mean(activations, torch.tensor([True, False])).sum().backward()
    assert activations.grad is not None
    assert torch.equal(activations.grad, torch.tensor([[1.0], [0.0]]))


def test_the_mean_of_an_empty_row_is_refused_with_its_index() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(InvalidArgumentError, match=r"empty rows \[\(1,\)\]"):
        masked_mean(torch.ones(2, 2, 3), mask)
    with pytest.raises(InvalidArgumentError, match="at least one position"):
        masked_mean(torch.ones(0, 3), torch.ones(0, dtype=torch.bool))


def test_the_sum_of_an_empty_row_is_zero() -> None:
    activations = torch.full((2, 2, 3), torch.nan)
    assert torch.equal(masked_sum(activations, torch.zeros(2, 2, dtype=torch.bool)), torch.zeros(2, 3))


def test_a_mask_that_would_broadcast_is_refused() -> None:
    # Unwrapped: users run without the shape checks that pytest adds.
    with pytest.raises(InvalidArgumentError, match="`mask` must have the shape"):
        inspect.unwrap(masked_sum)(torch.ones(2, 4, 3), torch.ones(1, 4, dtype=torch.bool))


@st.composite
def streams(draw: st.DrawFn) -> tuple[Tensor, list[Tensor]]:
    """Draw samples, and the same samples shuffled and cut into batches (some of them empty)."""
    n_samples = draw(st.integers(1, 12))
    samples = draw(tensors(n_samples, 2, 3))
    order = draw(st.permutations(range(n_samples)))
    cuts = sorted(draw(st.lists(st.integers(0, n_samples), max_size=4)))
    return samples, list(torch.tensor_split(samples[order], cuts))


@PROPERTY
@given(streams())
def test_streaming_equals_whole(stream: tuple[Tensor, list[Tensor]]) -> None:
    samples, batches = stream
    running = StreamingMean()
    for batch in batches:
        running.update(batch)
    assert running.count == len(samples)
    assert_close(running.mean, samples.double().mean(dim=0).float(), atol=1e-6, rtol=1e-6)


@PROPERTY
@given(streams(), st.integers(0, 5))
def test_merging_streams_equals_whole(stream: tuple[Tensor, list[Tensor]], n_first: int) -> None:
    samples, batches = stream
    first, second = StreamingMean(), StreamingMean()
    for index, batch in enumerate(batches):
        (first if index < n_first else second).update(batch)
    second_count = second.count
    first.merge(second)
    assert first.count == len(samples)
    assert_close(first.mean, samples.double().mean(dim=0).float(), atol=1e-6, rtol=1e-6)
    # The other stream stays as it was, also when this one goes on.
    first.update(samples)
    assert second.count == second_count


def test_a_merged_stream_and_its_source_go_separate_ways() -> None:
    source, target = StreamingMean(), StreamingMean()
    source.update(torch.tensor([[2.0]]))
    target.merge(source)
    target.update(torch.tensor([[4.0]]))
    source.update(torch.tensor([[10.0]]))
    assert torch.equal(source.mean, torch.tensor([6.0]))
    assert torch.equal(target.mean, torch.tensor([3.0]))


def test_many_small_batches_lose_no_precision() -> None:
    running = StreamingMean()
    running.update(torch.full((1, 1), 1e8))
    for _ in range(200):
        running.update(torch.ones(1, 1, dtype=torch.bfloat16))
    running.update(torch.full((1, 1), -1e8))
    assert_close(running.mean, torch.tensor([200 / 202]), atol=1e-6, rtol=0)


def test_a_stream_keeps_no_gradients_and_copies_what_it_is_given() -> None:
    values = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    running = StreamingMean()
    running.update(values)
    values.data.fill_(5.0)
    assert not running.mean.requires_grad
    assert torch.equal(running.mean, torch.ones(2))


def test_the_mean_of_nothing_is_refused() -> None:
    running = StreamingMean()
    with pytest.raises(InvalidArgumentError, match="`count` must be at least 1"):
        _ = running.mean
    running.update(torch.ones(0, 3))
    running.merge(StreamingMean())
    with pytest.raises(InvalidArgumentError, match="`count` must be at least 1"):
        _ = running.mean


def test_samples_of_another_shape_are_refused() -> None:
    running, other = StreamingMean(), StreamingMean()
    running.update(torch.ones(2, 3))
    other.update(torch.ones(2, 1))
    with pytest.raises(InvalidArgumentError, match=r"`values` must hold samples of shape \(3,\)"):
        running.update(torch.ones(2, 1))
    with pytest.raises(InvalidArgumentError, match=r"`other` must hold samples of shape \(3,\)"):
        running.merge(other)
    assert running.count == 2
