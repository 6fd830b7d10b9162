"""Pearson's correlation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.errors import InvalidArgumentError, describe_violation
from persona_lens.statistics.arrays import to_paired_arrays
from persona_lens.statistics.bootstrap import check_resampling, draw_counts
from persona_lens.statistics.interval import Interval


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
    a, b = to_paired_arrays("x", x, "y", y)
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
    a, b = to_paired_arrays("x", x, "y", y)
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
    a, b = to_paired_arrays("x", x, "y", y)
    if len(a) < 3:
        raise InvalidArgumentError(describe_violation("x", "have at least 3 values", len(a)))
    check_resampling(n_resamples, level, seed)
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

    blocks = draw_counts((len(a),), n_resamples, np.random.default_rng(seed))
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
