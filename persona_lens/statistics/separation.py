"""How well a score separates two classes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.errors import InvalidArgumentError
from persona_lens.statistics.arrays import to_array
from persona_lens.statistics.bootstrap import bootstrap
from persona_lens.statistics.interval import Interval


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
    return float(_weighted_auroc(a, b)(np.ones((1, len(a))), np.ones((1, len(b))))[0])


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
        >>> import torch
        >>> print(bootstrap_auroc(torch.arange(20.0) + 8.0, torch.arange(20.0)))
        0.82 [0.69, 0.93]
    """
    a, b = to_array("positive", positive, 2), to_array("negative", negative, 2)
    return bootstrap(_weighted_auroc(a, b), (len(a), len(b)), n_resamples, level, seed)


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
        >>> import torch
        >>> scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> print(bootstrap_auroc_by_group(scores + 4, scores, "aabb", "aabb"))
        1.00 [1.00, 1.00]
    """
    a, b = to_array("positive", positive, 2), to_array("negative", negative, 2)
    for name, labels, scores in (("positive", positive_groups, a), ("negative", negative_groups, b)):
        if len(labels) != len(scores):
            rule = f"label each of the {len(scores)} scores"
            raise InvalidArgumentError.of(f"{name}_groups", rule, len(labels))
    numbers = {label: number for number, label in enumerate(dict.fromkeys([*positive_groups, *negative_groups]))}
    if len(numbers) < 2:
        raise InvalidArgumentError.of("positive_groups", "name at least 2 groups", list(numbers))
    at_a = np.array([numbers[label] for label in positive_groups])
    at_b = np.array([numbers[label] for label in negative_groups])
    separate = _weighted_auroc(a, b)

    def separate_groups(counts: ndarray) -> ndarray:
        """Weigh each score as its group; NaN for a resample without positives or without negatives."""
        return separate(counts[:, at_a], counts[:, at_b])

    return bootstrap(separate_groups, (len(numbers),), n_resamples, level, seed)


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
        n_pairs = weights_pos.sum(axis=1) * weights_neg.sum(axis=1)
        return np.where(n_pairs > 0, (weights_pos * beaten).sum(axis=1) / np.maximum(n_pairs, 1), np.nan)

    return compute
