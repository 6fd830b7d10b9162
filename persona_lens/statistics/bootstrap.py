"""The bootstrap, in float64 on the CPU, and intervals of means from it.

A resample is kept as how often each unit was drawn, which turns every bootstrap into a weighted statistic of the
original values, with no resampled copy and no sort for each resample.

Intervals are not percentiles of the resamples, which are too narrow for ten or twenty units: the resamples say how far
a statistic spreads and to which side it leans, and Student's t how sure that is. How often the intervals hold the true
value is measured in ``docs/results/intervals.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.special import stdtrit
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.statistics.arrays import to_array, to_paired_arrays
from persona_lens.statistics.interval import Interval, check_level

# Resamples are drawn in blocks of about this many numbers, so that memory does not grow with the data (8 MB).
_BLOCK_SIZE = 2**20

# More take hours, and no digit that is shown changes after a few thousand.
_MOST_RESAMPLES = 1_000_000


@checked
def bootstrap_mean(
    values: Float[Tensor, " unit"], *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Average, with a bootstrap interval over units.

    The unit is what was drawn independently: average the rollouts of a question first, then pass one value a
    question. Values that are all the same give an interval without width: they say nothing of how they could vary. The
    interval knows no bounds, so that of scores from 0 to 100 can reach beyond them.

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
        :func:`t_interval_of_moments`.

    Example:
        >>> print(bootstrap_mean(torch.arange(100.0)))
        49.50 [43.78, 55.22]
    """
    a = to_array("values", values, 2)
    return t_interval(bootstrap(lambda counts: counts @ a / len(a), (len(a),), n_resamples, level, seed), len(a))


@checked
def bootstrap_paired_difference(
    a: Float[Tensor, " unit"], b: Float[Tensor, " unit"], *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Take the mean of ``a - b`` over units that both share, with a bootstrap interval.

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
    first, second = to_paired_arrays("a", a, "b", b)
    return bootstrap_mean(torch.from_numpy(first - second), n_resamples=n_resamples, level=level, seed=seed)


@dataclass(frozen=True, eq=False)
class Resampled:
    """A statistic of the data and of its resamples; from it each kind of statistic makes its interval.

    Args:
        estimate: The statistic of the data; NaN if it has none.
        values: The statistic of each resample that has it, ``"resample"``.
        level: Of the interval that is to be made.
    """

    estimate: float
    values: ndarray
    level: float

    @property
    def is_missing(self) -> bool:
        """Whether the data or every resample is without the statistic."""
        return math.isnan(self.estimate) or len(self.values) == 0


def bootstrap(
    statistic: Callable[..., ndarray],
    sizes: tuple[int, ...],
    n_resamples: int,
    level: float,
    seed: int,
    draw: Callable[[tuple[int, ...], int, np.random.Generator], Iterator[list[ndarray]]] | None = None,
) -> Resampled:
    """Resample each sample by itself; compute a statistic of the counts ``"resample unit"``.

    Resamples without the statistic, where it is NaN, are left out.
    """
    check_resampling(n_resamples, level, seed)
    estimate = float(statistic(*(np.ones((1, size)) for size in sizes))[0])
    drawn = (draw or draw_counts)(sizes, n_resamples, np.random.default_rng(seed))
    resampled = np.concatenate([statistic(*counts) for counts in drawn])
    return Resampled(estimate, resampled[~np.isnan(resampled)], level)


def t_interval(found: Resampled, n_units: int) -> Interval:
    """Make the interval of a mean, or of what is nearly one, from its resamples; missing where they are.

    Args:
        found: The mean of the data and of its resamples, with the level.
        n_units: Units that were resampled.

    Example:
        >>> values = np.array([0.0, 1.0, 2.0, 3.0])
        >>> print(t_interval(bootstrap(lambda counts: counts @ values / 4, (4,), 2000, 0.95, seed=0), 4))
        1.50 [-0.49, 3.52]
    """
    if found.is_missing:
        return Interval.missing(found.level)
    return t_interval_of_moments(found.estimate, *scale_moments(found.values, n_units), n_units - 1, found.level)


def scale_moments(resampled: ndarray, n_units: int) -> tuple[float, float]:
    """Return variance and third central moment of a statistic from its resamples.

    Both without the bootstrap's bias: n units spread around their own mean by (n - 1) / n of what they spread around
    the true one.
    """
    deviations = resampled - resampled.mean()
    if np.abs(deviations).max() <= 1e-12 * np.abs(resampled).max():  # nothing but rounding
        return 0.0, 0.0
    bias = n_units / (n_units - 1)
    return float(bias * (deviations**2).mean()), float(bias**1.5 * (deviations**3).mean())


def t_interval_of_moments(
    estimate: float, variance: float, third_moment: float, df: float | int, level: float
) -> Interval:
    r"""Make Student's t interval of a mean whose values may be skewed.

    Student's ``T`` of skewed values is skewed the other way. Hall's cubic takes most of that out; with ``k``, the
    skewness of the mean,

    .. math:: g(T) = T + \frac{k T^2}{3} + \frac{k^2 T^3}{27} + \frac{k}{6}

    is nearly a ``t``, and its inverse carries the quantiles of ``t`` back. It is increasing, so the ends keep their
    order.

    Args:
        estimate: The mean.
        variance: Of the mean, not of the values; without any the interval has no width.
        third_moment: Of the mean, around its expectation.
        df: Degrees of freedom of the variance.
        level: Confidence level, in (0, 1).

    Reference:
        Hall, On the Removal of Skewness by Transformation (Journal of the Royal Statistical Society B 54, 1992).

    Example:
        >>> print(t_interval_of_moments(10.0, 4.0, 0.0, 9, 0.95), t_interval_of_moments(10.0, 4.0, 3.0, 9, 0.95))
        10.00 [5.48, 14.52] 10.00 [6.45, 17.93]
    """
    if variance <= 0:
        return Interval(estimate, estimate, estimate, level)
    spread, cube = math.sqrt(variance), variance**1.5
    skewness = third_moment / cube if cube > 0 else 0.0  # of a variance so small that its powers vanish
    quantile = student_quantile(level, df)
    low, high = (estimate - spread * _undo_skewness(end, skewness) for end in (quantile, -quantile))
    return Interval(estimate, low, high, level)


def _undo_skewness(transformed: float, skewness: float) -> float:
    """Invert Hall's cubic."""
    if abs(skewness) < 1e-6:
        return transformed
    return 3 / skewness * (math.cbrt(1 + skewness * (transformed - skewness / 6)) - 1)


def student_quantile(level: float, df: float | int) -> float:
    """Return how many standard errors a two-sided interval of Student's t reaches to each side."""
    return float(stdtrit(df, (1 + level) / 2))


def draw_counts(sizes: tuple[int, ...], n_resamples: int, rng: np.random.Generator) -> Iterator[list[ndarray]]:
    """Draw units one by one, and count how often each is in each resample, a block of resamples at a time."""
    for n_rows in _list_blocks(sizes, n_resamples):
        counts = []
        for size in sizes:
            # Each row counts into its own stretch of one long histogram.
            drawn = rng.integers(size, size=(n_rows, size)) + size * np.arange(n_rows)[:, None]
            histogram = np.bincount(drawn.ravel(), minlength=n_rows * size)
            counts.append(histogram.reshape(n_rows, size).astype(np.float64))
        yield counts


def draw_multinomial(sizes: tuple[int, ...], n_resamples: int, rng: np.random.Generator) -> Iterator[list[ndarray]]:
    """Draw the counts themselves: the same distribution in other random numbers, and quicker for few units."""
    for n_rows in _list_blocks(sizes, n_resamples):
        yield [rng.multinomial(size, np.full(size, 1 / size), size=n_rows).astype(np.float64) for size in sizes]


def _list_blocks(sizes: tuple[int, ...], n_resamples: int) -> Iterator[int]:
    block = max(1, _BLOCK_SIZE // sum(sizes))
    for start in range(0, n_resamples, block):
        yield min(block, n_resamples - start)


def check_resampling(n_resamples: int, level: float, seed: int) -> None:
    """Refuse what no bootstrap can be drawn with."""
    if not 1 <= n_resamples <= _MOST_RESAMPLES:
        raise InvalidArgumentError.of("n_resamples", f"be in [1, {_MOST_RESAMPLES:,}]", n_resamples)
    if seed < 0:
        raise InvalidArgumentError.of("seed", "be at least 0", seed)
    check_level(level)
