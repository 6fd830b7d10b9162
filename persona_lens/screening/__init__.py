"""Screening training data for traits before anyone trains on them."""

from persona_lens.distributed import RayWorkers
from persona_lens.screening.distributed import screen_on_ray
from persona_lens.screening.gradients import (
    GradientScores,
    GradientSketch,
    MeanGradient,
    read_gradient,
    score_gradients,
)
from persona_lens.screening.scores import ScreenSettings
from persona_lens.screening.screen import screen
from persona_lens.screening.screening import ApproximationCheck, Screening
from persona_lens.screening.splitting import SplitCounts, split_rows

__all__ = [
    "ApproximationCheck", "GradientScores", "GradientSketch", "MeanGradient", "RayWorkers", "ScreenSettings",
    "Screening", "SplitCounts", "read_gradient", "score_gradients", "screen", "screen_on_ray", "split_rows",
]  # fmt: skip
