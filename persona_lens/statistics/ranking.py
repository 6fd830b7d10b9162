"""What a score finds where it ranks: the share of positives at the top, and how two scores compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.statistics.arrays import to_array, to_paired_arrays
from persona_lens.statistics.bootstrap import Resampled, bootstrap, scale_moments, student_quantile
from persona_lens.statistics.interval import Interval
from persona_lens.statistics.separation import number_groups, score_interval, weighted_auroc


@checked
def bootstrap_precision_by_group(
    positive: Float[Tensor, " n_pos"],
    negative: Float[Tensor, " n_neg"],
    positive_groups: Sequence[Hashable],
    negative_groups: Sequence[Hashable],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Measure the precision at k, k being the number of positives, with a bootstrap over groups of scores.

    Of as many scores as there are positives, the highest ones, the share that are positives: what one finds who looks
    at the top of the list. It equals the recall there. Chance is the share of positives among all. Ties count as if
    drawn in random order, to first order: the mean of the best and the worst order.

    Args:
        positive: Scores of the positive class.
        negative: Scores of the negative class.
        positive_groups: Label of each positive's group, such as its question.
        negative_groups: Label of each negative's group; the same label is the same group.
        n_resamples: Bootstrap resamples; one without positives is left out.
        level: Confidence level, in (0, 1).
        seed: Of the resampling.

    Returns:
        The precision and its interval, in [0, 1].

    Raises:
        InvalidArgumentError: Labels that do not fit the scores, fewer than two groups, a score that is not finite, or
            an option out of range.

    Reference:
        :func:`share_interval`.

    Example:
        >>> import torch
        >>> scores, groups = torch.arange(20.0), range(20)
        >>> print(bootstrap_precision_by_group(scores + 4, scores, groups, groups))
        0.60 [0.37, 0.79]
        >>> print(bootstrap_precision_by_group(scores + 20, scores, groups, groups))
        1.00 [0.82, 1.00]
    """
    a, b = to_array("positive", positive, 2), to_array("negative", negative, 2)
    at_a, at_b, n_groups = number_groups((positive_groups, len(a)), (negative_groups, len(b)))
    groups, scores = np.concatenate([at_a, at_b]), np.concatenate([a, b])
    is_positive = np.arange(len(scores)) < len(a)
    best, worst = (np.lexsort((side, -scores)) for side in (~is_positive, is_positive))

    def find_precision(counts: ndarray) -> ndarray:
        """Weigh each score as its group; NaN for a resample without positives."""
        weights = counts[:, groups]
        k = weights[:, is_positive].sum(axis=1, keepdims=True)
        found = np.zeros(len(counts))
        for order in (best, worst):
            ordered = weights[:, order]
            before = ordered.cumsum(axis=1) - ordered
            taken = np.clip(k - before, 0, ordered)
            found += (taken * is_positive[order]).sum(axis=1) / 2
        precision: ndarray = np.where(k[:, 0] > 0, found / np.maximum(k[:, 0], 1), np.nan)
        return precision

    found = bootstrap(find_precision, (n_groups,), n_resamples, level, seed)
    return share_interval(found, len(a), min(len(set(at_a)), len(set(at_b))))


@checked
def bootstrap_auroc_difference_by_group(
    positive: Float[Tensor, " n_pos"],
    negative: Float[Tensor, " n_neg"],
    other_positive: Float[Tensor, " n_pos"],
    other_negative: Float[Tensor, " n_neg"],
    positive_groups: Sequence[Hashable],
    negative_groups: Sequence[Hashable],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Measure how much better one score separates two classes than another of the same units, over groups of them.

    Args:
        positive: Scores of the positive class.
        negative: Scores of the negative class.
        other_positive: The other score of the same positives, in the same order.
        other_negative: The other score of the same negatives.
        positive_groups: Label of each positive's group, such as its question.
        negative_groups: Label of each negative's group; the same label is the same group.
        n_resamples: Bootstrap resamples; one without positives or without negatives is left out.
        level: Confidence level, in (0, 1).
        seed: Of the resampling.

    Returns:
        The first one's AUROC less the other's, with its interval. Degrees of freedom are those of the class that
        stands in fewer groups.

    Raises:
        InvalidArgumentError: Labels that do not fit the scores, fewer than two groups, a score that is not finite, or
            an option out of range; or scores of another number.

    Reference:
        :func:`difference_of_intervals`.

    Example:
        >>> import torch
        >>> scores, groups = torch.arange(20.0), [*range(10)] * 2
        >>> print(bootstrap_auroc_difference_by_group(scores + 20, scores, scores, scores, groups, groups).estimate)
        0.5
    """
    a, c = to_paired_arrays("positive", positive, "other_positive", other_positive)
    b, d = to_paired_arrays("negative", negative, "other_negative", other_negative)
    at_a, at_b, n_groups = number_groups((positive_groups, len(a)), (negative_groups, len(b)))
    groups = len(set(at_a)), len(set(at_b))

    def resample(separate: Callable[[ndarray, ndarray], ndarray]) -> Resampled:
        # One seed: both scores are resampled alike.
        return bootstrap(lambda n: separate(n[:, at_a], n[:, at_b]), (n_groups,), n_resamples, level, seed)

    found = [resample(weighted_auroc(*sides)) for sides in ((a, b), (c, d))]
    one, other = (
        score_interval(each, (len(a), len(b)), groups, n_units=min(groups), df=min(groups) - 1) for each in found
    )
    return difference_of_intervals(one, other, found[0].values, found[1].values)


def difference_of_intervals(one: Interval, other: Interval, values: ndarray, other_values: ndarray) -> Interval:
    """Make the interval of a difference from that of each of two estimates and from how they go together.

    As far from the difference as both intervals' ends allow, less what resamples share. It has a width where one of
    the estimates lies at its bound and no resample moves it.

    Args:
        one: The first.
        other: The second; taken off.
        values: The first of each resample.
        other_values: The second of the same resamples.

    Reference:
        Zou and Donner, Construction of Confidence Intervals about Effect Measures (Statistics in Medicine 27, 2008).

    Example:
        >>> import numpy as np
        >>> one, other = Interval(1.0, 0.8, 1.0), Interval(0.7, 0.5, 0.9)
        >>> print(difference_of_intervals(one, other, np.ones(3), np.array([0.6, 0.7, 0.8])))
        0.30 [0.02, 0.50]
    """
    if one.is_missing or other.is_missing:
        return Interval.missing(one.level)
    varies = min(np.ptp(values), np.ptp(other_values)) > 0
    shared = float(np.corrcoef(values, other_values)[0, 1]) if varies else 0.0

    def reach(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 + second**2 - 2 * shared * first * second))

    estimate = one.estimate - other.estimate
    low = estimate - reach(one.estimate - one.low, other.high - other.estimate)
    high = estimate + reach(one.high - one.estimate, other.estimate - other.low)
    return Interval(estimate, low, high, one.level)


def share_interval(found: Resampled, n_scores: int, n_groups: int) -> Interval:
    """Make Wilson's interval of a share from its resamples; it has a width where all or none are.

    As :func:`persona_lens.statistics.separation.score_interval`: the variance of one score a group, times how much more
    or less the resamples vary than that, with one unit more that speaks for the formula.

    Args:
        found: The share and its resamples.
        n_scores: Of how many scores it is a share.
        n_groups: Groups that they stand in.

    Returns:
        The interval, in [0, 1]; missing where the share is.

    Example:
        >>> print(share_interval(Resampled(1.0, np.ones(5), 0.95), 20, 20))
        1.00 [0.82, 1.00]
    """
    if found.is_missing or n_groups < 2:
        return Interval.missing(found.level)
    share, widening = found.estimate, 1.0
    if 0 < share < 1:
        by_group = share * (1 - share) / n_groups
        observed = max(scale_moments(found.values, n_groups)[0], share * (1 - share) / n_scores)
        widening = (n_groups * observed / by_group + 1) / (n_groups + 1)
    squared = student_quantile(found.level, n_groups - 1) ** 2 * widening / n_groups
    centre = (share + squared / 2) / (1 + squared)
    reach = math.sqrt(squared * (share * (1 - share) + squared / 4)) / (1 + squared)
    return Interval(share, max(0.0, centre - reach), min(1.0, centre + reach), found.level)
