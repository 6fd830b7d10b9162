"""An estimate with its confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError


@checked
@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval. NaN throughout says that there was nothing to estimate from.

    As text it has two decimals; a format specification for each of its numbers, such as ``.3g``, gives another form.

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
        >>> f"{Interval(0.00123, 0.0005, 0.002):.2g}"
        '0.0012 [0.0005, 0.002]'
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.is_missing and not self.low <= self.high:
            rule = f"be at most `high`, here {self.high}"
            raise InvalidArgumentError.of("low", rule, self.low)
        check_level(self.level)

    @classmethod
    def missing(cls, level: float = 0.95) -> Interval:
        """Return the interval of what cannot be estimated: NaN throughout."""
        return cls(math.nan, math.nan, math.nan, level)

    @property
    def is_missing(self) -> bool:
        """Whether there was nothing to estimate from."""
        return all(map(math.isnan, (self.estimate, self.low, self.high)))

    def __format__(self, spec: str) -> str:
        if self.is_missing:
            return "not defined"
        estimate, low, high = (format(value, spec or ".2f") for value in (self.estimate, self.low, self.high))
        return f"{estimate} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)


def check_level(level: float) -> None:
    """Refuse a level that is no share."""
    if not 0 < level < 1:
        raise InvalidArgumentError.of("level", "be in (0, 1)", level)
