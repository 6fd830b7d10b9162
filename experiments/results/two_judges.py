"""What two judges say of the same, and what both surely see."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lens.statistics import Interval

Pair = tuple[Interval, Interval]
"""What each of the two judges says."""


def falls(pair: Sequence[Interval]) -> bool:
    """Whether a difference lies surely below 0 for both judges."""
    return all(one.high < 0 for one in pair)


def rises(pair: Sequence[Interval]) -> bool:
    """Whether a difference lies surely above 0 for both judges."""
    return all(one.low > 0 for one in pair)
