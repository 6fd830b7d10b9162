"""The result of experiments/layer_sweep.py, which most other experiments start from."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.evaluation.sweep import LayerChoice, SweepResult
from persona_lens.judges.likelihood import LikelihoodCalibration
from persona_lens.plots.style import COLORS, INK, add_intervals, lay_out
from persona_lens.plots.sweep import plot_sweep
from persona_lens.records import Record
from persona_lens.reproduction.comparison import Comparison
from persona_lens.statistics.interval import Interval
from persona_lens.vectors.persona_vector import ExtractionCounts


@dataclass(frozen=True)
class JudgeNote(Record):
    """The judge that scores rest on; instruction pairs and calibration of a likelihood judge."""

    name: str
    n_pairs: int | None = None
    calibration: LikelihoodCalibration | None = None


@dataclass(frozen=True)
class VectorNote(Record):
    """The vector that was steered with."""

    counts: ExtractionCounts
    provenance: dict[str, Any]


@dataclass(frozen=True)
class ScoreAndCoherence(Record):
    """Means over questions."""

    score: Interval
    coherence: Interval


@dataclass(frozen=True, eq=False, repr=False)
class LayerSweep(Comparison):
    """A trait's layer sweep with all that it rests on; the comparison is that of the chosen setting.

    Args:
        source: Where the vector is from: ``written`` answers, or ``sampled`` ones.
        vector: The vector.
        norms: Its norm at each layer, in residual-stream units.
        split_half_cosine: Cosine between two halves of the questions, for each token position and layer.
        sweep: The sweep, on every other evaluation question, by the judge that chooses.
        system_prompt: What the trait's first positive system prompt does to the same questions, without steering.
        choice: What was chosen.
    """

    source: str
    vector: VectorNote
    norms: tuple[float, ...]
    split_half_cosine: dict[str, tuple[float, ...]]
    sweep: SweepResult
    system_prompt: ScoreAndCoherence
    choice: LayerChoice

    @property
    def judges(self) -> dict[str, str]:
        """The judge that chose."""
        return {self.trait: self.sweep.judge}

    @property
    def steered(self) -> str:
        """The name of the condition that is the choice."""
        return f"{self.source} vector"

    def say_finding(self) -> str:
        """Say what every reader sees of the choice on fresh questions, plainly where it is little."""
        where, judges = f"layer {self.choice.layer} × {self.choice.coefficient:g}", self.readers
        both = "both judges" if len(judges) > 1 else "its one judge"
        if not all(self.rise(one, self.steered).low > 0 for one in judges):
            return f"{self.trait}: {where} does not surely raise the score of {both}"
        seen = {null: [self.above(one, self.steered, null).low > 0 for one in judges] for null in self.nulls}
        sure = [null for null, by_judge in seen.items() if all(by_judge)]
        if sure:
            above = f"surely above {' and '.join(sure)}"
        elif any(map(any, seen.values())):
            above = "surely above random directions for one of them alone"
        else:
            above = "not surely above random directions"
        return f"{self.trait}: {where} raises the score of {both},<br>{above}"

    def plot(self) -> go.Figure:
        """Draw the sweep, with what the choice does to fresh questions in its title."""
        figure = plot_sweep(self.sweep)
        for row, found in ((1, self.system_prompt.score), (2, self.system_prompt.coherence)):
            figure.add_trace(
                go.Scatter(
                    x=[self.sweep.layers[0], self.sweep.layers[-1]], y=[found.estimate] * 2, mode="lines",
                    line={"color": COLORS[4], "dash": "longdash", "width": 1.5},
                    name="positive system prompt, not steered", legendgroup="system prompt", showlegend=row == 1,
                    hovertemplate=f"system prompt: {found}<extra></extra>",
                ),
                row=row,
                col=1,
            )  # fmt: skip
        numbers = "; ".join(
            f"{name} judge {self.mean(one, 'unsteered'):.0f} → {self.mean(one, self.steered):.0f}"
            for name, one in zip(("first", "second"), self.readers, strict=False)
        )
        coherence = f"coherence {self.coherence('unsteered'):.0f} → {self.coherence(self.steered):.0f}"
        second = f", second: {self.shorten(self.readers[1])}" if len(self.readers) > 1 else ""
        subtitle = (
            f"on fresh questions: {numbers}; {coherence}<br>{self.model_name}, {self.source} vector; drawn: the "
            f"{len(self.sweep.questions)} questions that chose, by the first judge<br>first judge: "
            f"{self.shorten(self.readers[0])}{second}<br>bands and bars: 95 % bootstrap over questions (crosses: over "
            "directions too)"
        )
        lay_out(figure, self.say_finding(), subtitle, width=1050, height=920, bottom=60, legend=-0.1)
        return figure

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw the sweep, and what its choice does to fresh questions."""
        return {"": self.plot(), "_fresh": self.plot_comparison()}

    def plot_comparison(self) -> go.Figure:
        """Draw each reader's mean score of the choice and of everything simpler, on fresh questions."""
        others = [name for name in self.responses.conditions if name.startswith("vector of ")]
        names = ["unsteered", f"{self.steered}, away", self.steered, "system prompt", *others, *self.nulls]
        panels = ("mean trait score (0–100)", "AUROC against the unsteered model")
        figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.06, shared_yaxes=True, subplot_titles=panels)
        for index, judge in enumerate(self.readers):
            places = [place + 0.22 * (index - 0.5) for place in range(len(names))]
            symbol = ("circle", "diamond")[index] + ("" if self.verdicts[judge] == "valid" else "-open")
            label, color = html.escape(judge), COLORS[(2, 3)[index]]
            add_intervals(figure, 1, places, [self.mean(judge, name) for name in names], color, symbol, label)
            found = [self.auroc(judge, name, "unsteered") for name in names[1:]]
            add_intervals(figure, 2, places[1:], found, color, symbol, label)
        figure.update_traces(showlegend=False, selector=lambda trace: trace.xaxis == "x2")
        figure.update_xaxes(range=[-3, 103], row=1, col=1)
        figure.update_xaxes(range=[-0.03, 1.03], row=1, col=2)
        figure.add_vline(x=0.5, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=2)
        figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed")
        null = next(iter(self.nulls.values()))
        coherence = ", ".join(f"{name} {self.coherence(name):.0f}" for name in ("unsteered", self.steered, *self.nulls))
        subtitle = (
            f"{self.model_name}; {len(self.responses.questions)} questions that chose nothing × "
            f"{self.responses.scores.shape[-1]}; nulls: {len(null.conditions)} directions × {len(null.questions)} of "
            f"the questions<br>coherence: {coherence}<br>bars: 95 % bootstrap over questions, of nulls over directions "
            "too; filled: judge valid for this trait"
        )
        lay_out(figure, self.say_finding(), subtitle, width=1150, height=680, bottom=110, legend=-0.14)
        figure.update_layout(margin={"l": 190})
        return figure
