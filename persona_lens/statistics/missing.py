"""Intervals of measurements some of which are missing: a judge gives no score, a response is empty."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from persona_lens.statistics.bootstrap import bootstrap_mean, bootstrap_paired_difference
from persona_lens.statistics.interval import Interval


def mean_interval(values: Float[Tensor, " unit"]) -> Interval:
    """Average what is there, with a bootstrap interval over units; missing where fewer than two are.

    Args:
        values: One value a unit, NaN where there is none.

    Example:
        >>> import torch
        >>> print(mean_interval(torch.tensor([1.0, torch.nan, 1.0])))
        1.00 [1.00, 1.00]
    """
    present = values[~values.isnan()]
    return bootstrap_mean(present) if len(present) > 1 else Interval.missing()


def difference_interval(a: Float[Tensor, " unit"], b: Float[Tensor, " unit"]) -> Interval:
    """Average ``a - b`` over units where both are there, with a bootstrap interval; missing where fewer than two are.

    Args:
        a: One value a unit, NaN where there is none.
        b: The same units, in the same order.
    """
    both = ~(a.isnan() | b.isnan())
    return bootstrap_paired_difference(a[both], b[both]) if int(both.sum()) > 1 else Interval.missing()
