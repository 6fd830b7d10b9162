"""The interval of a mean over directions and questions, both drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from persona_lens.errors import InvalidArgumentError
from persona_lens.statistics import bootstrap_mean, mean_over_directions_interval
from persona_lens.statistics.missing import difference_interval, mean_interval

NAN = float("nan")


def draw(n_directions: int, n_questions: int, seed: int, of_direction: float, of_question: float) -> torch.Tensor:
    """Draw values whose true mean is 0, with a standard deviation of 1 in each cell."""
    rng = np.random.default_rng(seed)
    directions = of_direction * rng.normal(size=(n_directions, 1))
    cells = rng.normal(size=(n_directions, n_questions))
    return torch.from_numpy(directions + of_question * rng.normal(size=(1, n_questions)) + cells)


def width(interval) -> float:
    return interval.high - interval.low


@settings(deadline=None, max_examples=60)
@given(arrays("float64", (4, 5), elements=st.one_of(st.just(NAN), st.floats(-100, 100))), st.integers(0, 9))
def test_the_estimate_is_that_of_averaging_directions_first(array, seed):
    values = torch.from_numpy(array)
    interval = mean_over_directions_interval(values, n_resamples=20, seed=seed)
    present = ~values.isnan()
    if min(int(present.any(dim=1).sum()), int(present.any(dim=0).sum())) < 2:
        assert interval.is_missing
    else:
        assert interval.estimate == pytest.approx(mean_interval(values.nanmean(dim=0)).estimate, abs=1e-9)
        assert interval.low <= interval.high


def test_the_margin_over_random_directions_is_that_of_the_difference():
    steered, random = torch.randn(10), torch.randn(4, 10)
    random[2, 3] = NAN
    both = mean_over_directions_interval(steered - random)
    assert both.estimate == pytest.approx(difference_interval(steered, random.nanmean(dim=0)).estimate, abs=1e-6)


def test_directions_that_differ_widen_the_interval_and_those_that_agree_leave_that_of_the_questions():
    of_questions = draw(1, 12, seed=0, of_direction=0.0, of_question=1.0)
    same = mean_over_directions_interval(of_questions.expand(8, 12))
    alone = bootstrap_mean(of_questions[0])
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high))
    offsets = torch.arange(8.0)[:, None] - 3.5
    assert width(mean_over_directions_interval(of_questions + offsets)) > 1.5 * width(same)


def test_directions_and_questions_are_units_of_the_same_kind():
    values = draw(6, 6, seed=1, of_direction=2.0, of_question=0.5)
    there, back = mean_over_directions_interval(values), mean_over_directions_interval(values.T)
    assert (there.low, there.estimate, there.high) == pytest.approx((back.low, back.estimate, back.high))


def test_fewer_directions_have_fewer_degrees_of_freedom():
    # Where directions alone differ, the interval is Student's t over them: 4.30 standard errors for three.
    column = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None].expand(3, 50)
    interval = mean_over_directions_interval(column, n_resamples=20_000)
    assert width(interval) == pytest.approx(2 * 4.303 / 3**0.5, rel=0.03)


@pytest.mark.parametrize(("n_directions", "n_questions"), [(4, 10), (16, 10)])
def test_it_covers_the_mean_of_all_directions_where_an_interval_over_questions_does_not(n_directions, n_questions):
    both, questions = 0, 0
    for seed in range(200):
        values = draw(n_directions, n_questions, seed, of_direction=2.0, of_question=0.7)
        found = mean_over_directions_interval(values, n_resamples=200, seed=seed)
        alone = bootstrap_mean(values.mean(dim=0), n_resamples=200, seed=seed)
        both += found.low <= 0 <= found.high
        questions += alone.low <= 0 <= alone.high
    assert both >= 184
    assert questions < 170


def test_a_direction_and_a_question_without_any_value_do_not_count():
    values = draw(5, 6, seed=2, of_direction=1.0, of_question=1.0)
    holed = torch.full((7, 8), NAN, dtype=torch.float64)
    holed[1:6, 2:] = values
    assert mean_over_directions_interval(holed) == mean_over_directions_interval(values)


def test_a_resample_that_leaves_a_question_unanswered_averages_the_others():
    # Direction 0 alone answers question 1, with what all answer to question 0: every resample's mean is 3.
    values = torch.tensor([[3.0, 3.0], [3.0, NAN], [3.0, NAN]])
    interval = mean_over_directions_interval(values)
    assert (interval.low, interval.estimate, interval.high) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize("shape", [(0, 0), (1, 5), (5, 1), (1, 1)])
def test_one_direction_or_one_question_gives_no_interval(shape):
    assert mean_over_directions_interval(torch.ones(shape), level=0.9).is_missing


def test_identical_values_give_an_interval_without_width():
    interval = mean_over_directions_interval(torch.full((4, 10), 0.1))
    assert interval.high - interval.low == pytest.approx(0.0, abs=1e-12)


def test_it_follows_its_seed_and_widens_with_its_level():
    values = draw(5, 8, seed=3, of_direction=1.0, of_question=1.0)
    ends = [mean_over_directions_interval(values, seed=seed) for seed in (1, 1, 2)]
    assert ends[0] == ends[1] != ends[2]
    intervals = [mean_over_directions_interval(values, level=level) for level in (0.5, 0.9, 0.99)]
    assert all(b.low < a.low < a.high < b.high for a, b in itertools.pairwise(intervals))


@pytest.mark.parametrize(
    ("values", "options", "name"),
    [
        (torch.tensor([[1.0, float("inf")], [0.0, 0.0]]), {}, "values"),
        (torch.eye(3), {"level": 95.0}, "level"),
        (torch.eye(3), {"n_resamples": 0}, "n_resamples"),
        (torch.eye(3), {"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_resampled_is_refused(values, options, name):
    with pytest.raises(InvalidArgumentError, match=f"`{name}`"):
        mean_over_directions_interval(values, **options)
