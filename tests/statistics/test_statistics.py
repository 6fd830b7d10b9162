"""Properties of correlations, AUROC and bootstrap intervals."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr
from scipy.stats import t as student
from torch import Tensor

import persona_lens.statistics.bootstrap as bootstrap_module
from persona_lens.errors import InvalidArgumentError
from persona_lens.statistics import (
    Interval,
    auroc,
    bootstrap_auroc,
    bootstrap_auroc_by_group,
    bootstrap_mean,
    bootstrap_paired_difference,
    bootstrap_pearson_r,
    bootstrap_spearman_r,
    pearson_r,
)
from persona_lens.statistics.bootstrap import draw_multinomial

PROPERTY = settings(deadline=None, max_examples=60)
SCORES = st.floats(-100, 100, width=32)
# Few distinct values, so that ties are common.
TIED_SCORES = st.integers(-3, 3).map(float)

STATISTICS_OF_PAIRS = [pearson_r, bootstrap_paired_difference, bootstrap_pearson_r, bootstrap_spearman_r]
STATISTICS_OF_TWO = [
    pearson_r,
    auroc,
    bootstrap_paired_difference,
    bootstrap_auroc,
    bootstrap_pearson_r,
    bootstrap_spearman_r,
]
BOOTSTRAPS: list[Callable[..., Interval]] = [
    bootstrap_mean,
    lambda values, **options: bootstrap_paired_difference(values, values.flip(0) / 2, **options),
    # One class varies much more, so that the resamples say more than the formula for independent scores.
    lambda values, **options: bootstrap_auroc(values, values.flip(0) / 10, **options),
    lambda values, **options: bootstrap_pearson_r(values, values.flip(0) ** 2, **options),
    lambda values, **options: bootstrap_spearman_r(values, values.flip(0) ** 2, **options),
]


def vectors(n: int | st.SearchStrategy[int], elements: st.SearchStrategy[float] = SCORES) -> st.SearchStrategy[Tensor]:
    """Draw float32 vectors."""
    return arrays("float32", n, elements=elements).map(torch.from_numpy)


def normal(n: int, seed: int) -> Tensor:
    """Draw standard normal values."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Pearson's r


def vary(*values: Tensor) -> bool:
    """Tell whether all vectors vary by more than rounding."""
    return all(bool(value.max() - value.min() > 0.1) for value in values)


@PROPERTY
@given(vectors(6), vectors(6), st.floats(0.01, 100), SCORES)
def test_the_correlation_is_symmetric_bounded_and_blind_to_scale_and_shift(
    x: Tensor, y: Tensor, scale: float, shift: float
) -> None:
    assume(vary(x, y))
    r = pearson_r(x, y)
    assert abs(r) <= 1
    assert pearson_r(y, x) == pytest.approx(r, abs=1e-9)
    assert pearson_r(-scale * x.double() + shift, y) == pytest.approx(-r, abs=1e-6)
    assert pearson_r(x, x) == pytest.approx(1.0)


@PROPERTY
@given(vectors(7), vectors(7))
def test_the_correlation_agrees_with_numpy(x: Tensor, y: Tensor) -> None:
    assume(vary(x, y))
    assert pearson_r(x, y) == pytest.approx(np.corrcoef(x.double(), y.double())[0, 1], abs=1e-9)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_correlation_of_tiny_and_huge_values_is_found(size: float) -> None:
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert pearson_r(size * x, torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(0.5)


@pytest.mark.parametrize("constant", ["x", "y"])
def test_the_correlation_with_a_constant_is_refused(constant: str) -> None:
    sides = {"x": torch.arange(3.0), "y": torch.arange(3.0)} | {constant: torch.full((3,), 0.1)}
    with pytest.raises(InvalidArgumentError, match=f"`{constant}` must vary"):
        pearson_r(**sides)


# AUROC


@PROPERTY
@given(
    vectors(st.integers(1, 9), st.one_of(TIED_SCORES, SCORES)),
    vectors(st.integers(1, 9), st.one_of(TIED_SCORES, SCORES)),
)
def test_the_auroc_counts_pairs_and_half_of_the_ties(positive: Tensor, negative: Tensor) -> None:
    pairs = list(itertools.product(positive.tolist(), negative.tolist()))
    by_hand = sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)
    assert auroc(positive, negative) == pytest.approx(by_hand)
    assert auroc(negative, positive) == pytest.approx(1 - by_hand)


def test_the_auroc_of_separate_equal_and_reversed_classes_is_exact() -> None:
    low, high = torch.arange(7.0), torch.arange(7.0) + 7
    assert (auroc(high, low), auroc(low, low), auroc(low, high)) == (1.0, 0.5, 0.0)


@PROPERTY
@given(vectors(st.integers(2, 8), TIED_SCORES), vectors(st.integers(2, 8), TIED_SCORES), st.integers(0, 9))
def test_the_auroc_interval_is_that_of_resampled_scores(positive: Tensor, negative: Tensor, seed: int) -> None:
    interval = bootstrap_auroc(positive, negative, n_resamples=20, seed=seed)
    # The slow way: draw the same units and compute the AUROC of the drawn scores.
    rng = np.random.default_rng(seed)
    drawn_pos = positive[torch.from_numpy(rng.integers(len(positive), size=(20, len(positive))))]
    drawn_neg = negative[torch.from_numpy(rng.integers(len(negative), size=(20, len(negative))))]
    slow = [auroc(p, n) for p, n in zip(drawn_pos, drawn_neg, strict=True)]
    assert interval.estimate == auroc(positive, negative)
    sizes = (len(positive), len(negative))
    widening = 1.0
    if 0 < interval.estimate < 1:
        n = min(sizes)
        formula = hanley_mcneil(interval.estimate, *sizes)
        widening = (n * max(formula, n / (n - 1) * np.var(slow)) / formula + 1) / (n + 1)
    reach = student.ppf(0.975, sum(sizes) - 2) * widening**0.5
    for end in (interval.low, interval.high):
        if 0 < end < 1:  # so many of its own standard errors away; the ends of the scale are reached at the others
            assert abs(interval.estimate - end) == pytest.approx(reach * hanley_mcneil(end, *sizes) ** 0.5)
    assert interval.low > 0 or interval.estimate == 0
    assert interval.high < 1 or interval.estimate == 1


def hanley_mcneil(auroc: float, n_positive: int, n_negative: int) -> float:
    """Return the variance by Newcombe's method 5: Hanley and McNeil's with the mean of both sizes."""
    n = (n_positive + n_negative) / 2 - 1
    both = n * (1 - auroc) / (2 - auroc) + n * auroc / (1 + auroc)
    return auroc * (1 - auroc) * (1 + both) / (n_positive * n_negative)


# Bootstrap


def test_an_interval_prints_with_two_decimals() -> None:
    assert str(Interval(estimate=0.4199, low=0.31, high=0.55)) == "0.42 [0.31, 0.55]"
    assert str(Interval(estimate=-3.0, low=-10.254, high=0.0, level=0.9)) == "-3.00 [-10.25, 0.00]"


def test_an_interval_takes_another_form_and_says_where_there_is_none() -> None:
    assert f"{Interval(0.001234, 0.0005, 12.345):.3g}" == "0.00123 [0.0005, 12.3]"
    assert f"{Interval.missing(0.9)} {Interval.missing():.3g}" == "not defined not defined"
    assert Interval.missing(0.9).level == 0.9
    assert not Interval(0.0, 0.0, 0.0).is_missing


@pytest.mark.parametrize(
    "fields", [(0.0, 1.0, 0.0, 0.95), (0.0, float("nan"), 1.0, 0.95), (0.0, -1.0, 1.0, 1.0), (0.0, -1.0, 1.0, 0.0)]
)
def test_an_impossible_interval_is_refused(fields: tuple[float, float, float, float]) -> None:
    with pytest.raises(InvalidArgumentError):
        Interval(*fields)


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_a_bootstrap_follows_its_seed_and_widens_with_its_level(bootstrap: Callable[..., Interval]) -> None:
    values = normal(40, seed=0)
    interval = bootstrap(values, seed=1)
    assert interval == bootstrap(values, seed=1)
    assert interval != bootstrap(values, seed=2)
    assert interval.low < interval.estimate < interval.high
    wide, narrow = bootstrap(values, level=0.99), bootstrap(values, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (wide.level, narrow.level) == (0.99, 0.5)


def test_large_samples_are_resampled_in_blocks_with_the_same_spread() -> None:
    values = normal(4000, seed=0)
    interval = bootstrap_mean(values)
    standard_error = float(values.std()) / 4000**0.5
    assert interval.estimate == pytest.approx(float(values.mean()))
    assert (interval.high - interval.low) / (2 * 1.96 * standard_error) == pytest.approx(1.0, abs=0.06)


def coverage(make: Callable[[int], Interval], truth: float, n_trials: int = 200) -> float:
    """Count how often the interval of a repeated experiment holds the true value."""
    intervals = [make(trial) for trial in range(n_trials)]
    return sum(interval.low <= truth <= interval.high for interval in intervals) / n_trials


def test_intervals_of_the_mean_cover_the_true_mean() -> None:
    def make(trial: int) -> Interval:
        return bootstrap_mean(normal(40, seed=trial) + 3, n_resamples=400, level=0.9, seed=trial)

    assert 0.83 <= coverage(make, 3.0) <= 0.95


def test_intervals_of_the_auroc_cover_the_true_auroc() -> None:
    def make(trial: int) -> Interval:
        a, b = normal(40, seed=2 * trial) + 1, normal(40, seed=2 * trial + 1)
        return bootstrap_auroc(a, b, n_resamples=400, level=0.9, seed=trial)

    # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt(2)).
    assert 0.83 <= coverage(make, 0.7602) <= 0.95


def test_intervals_of_the_correlation_cover_the_true_correlation() -> None:
    def make(trial: int) -> Interval:
        x, noise = normal(40, seed=2 * trial), normal(40, seed=2 * trial + 1)
        return bootstrap_pearson_r(x, 0.6 * x + 0.8 * noise, n_resamples=400, level=0.9, seed=trial)

    assert 0.8 <= coverage(make, 0.6) <= 0.95


@PROPERTY
@given(st.lists(st.tuples(TIED_SCORES, TIED_SCORES), min_size=3, max_size=8), st.integers(0, 9))
def test_the_correlations_interval_is_that_of_resampled_pairs_that_vary(
    pairs: list[tuple[float, float]], seed: int
) -> None:
    x, y = torch.tensor(pairs).T
    assume(vary(x, y))
    interval = bootstrap_pearson_r(x, y, n_resamples=50, seed=seed)
    drawn = torch.from_numpy(np.random.default_rng(seed).integers(len(x), size=(50, len(x))))
    slow = [pearson_r(x[rows], y[rows]) for rows in drawn if vary(x[rows], y[rows])]
    assert interval.estimate == pearson_r(x, y)
    assert [interval.low, interval.high] == pytest.approx(slow_fisher(interval.estimate, slow, len(x)), abs=1e-6)


@PROPERTY
@given(st.lists(st.tuples(TIED_SCORES, TIED_SCORES), min_size=3, max_size=12), st.integers(0, 9))
def test_the_rank_correlation_is_scipys_on_the_same_resamples(pairs: list[tuple[float, float]], seed: int) -> None:
    x, y = torch.tensor(pairs).T
    assume(vary(x, y))
    interval = bootstrap_spearman_r(x, y, n_resamples=50, seed=seed)
    rng = np.random.default_rng(seed)  # one resample at a time, from the same generator
    drawn = [torch.from_numpy(rng.integers(len(x), size=len(x))) for _ in range(50)]
    slow = [spearmanr(x[rows], y[rows]).statistic for rows in drawn if vary(x[rows], y[rows])]
    assert interval.estimate == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)
    assert [interval.low, interval.high] == pytest.approx(slow_fisher(interval.estimate, slow, len(x)), abs=1e-6)


def slow_fisher(estimate: float, resamples: list[float], n: int) -> list[float]:
    """Take Student's t times the resamples' standard deviation to each side, on Fisher's scale."""
    z, *zs = np.arctanh(np.clip([estimate, *resamples], -1 + 1e-15, 1 - 1e-15))
    spread = np.sqrt(n / (n - 1)) * np.std(np.clip(zs, -abs(z) - 3, abs(z) + 3))
    if spread < 1e-6:
        return [estimate, estimate]
    return np.tanh(z + np.array([-1, 1]) * student.ppf(0.975, n - 2) * spread).tolist()


@given(st.integers(1, 9), st.integers(1, 30))
def test_counts_drawn_in_blocks_are_those_drawn_at_once(n_units: int, n_resamples: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap_module, "_BLOCK_SIZE", 3 * n_units)
        blocks = list(draw_multinomial((n_units,), n_resamples, np.random.default_rng(0)))
    assert max(len(counts) for (counts,) in blocks) <= 3
    at_once = np.random.default_rng(0).multinomial(n_units, [1 / n_units] * n_units, size=n_resamples)
    assert np.array_equal(np.concatenate([counts for (counts,) in blocks]), at_once)


@pytest.mark.parametrize("bootstrap", [bootstrap_pearson_r, bootstrap_spearman_r])
def test_the_correlation_with_a_constant_is_missing_not_refused(bootstrap: Callable[..., Interval]) -> None:
    for x, y in ((torch.ones(4), torch.arange(4.0)), (torch.arange(4.0), torch.ones(4))):
        interval = bootstrap(x, y, level=0.9)
        assert interval.is_missing
        assert interval.level == 0.9


def test_the_correlation_of_two_pairs_has_no_interval() -> None:
    with pytest.raises(InvalidArgumentError, match=r"`x` must have at least 3 values\. Got 2"):
        bootstrap_pearson_r(torch.arange(2.0), torch.arange(2.0))


def test_resamples_that_are_all_constant_are_refused() -> None:
    # Two of the three pairs are equal, and the single resample draws only these.
    x = torch.tensor([0.0, 0.0, 1.0])
    seed = next(s for s in range(99) if 2 not in np.random.default_rng(s).integers(3, size=(1, 3)))
    with pytest.raises(InvalidArgumentError, match="`n_resamples`"):
        bootstrap_pearson_r(x, x, n_resamples=1, seed=seed)


def test_what_a_unit_adds_to_both_sides_cancels() -> None:
    unit, noise = 100 * normal(50, seed=0), normal(50, seed=1)
    paired, alone = bootstrap_paired_difference(unit + noise + 1, unit), bootstrap_mean(noise + 1)
    assert [paired.low, paired.high] == pytest.approx([alone.low, alone.high], abs=1e-4)


@PROPERTY
@given(vectors(6), vectors(6))
def test_swapping_the_sides_flips_the_difference(a: Tensor, b: Tensor) -> None:
    there, back = bootstrap_paired_difference(a, b), bootstrap_paired_difference(b, a)
    assert there.estimate == pytest.approx(-back.estimate, abs=1e-9)
    # Linear interpolation between the same resamples, seen from the other end.
    assert [there.low, there.high] == pytest.approx([-back.high, -back.low], abs=1e-9)


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"n_resamples": 0}, "n_resamples"),
        ({"level": 1.0}, "level"),
        ({"level": 0.0}, "level"),
        ({"level": 95.0}, "level"),
        ({"seed": -1}, "seed"),
    ],
)
def test_an_impossible_option_is_refused(
    bootstrap: Callable[..., Interval], options: dict[str, float], parameter: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"`{parameter}`"):
        bootstrap(torch.arange(5.0), **options)


# Input


@pytest.mark.parametrize("statistic", STATISTICS_OF_TWO)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_values_that_are_not_finite_are_refused(statistic: Callable, value: float, side: int) -> None:
    sides = [torch.arange(4.0), torch.arange(4.0)]
    sides[side][2] = value
    with pytest.raises(InvalidArgumentError, match=r"must be finite.*at index 2.*1 of 4"):
        statistic(*sides)


def test_a_nan_in_a_mean_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="`values` must be finite"):
        bootstrap_mean(torch.tensor([1.0, torch.nan]))


@pytest.mark.parametrize("statistic", STATISTICS_OF_TWO)
@pytest.mark.parametrize("side", [0, 1])
def test_too_few_values_are_refused(statistic: Callable, side: int) -> None:
    too_few = 0 if statistic is auroc else 1
    sides = [torch.arange(4.0), torch.arange(4.0)]
    sides[side] = sides[side][:too_few]
    with pytest.raises(InvalidArgumentError, match="with at least"):
        # Unwrapped: the shape checks that pytest adds would refuse pairs of different length first.
        inspect.unwrap(statistic)(*sides)


def test_the_interval_of_a_single_unit_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="`values` must be one-dimensional with at least 2"):
        bootstrap_mean(torch.ones(1))


@pytest.mark.parametrize("statistic", STATISTICS_OF_PAIRS)
def test_pairs_of_different_length_are_refused(statistic: Callable) -> None:
    # Unwrapped: users run without the shape checks that pytest adds.
    with pytest.raises(InvalidArgumentError, match="must have as many values"):
        inspect.unwrap(statistic)(torch.arange(4.0), torch.arange(3.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_is_accepted(dtype: torch.dtype) -> None:
    values = torch.arange(8.0, dtype=dtype, requires_grad=True)
    assert bootstrap_mean(values).estimate == 3.5
    assert pearson_r(values, -values) == pytest.approx(-1.0)


def test_groups_are_resampled_whole_so_repeats_of_a_question_do_not_narrow_the_interval():
    torch.manual_seed(0)
    positive, negative = torch.randn(30) + 0.8, torch.randn(30)
    once = bootstrap_auroc_by_group(positive, negative, range(30), range(30))
    tenfold = bootstrap_auroc_by_group(
        positive.repeat(10), negative.repeat(10), [*range(30)] * 10, [*range(30)] * 10, seed=0
    )
    assert tenfold.estimate == pytest.approx(once.estimate)
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))
    alone = bootstrap_auroc(positive.repeat(10), negative.repeat(10))
    assert alone.high - alone.low < 0.5 * (tenfold.high - tenfold.low)


def test_a_resample_without_positives_is_left_out():
    interval = bootstrap_auroc_by_group(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), [*"aa"], [*"bb"])
    # Two groups that hold a class each say next to nothing, but what they say is defined.
    assert 0 < interval.low < 0.1
    assert interval.high == 1.0


@pytest.mark.parametrize(("labels", "name"), [("a", "positive_groups"), ("aa", "groups")])
def test_group_labels_that_do_not_fit_are_refused(labels, name):
    with pytest.raises(InvalidArgumentError, match=name):
        bootstrap_auroc_by_group(torch.arange(2.0), torch.arange(2.0), [*labels], [*"aa"])


def test_a_correlation_of_large_values_far_from_zero_keeps_its_digits():
    torch.manual_seed(0)
    x, noise = torch.randn(40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    near, far = bootstrap_pearson_r(x, x + noise), bootstrap_pearson_r(x + 1e6, x + noise - 1e6)
    assert (far.estimate, far.low, far.high) == pytest.approx((near.estimate, near.low, near.high), abs=1e-6)
