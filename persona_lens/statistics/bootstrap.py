"""Bootstrap intervals, in float64 on the CPU.

NumPy alone does it: a resample is kept as how often each unit was drawn, which turns every bootstrap into a
weighted statistic of the original values, with no resampled copy and no sort for each resample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.errors import InvalidArgumentError
from persona_lens.statistics.arrays import to_array, to_paired_arrays
from persona_lens.statistics.interval import Interval, check_level

# Resamples are drawn in blocks of about this many numbers, so that memory does not grow with the data (8 MB).
_BLOCK_SIZE = 2**20


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
    a = to_array("values", values, 2)
    return bootstrap(lambda counts: counts @ a / len(a), (len(a),), n_resamples, level, seed)


def bootstrap_paired_difference(
    a: Float[Tensor, " unit"], b: Float[Tensor, " unit"], *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
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
    first, second = to_paired_arrays("a", a, "b", b)
    return bootstrap_mean(torch.from_numpy(first - second), n_resamples=n_resamples, level=level, seed=seed)


def bootstrap(
    statistic: Callable[..., ndarray],
    sizes: tuple[int, ...],
    n_resamples: int,
    level: float,
    seed: int,
    draw: Callable[[tuple[int, ...], int, np.random.Generator], Iterator[list[ndarray]]] | None = None,
) -> Interval:
    """Resample each sample by itself; take percentiles of a statistic of the counts ``"resample unit"``.

    Resamples without the statistic, where it is NaN, are left out. The interval is missing where the data or every
    resample is without it.
    """
    check_resampling(n_resamples, level, seed)
    estimate = float(statistic(*(np.ones((1, size)) for size in sizes))[0])
    drawn = (draw or draw_counts)(sizes, n_resamples, np.random.default_rng(seed))
    resampled = np.concatenate([statistic(*counts) for counts in drawn])
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(estimate) or len(resampled) == 0:
        return Interval.missing(level)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level)


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
    if n_resamples < 1:
        raise InvalidArgumentError.of("n_resamples", "be at least 1", n_resamples)
    if seed < 0:
        raise InvalidArgumentError.of("seed", "be at least 0", seed)
    check_level(level)
