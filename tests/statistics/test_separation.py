"""Score intervals of the AUROC."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from persona_lens.statistics import auroc, bootstrap_auroc, bootstrap_auroc_by_group

TIED_SCORES = arrays("float64", st.integers(2, 12), elements=st.integers(-3, 3).map(float)).map(torch.from_numpy)


def width(interval) -> float:
    return interval.high - interval.low


@settings(deadline=None, max_examples=60)
@given(TIED_SCORES, TIED_SCORES)
def test_the_interval_lies_within_the_scale_around_the_estimate_and_has_a_width(positive, negative):
    interval = bootstrap_auroc(positive, negative, n_resamples=50)
    assert interval.estimate == auroc(positive, negative)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert width(interval) > 0.2


def test_the_interval_of_the_opposite_is_the_mirror():
    positive, negative = torch.arange(12.0) + 5, torch.arange(12.0)
    there, back = bootstrap_auroc(positive, negative), bootstrap_auroc(negative, positive)
    assert back.estimate == pytest.approx(1 - there.estimate)
    # Other random numbers meet other scores.
    assert (back.low, back.high) == pytest.approx((1 - there.high, 1 - there.low), abs=0.01)


@pytest.mark.parametrize(("n", "low"), [(10, 0.7749), (20, 0.8921), (60, 0.9664)])
def test_classes_that_separate_perfectly_have_the_interval_of_their_number(n, low):
    interval = bootstrap_auroc(torch.arange(float(n)) + n, torch.arange(float(n)))
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-4), 1.0)


def test_where_questions_separate_perfectly_each_counts_as_one_score():
    scores = torch.arange(40.0)
    few, many = (
        bootstrap_auroc_by_group(scores + 40, scores, [i % n for i in range(40)], [i % n for i in range(40)])
        for n in (10, 40)
    )
    assert few.low < many.low < few.high == many.high == 1.0
    ten = torch.arange(10.0)
    alone = bootstrap_auroc_by_group(ten + 10, ten, range(10), range(10))
    assert few.low == pytest.approx(alone.low)


def test_questions_that_agree_by_chance_leave_the_interval_of_independent_scores():
    # Every question has the same scores, so that resamples do not vary at all.
    positive, negative = torch.tensor([1.0, 3.0, 4.0]).repeat(10), torch.tensor([0.0, 2.0, 3.0]).repeat(10)
    labels = [i // 3 for i in range(30)]
    grouped = bootstrap_auroc_by_group(positive, negative, labels, labels)
    assert width(grouped) > 0.9 * width(bootstrap_auroc(positive, negative))


@pytest.mark.parametrize("n", [10, 20])
def test_classes_far_apart_are_covered(n):
    rng, held = np.random.default_rng(0), 0
    for seed in range(400):
        positive, negative = torch.from_numpy(rng.normal(3, 1, n)), torch.from_numpy(rng.normal(0, 1, n))
        interval = bootstrap_auroc(positive, negative, n_resamples=200, seed=seed)
        held += interval.low <= 0.98305 <= interval.high  # Phi(3 / sqrt(2))
    assert held >= 0.93 * 400


def test_scores_of_ten_questions_are_covered():
    rng, held = np.random.default_rng(1), 0
    labels = [i // 3 for i in range(30)]
    for seed in range(300):
        shared = rng.normal(0, 1, (10, 1))
        positive, negative = (torch.from_numpy((by + shared + rng.normal(size=(10, 3))).ravel()) for by in (1.5, 0.0))
        interval = bootstrap_auroc_by_group(positive, negative, labels, labels, n_resamples=200, seed=seed)
        held += interval.low <= 0.77337 <= interval.high  # Phi(1.5 / 2)
    assert held >= 0.93 * 300
