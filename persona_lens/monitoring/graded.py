"""Prompts of known trait score, as an experiment measured them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.models.loading import ModelInfo
from persona_lens.monitoring.correlation import MonitoringCorrelation, check_graded, measure_monitoring
from persona_lens.records import Record


@checked
@dataclass(frozen=True, eq=False)
class GradedProjections(Record):
    """Prompts of known trait score: what a monitor's map from projection to score is fitted on.

    Args:
        trait: The trait's name.
        model: The model.
        layer: Zero-based block index of the projections.
        projections: Of each prompt's last token, in residual-stream units.
        scores: Mean trait score (0 to 100) of each prompt's responses.
        conditions: E.g. which system prompt each prompt has.
        questions: Which question each prompt asks.

    Raises:
        InvalidArgumentError: Fewer than three prompts, one question only, unequal lengths, or a value not finite.
    """

    trait: str
    model: ModelInfo
    layer: int
    projections: Float[Tensor, " n"]
    scores: Float[Tensor, " n"]
    conditions: tuple[str, ...]
    questions: tuple[str, ...]

    def __post_init__(self) -> None:
        check_graded(self.projections, self.scores, self.conditions, self.questions)

    def measure(self, *, min_std: float = 1.0, n_resamples: int = 2000, seed: int = 0) -> MonitoringCorrelation:
        """Correlate projections with scores; see :func:`measure_monitoring`."""
        return measure_monitoring(
            self.projections,
            self.scores,
            self.conditions,
            self.questions,
            min_std=min_std,
            n_resamples=n_resamples,
            seed=seed,
        )

    def __repr__(self) -> str:
        return (
            f"GradedProjections({self.trait!r} on {self.model.name!r}, layer {self.layer}, {len(self.scores)} prompts, "
            f"{len(set(self.conditions))} conditions, {len(set(self.questions))} questions)"
        )
