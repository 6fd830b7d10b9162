"""From a projection to the score that is to be expected, with an interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray

from persona_lens.checking import checked
from persona_lens.monitoring.graded import GradedProjections
from persona_lens.records import Record
from persona_lens.statistics import Interval


@checked
@dataclass(frozen=True)
class ScoreMap(Record):
    """A straight line from projection to expected score, clipped to [0, 100], with an interval for one prompt.

    The interval is the line plus the 2.5 % and 97.5 % quantiles of the residuals of prompts from conditions that the
    line was not fitted on (leave one condition out; with fewer than three conditions, one question). It holds for
    prompts like the graded ones, not for any text.

    Args:
        slope: Score points a residual-stream unit.
        intercept: Score points.
        residual_low: Added for the interval's lower end.
        residual_high: Added for its upper end.
        n: Prompts that it was fitted on.
    """

    slope: float
    intercept: float
    residual_low: float
    residual_high: float
    n: int

    def expect(self, projection: float) -> Interval:
        """Return the expected mean score of the responses to a prompt, with its 95 % interval.

        Example:
            >>> print(ScoreMap(10.0, 50.0, -20.0, 30.0, 80).expect(3.0))
            80.00 [60.00, 100.00]
        """
        line = self.slope * projection + self.intercept
        estimate, low, high = np.clip([line, line + self.residual_low, line + self.residual_high], 0.0, 100.0)
        return Interval(float(estimate), float(low), float(high))


@checked
def fit_score_map(graded: GradedProjections) -> ScoreMap:
    """Fit expected score to projection by least squares; see :class:`ScoreMap` for the interval."""
    x, y = (values.to("cpu", torch.float64).numpy() for values in (graded.projections, graded.scores))
    groups = graded.conditions if len(set(graded.conditions)) >= 3 else graded.questions
    labels = np.array(groups)
    residuals = []
    for label in dict.fromkeys(groups):
        unseen = labels == label
        slope, intercept = _fit_line(x[~unseen], y[~unseen])
        residuals.append(y[unseen] - slope * x[unseen] - intercept)
    low, high = np.quantile(np.concatenate(residuals), [0.025, 0.975])
    return ScoreMap(*_fit_line(x, y), float(low), float(high), len(x))


def _fit_line(x: ndarray, y: ndarray) -> tuple[float, float]:
    """Return slope and intercept by least squares; a level line where ``x`` is constant."""
    centered = x - x.mean()
    spread = float(centered @ centered)
    slope = float(centered @ y) / spread if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())
