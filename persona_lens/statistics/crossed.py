"""Means over two kinds of units at once: every direction answers every question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.statistics.bootstrap import Resampled, bootstrap, scale_moments, t_interval_of_moments
from persona_lens.statistics.interval import Interval


@checked
def mean_over_directions_interval(
    values: Float[Tensor, "direction question"], *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Average over random directions and questions, with a bootstrap interval for other directions *and* questions.

    An interval over questions alone holds for the directions that were drawn; this one holds for the population of
    directions too. Directions and questions are resampled in turn, variances and third moments add up, and Student's t
    has Satterthwaite's degrees of freedom between them. What neither direction nor question explains counts twice, so
    where it is all there is, the interval is too wide.

    Args:
        values: E.g. scores under each random direction, or how far the vector lies above each; NaN where there is none.
        n_resamples: Bootstrap resamples of each.
        level: Confidence level, in (0, 1).
        seed: Of the resampling.

    Returns:
        The mean over questions of the mean over the directions that are there, as averaging ``values.nanmean(dim=0)``
        gives, and its interval; missing where fewer than two directions or two questions have a value.

    Raises:
        InvalidArgumentError: An infinite value, or an option out of range.

    Reference:
        Owen, The Pigeonhole Bootstrap (Annals of Applied Statistics 1, 2007), for the variance of a mean over crossed
        units and why no single resampling reproduces it. Satterthwaite, Biometrics Bulletin 2 (1946).

    Example:
        >>> direction, question = torch.arange(4.0), torch.arange(10.0)
        >>> print(mean_over_directions_interval(3 * direction[:, None] + question))
        9.00 [3.41, 14.56]
    """
    array = values.detach().to("cpu", torch.float64).numpy()
    if np.isinf(array).any():
        raise InvalidArgumentError.of("values", "be finite, or NaN where there is none", values.tolist())
    present = ~np.isnan(array)
    directions, questions = present.any(axis=1), present.any(axis=0)
    present, array = present[np.ix_(directions, questions)], np.nan_to_num(array[np.ix_(directions, questions)])
    n_directions, n_questions = array.shape
    if min(array.shape) < 2:
        return Interval.missing(level)

    def over_directions(counts: ndarray) -> ndarray:
        """Average each question over the drawn directions, then the questions that any of them answered."""
        n_answers = counts @ present
        by_question = counts @ array / np.maximum(n_answers, 1)
        means: ndarray = by_question.sum(axis=1) / (n_answers > 0).sum(axis=1)
        return means

    whole = array.sum(axis=0) / present.sum(axis=0)
    by_direction = bootstrap(over_directions, (n_directions,), n_resamples, level, seed)
    by_question = bootstrap(lambda counts: counts @ whole / n_questions, (n_questions,), n_resamples, level, seed)
    return t_interval_of_units([by_direction, by_question], array.shape)


def t_interval_of_units(found: Sequence[Resampled], n_units: Sequence[int]) -> Interval:
    """Make the interval of a statistic of crossed units, from its resamples over each kind by itself.

    Variances and third moments add up; Student's t has Satterthwaite's degrees of freedom.

    Args:
        found: The statistic and its resamples, one a kind of unit; the estimate is the same in all.
        n_units: Units of each kind.

    Reference:
        As :func:`mean_over_directions_interval`.
    """
    first = found[0]
    if any(one.is_missing for one in found):
        return Interval.missing(first.level)
    moments = [scale_moments(one.values, n) for one, n in zip(found, n_units, strict=True)]
    variance, third_moment = (sum(column) for column in zip(*moments, strict=True))
    # One kind fixes the degrees of freedom where the others do not vary.
    spent = sum(own**2 / (n - 1) for (own, _), n in zip(moments, n_units, strict=True))
    df = variance**2 / spent if spent > 0 else 1.0
    return t_interval_of_moments(first.estimate, variance, third_moment, df, first.level)
