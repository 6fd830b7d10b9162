"""Intervals of correlations on Fisher's scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from persona_lens.errors import InvalidArgumentError
from persona_lens.statistics import (
    bootstrap_pearson_difference_by_group,
    bootstrap_pearson_r,
    bootstrap_pearson_r_by_group,
    bootstrap_spearman_r,
    pearson_r,
)
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


def test_pairs_that_come_in_identical_groups_say_as_little_as_one_pair_each():
    x, y = draw_pairs(12, seed=3)
    single = bootstrap_pearson_r(x, y)
    doubled = bootstrap_pearson_r_by_group(torch.cat([x, x]), torch.cat([y, y]), [*range(12)] * 2)
    assert (doubled.low, doubled.estimate, doubled.high) == pytest.approx((single.low, single.estimate, single.high))
    assert bootstrap_pearson_r(torch.cat([x, x]), torch.cat([y, y])).low > single.low


def test_a_difference_of_correlations_is_that_of_the_two_and_changes_sign_with_them():
    x, y = draw_pairs(12, seed=3)
    other, groups = torch.cos(x), [*range(6)] * 2
    found = bootstrap_pearson_difference_by_group(x, other, y, groups)
    assert found.estimate == pytest.approx(pearson_r(x, y) - pearson_r(other, y))
    turned = bootstrap_pearson_difference_by_group(other, x, y, groups)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    same = bootstrap_pearson_difference_by_group(x, x, y, groups)
    assert (same.low, same.estimate, same.high) == (0, 0, 0)


def test_differences_of_correlations_are_covered():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        y, one, two = rng.normal(size=(3, 12))
        x, other = 0.7 * y + math.sqrt(1 - 0.49) * one, 0.4 * y + math.sqrt(1 - 0.16) * two
        groups = np.repeat(np.arange(6), 2).tolist()
        found = bootstrap_pearson_difference_by_group(*map(torch.from_numpy, (x, other, y)), groups, n_resamples=200)
        hits += found.low <= 0.3 <= found.high
    assert hits >= 0.93 * 200


@pytest.mark.parametrize(
    ("groups", "words"), [([0, 1, 2], "label each of the 4 values"), ([0, 1, 0, 1], "name at least 3 groups")]
)
def test_groups_that_do_not_fit_are_refused(groups, words):
    x = torch.arange(4.0)
    for make in (
        lambda: bootstrap_pearson_r_by_group(x, x**2, groups),
        lambda: bootstrap_pearson_difference_by_group(x, -x, x**2, groups),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            make()


def test_a_side_that_is_constant_has_no_correlation_by_group():
    x, constant, groups = torch.arange(6.0), torch.ones(6), [*range(3)] * 2
    assert bootstrap_pearson_r_by_group(x, constant, groups).is_missing
    assert bootstrap_pearson_difference_by_group(x, constant, x**2, groups).is_missing
