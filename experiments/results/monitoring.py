"""Whether the last prompt token's projection predicts how strongly a trait will show."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from persona_lens.monitoring.correlation import MonitoringCorrelation
from persona_lens.monitoring.graded import GradedProjections
from persona_lens.plots.monitoring import plot_monitoring
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.layer_sweep import JudgeNote, VectorNote


@dataclass(frozen=True)
class TraitExample:
    """A response that shows the trait, for prompts that begin with examples."""

    question: str
    response: str
    score: float


@dataclass(frozen=True, eq=False)
class Monitoring(Result):
    """What experiments/monitoring.py finds, by setting: system prompts or shots."""

    trait: str
    judge: JudgeNote
    vector: VectorNote
    conditions: dict[str, dict[str, str]]
    examples: tuple[TraitExample, ...]
    skipped: dict[str, str]
    n_unscored_responses: int
    settings: dict[str, GradedProjections]
    correlations: dict[str, MonitoringCorrelation]
    paper: dict[str, tuple[float, float]]

    @property
    def judges(self) -> dict[str, str]:
        """The trait's judge."""
        return {self.trait: self.judge.name}

    def plot(self) -> go.Figure:
        """Draw projection against score, a panel a setting."""
        return plot_monitoring(self.settings, self.correlations, labels=self.conditions, paper=self.paper)
