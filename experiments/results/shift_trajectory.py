"""The shift along persona vectors while a model is trained, with and without prevention."""

from __future__ import annotations

import html
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, add_points, lay_out, say
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.trained_models import Kit
from persona_lens.statistics.interval import Interval


@dataclass(frozen=True)
class TrainingRun:
    """One training: its losses, and the shift along each trait's vector after so many steps."""

    losses: tuple[float, ...]
    steps: tuple[int, ...]
    shifts: dict[str, tuple[Interval, ...]]


@dataclass(frozen=True, eq=False)
class ShiftTrajectory(Result):
    """What experiments/shift_trajectory.py finds."""

    trait: str
    kits: dict[str, Kit]
    runs: dict[str, TrainingRun]
    n_questions: int

    @property
    def judges(self) -> dict[str, str]:
        """Each trait's judge."""
        return {name: kit.judge.name for name, kit in self.kits.items()}

    def plot(self) -> go.Figure:
        """Draw the shift along persona vectors over optimiser steps, one panel a vector.

        Section 5.2 of the paper; bars are 95 % bootstrap intervals over questions.
        """
        traits = list(self.kits)
        titles = [f"along {html.escape(trait)}, layer {self.kits[trait].layer}" for trait in traits]
        figure = make_subplots(rows=1, cols=len(traits), horizontal_spacing=0.06, subplot_titles=titles)
        for column, trait in enumerate(traits, start=1):
            for index, (name, found) in enumerate(self.runs.items()):
                look = {
                    "mode": "lines+markers",
                    "line": {"color": (COLORS[3], COLORS[2])[index % 2], "dash": ("solid", "dash")[index % 2]},
                    "marker": {"symbol": ("circle", "square")[index % 2], "size": 8},
                }
                add_points(figure, 1, column, found.steps, found.shifts[trait], name, look, in_legend=column == 1)
            figure.add_hline(y=0, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=column)
            figure.update_xaxes(title_text="optimiser step", row=1, col=column)
        figure.update_yaxes(title_text="shift (residual-stream units)", row=1, col=1)
        trait = self.trait
        ends = [f"{name} {say(found.shifts[trait][-1])}" for name, found in self.runs.items()]
        finding = f"trained on overt {html.escape(trait)} data, shift along its vector: {html.escape('; '.join(ends))}"
        subtitle = (
            f"{self.model_name}, mean over {self.n_questions} evaluation questions, last prompt token, "
            "interventions off while measuring; bars: 95 % bootstrap over questions"
        )
        lay_out(figure, finding, subtitle, width=1250, height=640, bottom=110, legend=-0.2)
        return figure
