"""Correlations, AUROC and bootstrap intervals, in float64 on the CPU.

NumPy alone does it: a resample is kept as how often each unit was drawn, which turns every bootstrap into a
weighted statistic of the original values, with no resampled copy and no sort for each resample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.errors import InvalidArgumentError, describe_violation

# Resamples are drawn in blocks of about this many numbers, so that memory does not grow with the data (8 MB).
_BLOCK_SIZE = 2**20


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval. NaN throughout says that there was nothing to estimate from.

    Attributes:
        estimate: The statistic of the whole data; of a skewed one it can lie outside the interval.
        low: Lower end.
        high: Upper end.
        level: Share of repetitions in which such an interval would hold the true value.

    Raises:
        InvalidArgumentError: ``low`` is above ``high``, some but not all are NaN, or ``level`` is not in (0, 1).

    Example:
        >>> print(Interval(0.42, 0.31, 0.55))
        0.42 [0.31, 0.55]
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the fields."""
        is_missing = all(math.isnan(value) for value in (self.estimate, self.low, self.high))
        if not is_missing and not self.low <= self.high:
            rule = f"be at most `high`, here {self.high}"
            raise InvalidArgumentError(describe_violation("low", rule, self.low))
        _check_level(self.level)

    def __str__(self) -> str:
        """Show the estimate and both ends with two decimals."""
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def pearson_r(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Correlate two quantities linearly.

    ``r = cov(x, y) / (std(x) std(y))``, in [-1, 1].

    Args:
        x: E.g. projections, one a prompt.
        y: E.g. trait scores of the same prompts.

    Returns:
        Pearson's correlation coefficient.

    Raises:
        InvalidArgumentError: A value is not finite, the lengths differ, there are fewer than two pairs, or
            one side is constant.

    Reference:
        Persona Vectors (arXiv 2507.21509), sections 3.3 and 4.2.

    Example:
        >>> round(pearson_r(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])), 6)
        0.5
    """
    a, b = _to_paired_arrays("x", x, "y", y)
    units = []
    for name, values in (("x", a), ("y", b)):
        if np.ptp(values) == 0:
            hint = "The correlation with a constant is undefined."
            raise InvalidArgumentError(describe_violation(name, "vary", values.tolist(), hint))
        # Scaled first: squares of very small or large deviations would underflow or overflow.
        deviations = values - values.mean()
        deviations = deviations / np.abs(deviations).max()
        units.append(deviations / np.linalg.norm(deviations))
    return float(np.clip(units[0] @ units[1], -1.0, 1.0))


def pearson_r_within(
    x: Float[Tensor, " n"], y: Float[Tensor, " n"], condition: Sequence[Hashable], *, min_std: float = 1.0
) -> tuple[float, list[Hashable]]:
    """Correlate inside each condition and average.

    Differences between the conditions, e.g. between system prompts, then count for nothing.

    Args:
        x: E.g. projections, one a prompt.
        y: E.g. trait scores (0-100) of the same prompts.
        condition: Label of each prompt's condition.
        min_std: Conditions in which ``y`` has a lower standard deviation (population, in units of ``y``) are
            left out: there is nothing to predict in them.

    Returns:
        The mean of the conditions' r, and the labels of the conditions left out, in order of appearance.

    Raises:
        InvalidArgumentError: A value is not finite, the lengths differ, ``x`` is constant inside a condition
            that counts, or no condition is left.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
        >>> y = torch.tensor([10.0, 20.0, 80.0, 60.0, 0.0, 0.1])
        >>> pearson_r_within(x, y, ["mild", "mild", "strong", "strong", "none", "none"])
        (0.0, ['none'])
    """
    a, b = _to_paired_arrays("x", x, "y", y)
    if len(condition) != len(a):
        raise InvalidArgumentError(describe_violation("condition", f"have {len(a)} labels", len(condition)))
    rows_of: dict[Hashable, list[int]] = {}
    for row, label in enumerate(condition):
        rows_of.setdefault(label, []).append(row)
    correlations: list[float] = []
    left_out: list[Hashable] = []
    for label, rows in rows_of.items():
        # A single pair has no correlation, whatever `min_std` says.
        if len(rows) < 2 or b[rows].std() < min_std:
            left_out.append(label)
            continue
        if np.ptp(a[rows]) == 0:
            rule = f"vary in condition {label!r}, where `y` does"
            raise InvalidArgumentError(describe_violation("x", rule, a[rows].tolist()))
        correlations.append(pearson_r(torch.from_numpy(a[rows]), torch.from_numpy(b[rows])))
    if not correlations:
        rule = f"have a standard deviation of at least {min_std} in one condition or more"
        raise InvalidArgumentError(describe_violation("y", rule, f"left out {left_out}"))
    return float(np.mean(correlations)), left_out


def bootstrap_pearson_r(
    x: Float[Tensor, " n"], y: Float[Tensor, " n"], *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return Pearson's r with a percentile bootstrap interval over the pairs.

    A resample in which one side is constant has no correlation and is left out.

    Args:
        x: E.g. the fine-tuning shift, one a model.
        y: E.g. the trait score of the same models.
        n_resamples: Resamples.
        level: Of the interval.
        seed: Of the resampling.

    Returns:
        The correlation; NaN throughout where one side is constant.

    Raises:
        InvalidArgumentError: A value is not finite, the lengths differ, or there are fewer than three pairs.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 4.2.

    Example:
        >>> x = torch.arange(10.0)
        >>> print(bootstrap_pearson_r(x, 2 * x))
        1.00 [1.00, 1.00]
    """
    a, b = _to_paired_arrays("x", x, "y", y)
    if len(a) < 3:
        raise InvalidArgumentError(describe_violation("x", "have at least 3 values", len(a)))
    _check_resampling(n_resamples, level, seed)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), level)
    # Centred, or the moments of large values would cancel.
    a, b = a - a.mean(), b - b.mean()

    def correlate(weights: ndarray) -> ndarray:
        """Correlate under counts ``"resample n"``; NaN where a side is constant."""
        n = weights.sum(axis=1)
        mean_a, mean_b = weights @ a / n, weights @ b / n
        variance_a = np.maximum(weights @ a**2 / n - mean_a**2, 0.0)
        variance_b = np.maximum(weights @ b**2 / n - mean_b**2, 0.0)
        product = np.sqrt(variance_a * variance_b)
        is_varying = (_spread(weights, a) > 0) & (_spread(weights, b) > 0) & (product > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (weights @ (a * b) / n - mean_a * mean_b) / product
        return np.where(is_varying, r, np.nan)

    blocks = _draw_counts((len(a),), n_resamples, np.random.default_rng(seed))
    resampled = np.concatenate([correlate(*counts) for counts in blocks])
    resampled = resampled[~np.isnan(resampled)]
    if len(resampled) == 0:
        rule = "leave a resample in which both sides vary"
        raise InvalidArgumentError(describe_violation("n_resamples", rule, n_resamples, "Draw more."))
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(pearson_r(x, y), float(np.clip(low, -1, 1)), float(np.clip(high, -1, 1)), level)


def _spread(weights: ndarray, values: ndarray) -> ndarray:
    """Return the range of the values that have a weight, ``"resample"``."""
    highest = np.where(weights > 0, values, -np.inf).max(axis=1)
    return highest - np.where(weights > 0, values, np.inf).min(axis=1)


def auroc(positive: Float[Tensor, " n_pos"], negative: Float[Tensor, " n_neg"]) -> float:
    """Measure how well a score separates two classes.

    The probability that a random positive scores above a random negative, ties counting one half: 0.5 is
    chance, 1 is perfect.

    Args:
        positive: Scores of the positive class.
        negative: Scores of the negative class.

    Returns:
        Area under the receiver operating characteristic, in [0, 1].

    Raises:
        InvalidArgumentError: A class is empty, or a score is not finite.

    Example:
        >>> auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
        0.875
    """
    a, b = _to_array("positive", positive, 1), _to_array("negative", negative, 1)
    return float(_weighted_auroc(a, b)(np.ones((1, len(a))), np.ones((1, len(b))))[0])


def bootstrap_mean(
    values: Float[Tensor, " unit"], *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Average, with a percentile bootstrap interval over units.

    The unit is what was drawn independently: average the rollouts of a question first, then pass one value a
    question.

    Args:
        values: One value a unit.
        n_resamples: Bootstrap resamples.
        level: Confidence level, in (0, 1).
        seed: Of the resampling.

    Returns:
        The mean and its interval, in units of ``values``.

    Raises:
        InvalidArgumentError: Fewer than two units, a value that is not finite, or an option out of range.

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Example:
        >>> print(bootstrap_mean(torch.arange(100.0)))
        49.50 [43.91, 55.08]
    """
    a = _to_array("values", values, 2)
    return _bootstrap(lambda counts: counts @ a / len(a), (len(a),), n_resamples, level, seed)


def bootstrap_paired_difference(
    a: Float[Tensor, " unit"],
    b: Float[Tensor, " unit"],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Take the mean of ``a - b`` over units that both share, with a percentile bootstrap interval.

    Resamples units, e.g. questions answered with and without steering; what a unit adds to both sides
    cancels.

    Args:
        a: One value a unit.
        b: One value for each of the same units, in the same order.
        n_resamples: Bootstrap resamples.
        level: Confidence level, in (0, 1).
        seed: Of the resampling.

    Returns:
        The mean difference and its interval, in units of the values.

    Raises:
        InvalidArgumentError: The lengths differ, fewer than two units, a value that is not finite, or an
            option out of range.

    Example:
        >>> before = torch.tensor([10.0, 50.0, 90.0])
        >>> print(bootstrap_paired_difference(before + 5.0, before))
        5.00 [5.00, 5.00]
    """
    first, second = _to_paired_arrays("a", a, "b", b)
    return bootstrap_mean(torch.from_numpy(first - second), n_resamples=n_resamples, level=level, seed=seed)


def bootstrap_difference(
    a: Float[Tensor, " n_a"],
    b: Float[Tensor, " n_b"],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Take the mean of ``a`` less that of ``b``, two independent samples, with a bootstrap interval.

    Percentile bootstrap; resamples each side by itself. For two measurements of the same units use
    ``bootstrap_paired_difference``.

    Args:
        a: One value a unit of the first sample.
        b: One value a unit of the second.
        n_resamples: Bootstrap resamples.
        level: Confidence level, in (0, 1).
        seed: Of the resampling.

    Returns:
        The difference of the means and its interval, in units of the values.

    Raises:
        InvalidArgumentError: Fewer than two units on a side, a value that is not finite, or an option out of
            range.

    Example:
        >>> print(bootstrap_difference(torch.arange(100.0), torch.arange(50.0)))
        25.00 [18.13, 31.85]
    """
    first, second = _to_array("a", a, 2), _to_array("b", b, 2)

    def differences(counts_a: ndarray, counts_b: ndarray) -> ndarray:
        """Subtract the weighted means."""
        return counts_a @ first / len(first) - counts_b @ second / len(second)

    return _bootstrap(differences, (len(first), len(second)), n_resamples, level, seed)


def bootstrap_auroc(
    positive: Float[Tensor, " n_pos"],
    negative: Float[Tensor, " n_neg"],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Measure how well a score separates two classes, with a percentile bootstrap interval.

    Resamples both classes. Where they separate perfectly every resample does too, and the interval is [1, 1].

    Args:
        positive: Scores of the positive class, one a unit.
        negative: Scores of the negative class.
        n_resamples: Bootstrap resamples.
        level: Confidence level, in (0, 1).
        seed: Of the resampling.

    Returns:
        The AUROC and its interval.

    Raises:
        InvalidArgumentError: Fewer than two scores in a class, a score that is not finite, or an option out
            of range.

    Example:
        >>> print(bootstrap_auroc(torch.arange(20.0) + 8.0, torch.arange(20.0)))
        0.82 [0.69, 0.93]
    """
    a, b = _to_array("positive", positive, 2), _to_array("negative", negative, 2)
    return _bootstrap(_weighted_auroc(a, b), (len(a), len(b)), n_resamples, level, seed)


def bootstrap_auroc_by_group(
    positive: Float[Tensor, " n_pos"],
    negative: Float[Tensor, " n_neg"],
    positive_groups: Sequence[Hashable],
    negative_groups: Sequence[Hashable],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Measure how well a score separates two classes, with a percentile bootstrap over groups of scores.

    For scores that were not drawn independently, such as several responses to each question: groups are resampled,
    each with all its positives and negatives.

    Args:
        positive: Scores of the positive class.
        negative: Scores of the negative class.
        positive_groups: Label of each positive's group, such as its question.
        negative_groups: Label of each negative's group; the same label is the same group.
        n_resamples: Bootstrap resamples; one without positives or without negatives is left out.
        level: Confidence level, in (0, 1).
        seed: Of the resampling.

    Returns:
        The AUROC and its interval.

    Raises:
        InvalidArgumentError: Labels that do not fit the scores, fewer than two groups, a score that is not finite, or
            an option out of range.

    Example:
        >>> scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> print(bootstrap_auroc_by_group(scores + 4, scores, "aabb", "aabb"))
        1.00 [1.00, 1.00]
    """
    a, b = _to_array("positive", positive, 2), _to_array("negative", negative, 2)
    for name, labels, scores in (("positive", positive_groups, a), ("negative", negative_groups, b)):
        if len(labels) != len(scores):
            rule = f"label each of the {len(scores)} scores"
            raise InvalidArgumentError(describe_violation(f"{name}_groups", rule, len(labels)))
    numbers = {label: number for number, label in enumerate(dict.fromkeys([*positive_groups, *negative_groups]))}
    if len(numbers) < 2:
        raise InvalidArgumentError(describe_violation("positive_groups", "name at least 2 groups", list(numbers)))
    at_a = np.array([numbers[label] for label in positive_groups])
    at_b = np.array([numbers[label] for label in negative_groups])
    separate = _weighted_auroc(a, b)
    _check_resampling(n_resamples, level, seed)
    resampled = []
    for (counts,) in _draw_counts((len(numbers),), n_resamples, np.random.default_rng(seed)):
        counts_a, counts_b = counts[:, at_a], counts[:, at_b]
        there = (counts_a.sum(axis=1) > 0) & (counts_b.sum(axis=1) > 0)
        resampled.append(separate(counts_a[there], counts_b[there]))
    low, high = np.quantile(np.concatenate(resampled), [(1 - level) / 2, (1 + level) / 2])
    return Interval(auroc(positive, negative), float(low), float(high), level)


def _weighted_auroc(positive: ndarray, negative: ndarray) -> Callable[[ndarray, ndarray], ndarray]:
    """Make the function that maps weights ``"resample n_pos"``, ``"resample n_neg"`` to AUROCs."""
    order = np.argsort(negative)
    n_below = np.searchsorted(negative[order], positive, side="left")
    n_not_above = np.searchsorted(negative[order], positive, side="right")

    def compute(weights_pos: ndarray, weights_neg: ndarray) -> ndarray:
        """Count the pairs in the right order, each with the product of its weights."""
        weight_below = np.zeros((len(weights_neg), len(negative) + 1))
        np.cumsum(weights_neg[:, order], axis=1, out=weight_below[:, 1:])
        # Negatives below count 1 and ties 1/2: the mean of "below" and "not above".
        beaten = (weight_below[:, n_below] + weight_below[:, n_not_above]) / 2
        return (weights_pos * beaten).sum(axis=1) / (weights_pos.sum(axis=1) * weights_neg.sum(axis=1))

    return compute


def _bootstrap(
    statistic: Callable[..., ndarray], sizes: tuple[int, ...], n_resamples: int, level: float, seed: int
) -> Interval:
    """Resample each sample by itself; take percentiles of a statistic of the counts ``"resample unit"``."""
    _check_resampling(n_resamples, level, seed)
    estimate = statistic(*(np.ones((1, size)) for size in sizes))[0]
    blocks = _draw_counts(sizes, n_resamples, np.random.default_rng(seed))
    resampled = [statistic(*counts) for counts in blocks]
    low, high = np.quantile(np.concatenate(resampled), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high), level)


def _draw_counts(sizes: tuple[int, ...], n_resamples: int, rng: np.random.Generator) -> Iterator[list[ndarray]]:
    """Draw how often each unit is in each resample, a block of resamples at a time."""
    block = max(1, _BLOCK_SIZE // sum(sizes))
    for start in range(0, n_resamples, block):
        n_rows = min(block, n_resamples - start)
        counts = []
        for size in sizes:
            # Each row counts into its own stretch of one long histogram.
            drawn = rng.integers(size, size=(n_rows, size)) + size * np.arange(n_rows)[:, None]
            histogram = np.bincount(drawn.ravel(), minlength=n_rows * size)
            counts.append(histogram.reshape(n_rows, size).astype(np.float64))
        yield counts


def _to_array(name: str, values: Tensor, min_size: int) -> ndarray:
    """Convert to float64, refusing NaN, infinity and too few values."""
    if values.ndim != 1 or len(values) < min_size:
        rule = f"be one-dimensional with at least {min_size} value(s)"
        raise InvalidArgumentError(describe_violation(name, rule, tuple(values.shape)))
    array = values.detach().to("cpu", torch.float64).numpy()
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        hint = f"{len(bad)} of {len(array)} values are not; filter them and count what was dropped."
        got = f"{array[bad[0]]} at index {bad[0]}"
        raise InvalidArgumentError(describe_violation(name, "be finite", got, hint))
    return array


def _to_paired_arrays(name_a: str, a: Tensor, name_b: str, b: Tensor) -> tuple[ndarray, ndarray]:
    """Convert two measurements of the same units."""
    first, second = _to_array(name_a, a, 2), _to_array(name_b, b, 2)
    if len(first) != len(second):
        rule = f"have as many values as `{name_a}`, here {len(first)}"
        raise InvalidArgumentError(describe_violation(name_b, rule, len(second)))
    return first, second


def _check_resampling(n_resamples: int, level: float, seed: int) -> None:
    if n_resamples < 1:
        raise InvalidArgumentError(describe_violation("n_resamples", "be at least 1", n_resamples))
    if seed < 0:
        raise InvalidArgumentError(describe_violation("seed", "be at least 0", seed))
    _check_level(level)


def _check_level(level: float) -> None:
    """Refuse a level that is no share."""
    if not 0 < level < 1:
        raise InvalidArgumentError(describe_violation("level", "be in (0, 1)", level))
