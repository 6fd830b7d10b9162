"""How well a score separates two classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import brentq
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.statistics.arrays import to_array
from persona_lens.statistics.bootstrap import Resampled, bootstrap, scale_moments, student_quantile
from persona_lens.statistics.interval import Interval


@checked
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
        >>> import torch
        >>> auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
        0.875
    """
    a, b = to_array("positive", positive, 1), to_array("negative", negative, 1)
    return float(weighted_auroc(a, b)(np.ones((1, len(a))), np.ones((1, len(b))))[0])


@checked
def bootstrap_auroc(
    positive: Float[Tensor, " n_pos"],
    negative: Float[Tensor, " n_neg"],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Measure how well a score separates two classes, with a bootstrap interval.

    Resamples both classes. Where they separate perfectly, so does every resample; the interval is then as wide as the
    number of scores allows.

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

    Reference:
        :func:`score_interval`.

    Example:
        >>> import torch
        >>> print(bootstrap_auroc(torch.arange(20.0) + 8.0, torch.arange(20.0)))
        0.82 [0.64, 0.92]
        >>> print(bootstrap_auroc(torch.arange(20.0) + 20.0, torch.arange(20.0)))
        1.00 [0.89, 1.00]
    """
    a, b = to_array("positive", positive, 2), to_array("negative", negative, 2)
    sizes = (len(a), len(b))
    found = bootstrap(weighted_auroc(a, b), sizes, n_resamples, level, seed)
    return score_interval(found, sizes, sizes, n_units=min(sizes), df=sum(sizes) - 2)


@checked
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
    """Measure how well a score separates two classes, with a bootstrap over groups of scores.

    For scores that were not drawn independently, such as several responses to each question: groups are resampled,
    each with all its positives and negatives. Where the classes separate perfectly, each group counts as one score.

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

    Reference:
        :func:`score_interval`.

    Example:
        >>> import torch
        >>> scores = torch.arange(20.0)
        >>> print(bootstrap_auroc_by_group(scores + 20, scores, [*range(10)] * 2, [*range(10)] * 2))
        1.00 [0.75, 1.00]
    """
    a, b = to_array("positive", positive, 2), to_array("negative", negative, 2)
    at_a, at_b, n_groups = number_groups((positive_groups, len(a)), (negative_groups, len(b)))
    separate = weighted_auroc(a, b)

    def separate_groups(counts: ndarray) -> ndarray:
        """Weigh each score as its group; NaN for a resample without positives or without negatives."""
        return separate(counts[:, at_a], counts[:, at_b])

    found = bootstrap(separate_groups, (n_groups,), n_resamples, level, seed)
    groups = (len(set(at_a)), len(set(at_b)))
    return score_interval(found, (len(a), len(b)), groups, n_units=n_groups, df=n_groups - 1)


def number_groups(
    positive: tuple[Sequence[Hashable], int], negative: tuple[Sequence[Hashable], int]
) -> tuple[ndarray, ndarray, int]:
    """Number the groups that label two classes' scores.

    Args:
        positive: Labels of the positive class, and how many scores it has.
        negative: Likewise.

    Returns:
        The number of each positive's group, of each negative's, and how many groups there are.

    Raises:
        InvalidArgumentError: Labels that do not fit the scores, or fewer than two groups.
    """
    for name, (labels, n_scores) in (("positive", positive), ("negative", negative)):
        if len(labels) != n_scores:
            rule = f"label each of the {n_scores} scores"
            raise InvalidArgumentError.of(f"{name}_groups", rule, len(labels))
    labels = [*positive[0], *negative[0]]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    if len(numbers) < 2:
        raise InvalidArgumentError.of("positive_groups", "name at least 2 groups", list(numbers))
    at_positive, at_negative = (np.array([numbers[label] for label in side]) for side, _ in (positive, negative))
    return at_positive, at_negative, len(numbers)


def score_interval(
    found: Resampled, n_scores: tuple[int, int], n_groups: tuple[int, int], *, n_units: int, df: int
) -> Interval:
    """Make the interval of an AUROC from its resamples.

    It holds every AUROC from which the estimate is not further than Student's t times the standard error *there*, as
    Wilson's interval does for a share: it stays within [0, 1], and is not without width where the classes separate
    perfectly. The standard error is that of one score a group, by Hanley and McNeil's formula, times the square root of
    how much more or less the resamples vary than the formula says at the estimate. That they vary less than independent
    scores would is not believed, and one unit more speaks for the formula, since few units can agree by chance.

    Args:
        found: The AUROC and its resamples.
        n_scores: Positive and negative scores.
        n_groups: Groups with positive and groups with negative scores; those of independent scores are ``n_scores``.
        n_units: Resampled units: groups, or scores of the smaller class.
        df: Degrees of freedom of the resamples' variance.

    Returns:
        The interval, in [0, 1]; missing where the AUROC or every resample is.

    Reference:
        Newcombe, Confidence Intervals for an Effect Size Measure Based on the Mann-Whitney Statistic, part 2
        (Statistics in Medicine 25, 2006), method 5. Hanley and McNeil, Radiology 143 (1982).

    Example:
        >>> found = Resampled(0.9, np.array([0.85, 0.9, 0.95]), 0.95)
        >>> print(score_interval(found, (20, 20), (20, 20), n_units=20, df=38))
        0.90 [0.74, 0.96]
    """
    if found.is_missing:
        return Interval.missing(found.level)
    by_group = _vary_auroc(found.estimate, n_groups)
    widening = 1.0
    if by_group > 0:  # it is zero where the classes separate perfectly
        observed = max(scale_moments(found.values, n_units)[0], _vary_auroc(found.estimate, n_scores))
        widening = (n_units * observed / by_group + 1) / (n_units + 1)
    reach = student_quantile(found.level, df) * math.sqrt(widening)
    low = _find_lower_end(found.estimate, n_groups, reach)
    return Interval(found.estimate, low, 1 - _find_lower_end(1 - found.estimate, n_groups, reach), found.level)


def _vary_auroc(auroc: float, sizes: tuple[int, int]) -> float:
    """Return the variance of the AUROC of so many independent scores; the same for an AUROC and one less it."""
    n_others = sum(sizes) / 2 - 1
    shared = n_others * ((1 - auroc) / (2 - auroc) + auroc / (1 + auroc))
    return auroc * (1 - auroc) * (1 + shared) / (sizes[0] * sizes[1])


def _find_lower_end(estimate: float, sizes: tuple[int, int], reach: float) -> float:
    """Find the AUROC below the estimate that is ``reach`` of its own standard errors away."""
    if estimate <= 0:
        return 0.0

    def exceed(auroc: float) -> float:
        return estimate - auroc - reach * math.sqrt(_vary_auroc(auroc, sizes))

    return float(brentq(exceed, 0.0, estimate * (1 - 1e-12)))


def weighted_auroc(positive: ndarray, negative: ndarray) -> Callable[[ndarray, ndarray], ndarray]:
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
        n_pairs = weights_pos.sum(axis=1) * weights_neg.sum(axis=1)
        return np.where(n_pairs > 0, (weights_pos * beaten).sum(axis=1) / np.maximum(n_pairs, 1), np.nan)

    return compute
