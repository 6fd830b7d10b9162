"""Prompts of known trait score, as an experiment measured them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import FileFormatError
from persona_lens.models.loading import ModelInfo
from persona_lens.monitoring.correlation import MonitoringCorrelation, check_graded, measure_monitoring


@dataclass(frozen=True, eq=False)
class GradedProjections:
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

    def to_json(self) -> dict[str, Any]:
        """Return the data as JSON-able values."""
        return {
            "trait": self.trait,
            "model": asdict(self.model),
            "layer": self.layer,
            "projections": self.projections.tolist(),
            "scores": self.scores.tolist(),
            "conditions": list(self.conditions),
            "questions": list(self.questions),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> GradedProjections:
        """Read what :meth:`to_json` returned.

        Raises:
            FileFormatError: A key is missing.
        """
        check_keys(cls, content)
        return cls(
            trait=content["trait"],
            model=ModelInfo(**content["model"]),
            layer=content["layer"],
            projections=torch.tensor(content["projections"], dtype=torch.float32),
            scores=torch.tensor(content["scores"], dtype=torch.float32),
            conditions=tuple(content["conditions"]),
            questions=tuple(content["questions"]),
        )

    def __repr__(self) -> str:
        return (
            f"GradedProjections({self.trait!r} on {self.model.name!r}, layer {self.layer}, {len(self.scores)} prompts, "
            f"{len(set(self.conditions))} conditions, {len(set(self.questions))} questions)"
        )


def check_keys(cls: type, content: dict[str, Any]) -> None:
    """Refuse content that lacks one of a dataclass's fields."""
    missing = [one.name for one in fields(cls) if one.name not in content]
    if missing:
        raise FileFormatError(f"`content` must hold a whole {cls.__name__}. Missing: {missing}. Make it again.")
