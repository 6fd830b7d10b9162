"""Whether the last prompt token's projection predicts how strongly a trait will show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go

from persona_lens.monitoring.correlation import MonitoringCorrelation
from persona_lens.monitoring.graded import GradedProjections
from persona_lens.plots.monitoring import plot_monitoring
from persona_lens.plots.style import say
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
    """What experiments/monitoring.py finds, by setting: system prompts or shots; by the second judge too."""

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
    second: JudgeNote | None = None
    second_correlations: dict[str, MonitoringCorrelation] = field(default_factory=dict)

    @property
    def judges(self) -> dict[str, str]:
        """The trait's judge."""
        return {self.trait: self.judge.name}

    def plot(self) -> go.Figure:
        """Draw projection against score, a panel a setting."""
        return plot_monitoring(
            self.settings, self.correlations, judge=self.judge.name, labels=self.conditions, paper=self.paper,
            second=self.second_correlations, second_judge=self.second.name if self.second else "",
        )  # fmt: skip


def monitoring_to_markdown(found: Sequence[Monitoring]) -> str:
    """Write what projections predict of both judges' scores, a row a trait, setting and judge; then the figures."""
    lines = [
        "| trait | conditions | judge | r | paper | r within conditions | paper | prompts | left out |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        for setting in one.correlations:
            theirs = one.paper.get(setting, ("–", "–"))
            pairs = [(one.judge.name, one.correlations)]
            pairs += [(one.second.name, one.second_correlations)] if one.second else []
            for judge, by_setting in pairs:
                r = by_setting[setting]
                cells = [say(r.overall), str(theirs[0]), say(r.within), str(theirs[1]), str(r.n)]
                lines.append(
                    f"| {one.trait} | {setting} | {judge} | {' | '.join(cells)} | {', '.join(r.left_out) or 'none'} |"
                )
    figures = [f"![Monitoring {one.trait}](../../figures/monitoring_{one.trait}.png)" for one in found]
    return "\n".join([*lines, "", *figures])
