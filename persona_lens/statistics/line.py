"""A straight line through points that were not drawn independently, with a band."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.statistics.arrays import to_array, to_grouped_arrays
from persona_lens.statistics.bootstrap import bootstrap, scale_moments, t_interval_of_moments
from persona_lens.statistics.interval import Interval


@checked
def bootstrap_line_by_group(
    x: Float[Tensor, " n"],
    y: Float[Tensor, " n"],
    groups: Sequence[Hashable],
    at: Float[Tensor, " place"],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Fit a line by least squares; return its height at some places with bootstrap intervals over groups of points.

    Each interval holds for its own place, not for the whole line at once.

    Args:
        x: E.g. the fine-tuning shift, one a model.
        y: E.g. the rise of the trait score of the same models.
        groups: Label of each point's group, such as the dataset that its model was trained on; at least three.
        at: Where the line's height is asked for, in units of ``x``.
        n_resamples: Resamples of the groups; one in which ``x`` is constant is left out.
        level: Of the intervals.
        seed: Of the resampling.

    Returns:
        Heights in units of ``y``, in the order of ``at``; NaN throughout where ``x`` is constant.

    Raises:
        InvalidArgumentError: A value is not finite, the lengths differ, or there are fewer than three groups.

    Reference:
        :func:`persona_lens.statistics.bootstrap.t_interval_of_moments`.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0)
        >>> print(*bootstrap_line_by_group(x, 2 * x + torch.sin(x), [*range(6)] * 2, torch.tensor([0.0, 10.0])))
        0.38 [-0.39, 1.14] 19.75 [18.76, 20.74]
    """
    (a, b), members, n_groups = to_grouped_arrays({"x": x, "y": y}, groups)
    center = a.mean()
    heights = []
    for place in to_array("at", at, 1) - center:

        def rise(counts: ndarray, place: float = float(place)) -> ndarray:
            return line_height(a - center, b, counts[:, members], place)

        found = bootstrap(rise, (n_groups,), n_resamples, level, seed)
        if found.is_missing:
            heights.append(Interval.missing(level))
            continue
        variance, _ = scale_moments(found.values, n_groups)
        heights.append(t_interval_of_moments(found.estimate, variance, 0.0, n_groups - 1, level))
    return tuple(heights)


def line_height(x: ndarray, y: ndarray, weights: ndarray, place: float) -> ndarray:
    """Return the height of each weighted least-squares line; NaN where its x do not differ."""
    total = weights.sum(axis=1)
    x_mean, y_mean = weights @ x / total, weights @ y / total
    covariance = weights @ (x * y) / total - x_mean * y_mean
    variance = weights @ (x * x) / total - x_mean**2
    variance[variance <= 1e-12 * (np.square(x).max() or 1.0)] = np.nan  # nothing but rounding
    height: ndarray = y_mean + covariance / variance * (place - x_mean)
    return height
