"""An estimate with its confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from persona_lens.errors import InvalidArgumentError, describe_violation


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval. NaN throughout says that there was nothing to estimate from.

    Attributes:
        estimate: The statistic of the whole data; of a skewed one it can lie outside the interval.
        low: Lower end.
        high: Upper end.
        level: Share of repetitions in which such an interval would hold the true value.

    Raises:
        InvalidArgumentError: ``low`` is above ``high``, some but not all are NaN, or ``level`` is not in (0, 1).

    Example:
        >>> print(Interval(0.42, 0.31, 0.55))
        0.42 [0.31, 0.55]
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the fields."""
        is_missing = all(math.isnan(value) for value in (self.estimate, self.low, self.high))
        if not is_missing and not self.low <= self.high:
            rule = f"be at most `high`, here {self.high}"
            raise InvalidArgumentError(describe_violation("low", rule, self.low))
        check_level(self.level)

    def __str__(self) -> str:
        """Show the estimate and both ends with two decimals."""
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def check_level(level: float) -> None:
    """Refuse a level that is no share."""
    if not 0 < level < 1:
        raise InvalidArgumentError(describe_violation("level", "be in (0, 1)", level))
