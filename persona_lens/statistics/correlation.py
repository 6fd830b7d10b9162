"""Pearson's and Spearman's correlation."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.statistics.arrays import to_grouped_arrays, to_paired_arrays
from persona_lens.statistics.bootstrap import (
    Resampled,
    bootstrap,
    scale_moments,
    student_quantile,
    t_interval_of_moments,
)
from persona_lens.statistics.interval import Interval


@checked
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
        >>> import torch
        >>> round(pearson_r(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])), 6)
        0.5
    """
    a, b = to_paired_arrays("x", x, "y", y)
    for name, values in (("x", a), ("y", b)):
        if np.ptp(values) == 0:
            hint = "The correlation with a constant is undefined."
            raise InvalidArgumentError.of(name, "vary", values.tolist(), hint)
    return float(weighted_pearson_r(standardize(a), standardize(b), np.ones((1, len(a))))[0])


@checked
def bootstrap_pearson_r(
    x: Float[Tensor, " n"], y: Float[Tensor, " n"], *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return Pearson's r with a bootstrap interval over the pairs.

    A resample in which one side is constant has no correlation and is left out. Pairs that lie on a line give an
    interval without width: they say nothing of how they could leave it.

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
        Persona Vectors (arXiv 2507.21509), section 4.2; :func:`fisher_interval`.

    Example:
        >>> import torch
        >>> x = torch.arange(10.0)
        >>> print(bootstrap_pearson_r(x, x + 5 * torch.sin(x)))
        0.68 [-0.09, 0.94]
    """
    a, b = to_paired_arrays("x", x, "y", y)
    if len(a) < 3:
        raise InvalidArgumentError.of("x", "have at least 3 values", len(a))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Interval.missing(level)
    a, b = standardize(a), standardize(b)
    found = bootstrap(lambda counts: weighted_pearson_r(a, b, counts), (len(a),), n_resamples, level, seed)
    if found.is_missing:
        rule = "leave a resample in which both sides vary"
        raise InvalidArgumentError.of("n_resamples", rule, n_resamples, "Draw more.")
    return fisher_interval(found, len(a))


@checked
def bootstrap_pearson_r_by_group(
    x: Float[Tensor, " n"],
    y: Float[Tensor, " n"],
    groups: Sequence[Hashable],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return Pearson's r of pairs that were not drawn independently, with a bootstrap interval over groups of them.

    Args:
        x: E.g. the fine-tuning shift, one a model.
        y: E.g. the trait score of the same models.
        groups: Label of each pair's group, such as the dataset that its model was trained on; at least three.
        n_resamples: Resamples of the groups; one in which a side is constant is left out.
        level: Of the interval.
        seed: Of the resampling.

    Returns:
        The correlation; NaN throughout where one side is constant.

    Raises:
        InvalidArgumentError: A value is not finite, the lengths differ, or there are fewer than three groups.

    Reference:
        :func:`fisher_interval`.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0)
        >>> print(bootstrap_pearson_r_by_group(x, x + 3 * torch.sin(x), [*range(6)] * 2))
        0.81 [0.31, 0.96]
    """
    (a, b), at, n_groups = _standardize_grouped({"x": x, "y": y}, groups)
    if not (np.any(a) and np.any(b)):
        return Interval.missing(level)
    found = bootstrap(lambda counts: weighted_pearson_r(a, b, counts[:, at]), (n_groups,), n_resamples, level, seed)
    return fisher_interval(found, n_groups)


@checked
def bootstrap_pearson_difference_by_group(
    x: Float[Tensor, " n"],
    other: Float[Tensor, " n"],
    y: Float[Tensor, " n"],
    groups: Sequence[Hashable],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return by how much ``x`` correlates more with ``y`` than ``other`` does, with a bootstrap interval over groups.

    Both correlations are taken of the same resamples, as they rest on the same pairs.

    Args:
        x: E.g. the shift along a trait's own vector, one a model.
        other: E.g. the shift along another trait's.
        y: E.g. the trait score of the same models.
        groups: Label of each model's group; at least three.
        n_resamples: Resamples of the groups; one in which a side is constant is left out.
        level: Of the interval.
        seed: Of the resampling.

    Returns:
        Pearson's r of ``x`` less that of ``other``; NaN throughout where a side is constant.

    Raises:
        InvalidArgumentError: A value is not finite, the lengths differ, or there are fewer than three groups.

    Reference:
        :func:`persona_lens.statistics.bootstrap.t_interval_of_moments`.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0)
        >>> print(bootstrap_pearson_difference_by_group(x, torch.cos(x), x + torch.sin(x), [*range(6)] * 2))
        1.28 [0.83, 1.74]
    """
    (a, b, c), at, n_groups = _standardize_grouped({"x": x, "other": other, "y": y}, groups)
    if not (np.any(a) and np.any(b) and np.any(c)):
        return Interval.missing(level)

    def differ(counts: ndarray) -> ndarray:
        weights = counts[:, at]
        difference: ndarray = weighted_pearson_r(a, c, weights) - weighted_pearson_r(b, c, weights)
        return difference

    found = bootstrap(differ, (n_groups,), n_resamples, level, seed)
    if found.is_missing:
        return Interval.missing(level)
    variance, _ = scale_moments(found.values, n_groups)
    # Without the skewness that a t_interval undoes: of resamples of few groups it is mostly the ends at ±1.
    return t_interval_of_moments(found.estimate, variance, 0.0, n_groups - 1, level)


def _standardize_grouped(
    values: Mapping[str, Tensor], groups: Sequence[Hashable]
) -> tuple[list[ndarray], ndarray, int]:
    """Do as to_grouped_arrays, with the values standardised."""
    arrays, numbers, n_groups = to_grouped_arrays(values, groups)
    return [standardize(array) for array in arrays], numbers, n_groups


@checked
def bootstrap_spearman_r(
    x: Float[Tensor, " n"], y: Float[Tensor, " n"], *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return Spearman's rank correlation with a bootstrap interval over the pairs.

    Ties share their mean rank. A resample in which one side is constant has no correlation and is left out. Ranks that
    agree throughout give an interval without width.

    Args:
        x: E.g. one judge's scores.
        y: E.g. another's of the same responses.
        n_resamples: Resamples.
        level: Of the interval.
        seed: Of the resampling.

    Returns:
        The correlation; NaN throughout where one side is constant.

    Raises:
        InvalidArgumentError: A value is not finite, the lengths differ, or there are fewer than two pairs.

    Reference:
        :func:`fisher_interval`.

    Example:
        >>> import torch
        >>> x = torch.arange(10.0)
        >>> print(bootstrap_spearman_r(x, x + 5 * torch.sin(x)))
        0.65 [-0.50, 0.97]
    """
    rank_a, rank_b = (make_ranker(values) for values in to_paired_arrays("x", x, "y", y))

    def correlate(counts: ndarray) -> ndarray:
        """Rank each resample by itself."""
        return weighted_pearson_r(rank_a(counts), rank_b(counts), counts)

    return fisher_interval(bootstrap(correlate, (len(x),), n_resamples, level, seed), len(x))


def fisher_interval(found: Resampled, n_units: int) -> Interval:
    r"""Make the interval of a correlation, or of a mean of some, from its resamples.

    On Fisher's scale, ``z = artanh r``, where a correlation spreads about as much wherever it lies: the resamples'
    standard deviation to each side, times Student's t with two units fewer, for the line that a correlation fits. So
    the interval stays within [-1, 1].

    Args:
        found: The correlation of the data and of its resamples, with the level.
        n_units: Units that were resampled: pairs, or groups of them.

    Reference:
        Fisher, On the "Probable Error" of a Coefficient of Correlation Deduced from a Small Sample (Metron 1, 1921).
        Efron, Nonparametric Standard Errors and Confidence Intervals (Canadian Journal of Statistics 9, 1981), for the
        bootstrap's standard error in place of ``1 / sqrt(n - 3)``, which holds for normal values only.

    Example:
        >>> print(fisher_interval(Resampled(0.5, np.array([0.4, 0.45, 0.55, 0.6]), 0.95), 12))
        0.50 [0.29, 0.66]
    """
    if found.is_missing:
        return Interval.missing(found.level)
    (center,) = _to_fisher(np.array([found.estimate]))
    # A resample of few distinct pairs lies on a line, at infinity: three are further than others are from the estimate.
    reach = abs(center) + 3
    variance, _ = scale_moments(np.clip(_to_fisher(found.values), -reach, reach), n_units)
    if variance == 0:
        return Interval(found.estimate, found.estimate, found.estimate, found.level)
    half_width = student_quantile(found.level, max(n_units - 2, 1)) * math.sqrt(variance)
    return Interval(found.estimate, math.tanh(center - half_width), math.tanh(center + half_width), found.level)


def _to_fisher(r: ndarray) -> ndarray:
    """Take Fisher's z, finite on a line too."""
    z: ndarray = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    return z


def standardize(values: ndarray) -> ndarray:
    """Shift and scale to mean 0 and standard deviation 1; a constant becomes 0."""
    deviations: ndarray = values - values.mean()
    # Scaled first: squares of very small or large deviations would underflow or overflow.
    deviations = deviations / (np.abs(deviations).max() or 1.0)
    deviations /= deviations.std() or 1.0
    return deviations


def weighted_pearson_r(x: ndarray, y: ndarray, weights: ndarray) -> ndarray:
    """Return Pearson's r for each row of weights ``"resample n"``; NaN where a side is constant or has no weight.

    The values are ``"n"``, standardised so that one number tells a constant resample from rounding, or of each
    resample its own, ``"resample n"``.
    """
    share = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)
    x, y = (values - (share * values).sum(axis=1, keepdims=True) for values in (x, y))
    variance_x, variance_y = (share * x**2).sum(axis=1), (share * y**2).sum(axis=1)
    varies = np.minimum(variance_x, variance_y) > 1e-12
    scale = np.sqrt(np.where(varies, variance_x * variance_y, 1.0))
    return np.where(varies, np.clip((share * x * y).sum(axis=1) / scale, -1.0, 1.0), np.nan)


def make_ranker(values: ndarray) -> Callable[[ndarray], ndarray]:
    """Make the function that maps counts ``"resample n"`` to each value's mean rank in the resample."""
    order = np.argsort(values)
    first = np.searchsorted(values[order], values, side="left")
    last = np.searchsorted(values[order], values, side="right")

    def rank(counts: ndarray) -> ndarray:
        """Of the drawn values, those below count 1 and those that tie 1/2."""
        n_up_to = np.zeros((len(counts), len(values) + 1))
        np.cumsum(counts[:, order], axis=1, out=n_up_to[:, 1:])
        return (n_up_to[:, first] + n_up_to[:, last] + 1) / 2

    return rank
