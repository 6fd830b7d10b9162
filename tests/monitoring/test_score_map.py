import numpy as np
import pytest

from persona_lens.monitoring import GradedProjections, ScoreMap, fit_score_map
from persona_lens.statistics import Interval
from tests.monitoring.examples import make_graded


def test_the_score_map_is_the_line_through_the_graded_prompts_clipped_to_the_scale(vectors):
    data = make_graded(vectors["loud"])
    slope, intercept = np.polyfit(data.projections.numpy(), data.scores.numpy(), 1)
    fitted = fit_score_map(data)
    assert (fitted.slope, fitted.intercept) == (pytest.approx(slope, rel=1e-4), pytest.approx(intercept, rel=1e-4))
    assert fitted.expect(1e6) == Interval(100.0, 100.0, 100.0)
    assert fitted.expect(-1e6) == Interval(0.0, 0.0, 0.0)


def test_the_score_maps_interval_holds_for_conditions_that_it_has_not_seen(vectors):
    """One condition lies apart: fitted with it, residuals are small; left out, they are not."""
    data = make_graded(vectors["loud"], n_conditions=3)
    scores = data.scores.clone()
    scores[40:] = 95.0
    apart = GradedProjections(
        data.trait, data.model, 1, data.projections, scores, data.conditions, data.questions
    )  # fmt: skip
    fitted = fit_score_map(apart)
    residuals = scores - fitted.slope * data.projections - fitted.intercept
    assert fitted.residual_high > float(residuals.quantile(0.975)) + 5


def test_the_score_map_widens_its_line_by_its_residuals():
    assert ScoreMap(2.0, 10.0, -3.0, 4.0, 9).expect(5.0) == Interval(20.0, 17.0, 24.0)
