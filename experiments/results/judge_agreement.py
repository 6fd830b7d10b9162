"""How far judges agree on the responses of a layer sweep."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from persona_lens.judges.panel import Agreement, PanelResult
from persona_lens.plots.agreement import plot_agreement
from persona_lens.reproduction.figures import Result


@dataclass(frozen=True, eq=False)
class JudgeAgreement(Result):
    """What experiments/judge_agreement.py finds; ``counts`` by judge, of scores and of reasons for none."""

    trait: str
    counts: dict[str, dict[str, int]]
    agreement: tuple[Agreement, ...]
    panel: PanelResult

    def plot(self) -> go.Figure:
        """Draw the agreement of every judge with every other."""
        return plot_agreement(self.panel, self.trait)
