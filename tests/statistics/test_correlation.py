"""Intervals of correlations on Fisher's scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from persona_lens.statistics import bootstrap_pearson_r, bootstrap_spearman_r
from persona_lens.statistics.bootstrap import Resampled
from persona_lens.statistics.correlation import fisher_interval


def draw_pairs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw log-normal pairs whose logarithms correlate."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, n))
    return torch.from_numpy(np.exp(0.75 * x)), torch.from_numpy(np.exp(0.75 * (0.6 * x + 0.8 * noise)))


TRUE_R = (math.exp(0.6 * 0.75**2) - 1) / (math.exp(0.75**2) - 1)


@pytest.mark.parametrize("make", [bootstrap_pearson_r, bootstrap_spearman_r])
@pytest.mark.parametrize("n", [3, 5, 15])
def test_the_interval_stays_within_what_a_correlation_can_be(make, n):
    for seed in range(20):
        interval = make(*draw_pairs(n, seed), n_resamples=200)
        assert -1 <= interval.low <= interval.estimate <= interval.high <= 1


def test_nearer_to_one_the_interval_is_narrower_and_longer_toward_zero():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)
    noise = torch.sin(40 * x)
    widths = []
    for size in (0.5, 0.05, 1e-4):
        interval = bootstrap_pearson_r(x, x + size * noise)
        assert 0 < interval.high - interval.estimate < interval.estimate - interval.low
        widths.append(interval.high - interval.low)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("make", [bootstrap_pearson_r, bootstrap_spearman_r])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_pairs_on_a_line_have_an_interval_without_width(make, sign):
    x = torch.arange(10.0)
    interval = make(x, sign * (2 * x + 3))
    assert (interval.low, interval.estimate, interval.high) == pytest.approx((sign, sign, sign))


def test_few_resamples_on_a_line_widen_the_interval_without_opening_it():
    values = np.random.default_rng(0).normal(0.5, 0.1, 1000)
    without = fisher_interval(Resampled(0.5, values, 0.95), 20)
    on_line = fisher_interval(Resampled(0.5, np.where(np.arange(1000) < 10, 1.0, values), 0.95), 20)
    assert without.high < on_line.high < 0.9


def test_the_scale_and_degrees_of_freedom_are_those_said():
    z = math.atanh(0.5) + np.array([-0.1, 0.1])
    interval = fisher_interval(Resampled(0.5, np.tanh(z), 0.95), 12)
    half_width = 2.228139 * 0.1 * math.sqrt(12 / 11)  # Student's t with 10 degrees of freedom
    expected = math.tanh(math.atanh(0.5) - half_width), math.tanh(math.atanh(0.5) + half_width)
    assert (interval.low, interval.high) == pytest.approx(expected)


@pytest.mark.parametrize("n", [15, 18])
def test_correlations_of_few_skewed_pairs_are_covered(n):
    intervals = [bootstrap_pearson_r(*draw_pairs(n, seed), n_resamples=300, seed=seed) for seed in range(400)]
    assert sum(one.low <= TRUE_R <= one.high for one in intervals) >= 0.93 * 400
