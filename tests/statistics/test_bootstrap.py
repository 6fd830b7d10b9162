"""Intervals of means: from the resamples' moments to Student's t of skewed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from persona_lens.statistics import bootstrap_mean
from persona_lens.statistics.bootstrap import bootstrap, scale_moments, student_quantile, t_interval_of_moments


def draw_scores(n: int, seed: int) -> torch.Tensor:
    """Draw scores piled up at 0 and 100; their true mean is 100/3."""
    return torch.from_numpy(100 * np.random.default_rng(seed).beta(0.3, 0.6, n))


def test_the_quantile_is_students():
    assert student_quantile(0.95, 9) == pytest.approx(2.262157)
    assert student_quantile(0.9, 3.5) < student_quantile(0.9, 3)


def test_without_skewness_the_interval_is_students():
    interval = t_interval_of_moments(1.0, 4.0, 0.0, 9, 0.95)
    assert (interval.low, interval.high) == pytest.approx((1 - 2 * 2.262157, 1 + 2 * 2.262157))


@given(st.floats(-3, 3), st.integers(1, 40), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_halls_cubic_carries_both_ends_to_the_quantiles(skewness, df, level):
    interval = t_interval_of_moments(5.0, 4.0, 8.0 * skewness, df, level)
    for end, quantile in ((interval.low, 1), (interval.high, -1)):
        t = (5.0 - end) / 2
        cubic = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6
        assert cubic == pytest.approx(quantile * student_quantile(level, df), rel=1e-5, abs=1e-5)


def test_a_tail_to_one_side_lengthens_that_side_and_its_mirror_the_other():
    values = torch.tensor([0.0, 0, 0, 0, 0, 1, 2, 4, 30, 60])
    interval, mirror = bootstrap_mean(values), bootstrap_mean(-values)
    assert interval.high - interval.estimate > 1.5 * (interval.estimate - interval.low)
    assert (mirror.low, mirror.high) == pytest.approx((-interval.high, -interval.low))


def test_a_mean_of_symmetric_values_has_scipys_t_interval():
    values = torch.linspace(-3, 5, 12)
    interval = bootstrap_mean(values, n_resamples=50_000)
    expected = ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.1)


def test_moments_of_resamples_are_those_of_a_mean_without_the_bootstraps_bias():
    values = np.array([0.0, 0.0, 1.0, 7.0])
    found = bootstrap(lambda counts: counts @ values / 4, (4,), 200_000, 0.95, 0)
    variance, third = scale_moments(found.values, 4)
    deviations = values - values.mean()
    assert variance == pytest.approx(values.var(ddof=1) / 4, rel=0.02)
    assert third / variance**1.5 == pytest.approx((deviations**3).mean() / values.var() ** 1.5 / 2, rel=0.05)


@pytest.mark.parametrize("value", [0.1, 0.0, -1e6, 1e300])
def test_the_interval_of_identical_values_has_no_width(value):
    interval = bootstrap_mean(torch.full((10,), value, dtype=torch.float64))
    assert interval.low == interval.estimate == interval.high
    assert interval.estimate == pytest.approx(value)


def test_two_values_say_little():
    interval = bootstrap_mean(torch.tensor([5.0, 35.0]))
    assert interval.high - interval.low > 200  # 12.7 standard errors of 15 to each side
    assert math.isfinite(interval.high)


@pytest.mark.parametrize("n", [10, 20])
def test_means_of_few_scores_at_both_ends_are_covered(n):
    intervals = [bootstrap_mean(draw_scores(n, seed), n_resamples=300, seed=seed) for seed in range(400)]
    assert sum(one.low <= 100 / 3 <= one.high for one in intervals) >= 0.93 * 400
