"""What says before a response how strongly a trait will show: directions of every estimator at every layer."""

from __future__ import annotations

import html
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from persona_lens.judges.validation import JudgeValidation
from persona_lens.monitoring import DetectorChoice, MonitoringCorrelation
from persona_lens.plots.style import COLORS, INK, add_intervals, lay_out, say
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result

FITTED = "ridge, fitted to scores"


@dataclass(frozen=True, eq=False, repr=False)
class TraitDetection(Record):
    """What was found for one trait.

    Args:
        trait: Its name.
        validations: Of the judges.
        best: The estimator that chose best, of those that know nothing of scores.
        chosen: By estimator, its layer, chosen on half of the questions, and what it is worth on the others.
        second: By estimator, the same on the others by the second judge.
    """

    trait: str
    validations: tuple[JudgeValidation, ...]
    best: str
    chosen: dict[str, DetectorChoice]
    second: dict[str, MonitoringCorrelation]

    def is_reliable(self, name: str) -> bool:
        """Whether both judges see the projection go with the score, inside conditions, on other questions."""
        return self.chosen[name].is_reliable and self.second[name].is_reliable


@dataclass(frozen=True, eq=False, repr=False)
class Detection(Result):
    """What experiments/detection.py finds."""

    traits: tuple[TraitDetection, ...]

    @property
    def judges(self) -> dict[str, str]:
        """Each trait's judge that chose."""
        return {one.trait: one.validations[0].judge for one in self.traits}

    def say_finding(self) -> str:
        """Say for which traits what was chosen is reliable."""
        reliable = [f"{one.trait} ({one.best}, layer {one.chosen[one.best].layer})"
                    for one in self.traits if one.is_reliable(one.best)]  # fmt: skip
        fitted = [one.trait for one in self.traits if one.is_reliable(FITTED)]
        return (
            f"the best direction says before a response what comes for {', '.join(reliable) or 'no trait'}; "
            f"one fitted to scores for {', '.join(fitted) or 'none'}"
        )

    def plot(self) -> go.Figure:
        """Draw r within conditions by estimator and layer as it was chosen on, and on held-out questions."""
        n = len(self.traits)
        heads = [text for one in self.traits
                 for text in (f"{one.trait}: choosing half", "held-out half, at the layer chosen")]  # fmt: skip
        figure = make_subplots(
            rows=n, cols=2, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.28 / max(n, 1),
            column_widths=[0.55, 0.45], subplot_titles=heads,
        )  # fmt: skip
        for line, one in enumerate(self.traits, start=1):
            names = list(one.chosen)[::-1]
            within = torch.stack([one.chosen[name].within[name] for name in names])
            rows = list(range(len(names)))
            figure.add_heatmap(
                z=within.tolist(), y=rows, zmin=-0.6, zmax=0.6, colorscale="RdBu_r", showscale=line == 1,
                colorbar={"title": "r", "len": 0.8 / n, "y": 1, "yanchor": "top"}, row=line, col=1,
            )  # fmt: skip
            layers = [one.chosen[name].layer for name in names]
            figure.add_scatter(
                x=layers, y=rows, mode="markers",
                marker={"size": 10, "color": "white", "line": {"width": 2, "color": INK}},
                name="layer chosen", showlegend=line == 1, row=line, col=1,
            )  # fmt: skip
            for index, (judge, found) in enumerate((
                (one.validations[0].judge, [one.chosen[name].held_out.within for name in names]),
                (one.validations[1].judge, [one.second[name].within for name in names]),
            )):  # fmt: skip
                look = (COLORS[2], "circle") if index == 0 else (COLORS[3], "diamond")
                places = [place + 0.16 - 0.32 * index for place in range(len(names))]
                add_intervals(figure, 2, places, found, *look, html.escape(judge), line=line)
                figure.data[-1].update(showlegend=line == 1, legendgroup=judge)
            figure.update_xaxes(range=[-0.5, within.shape[1] - 0.5], row=line, col=1)
            figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, row=line)
            figure.add_vline(0, line={"color": INK, "width": 1}, row=line, col=2)
        figure.update_xaxes(title_text="layer", row=n, col=1)
        figure.update_xaxes(title_text="r between projection and score, within conditions", row=n, col=2)
        figure.update_xaxes(range=[-1, 1], col=2)
        subtitle = (
            f"{self.model_name}: last prompt token's projection against the responses' mean score, inside each graded "
            "system prompt; bars: 95 % over questions"
        )
        lay_out(
            figure, self.say_finding(), subtitle, width=1150, height=330 * n + 190, bottom=120, legend=-70 / (330 * n)
        )
        figure.update_layout(margin={"l": 190, "r": 90})
        return figure

    def to_markdown(self) -> str:
        """Write the finding and a row for each trait and estimator."""
        finding = self.say_finding()
        lines = [
            f"**{finding[0].upper()}{finding[1:]}.**", "",
            "| trait | direction | layer | r within, choosing half | other half, first judge | other half, second |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for one in self.traits:
            for name, chosen in one.chosen.items():
                mark = " (best)" if name == one.best else ""
                r = float(chosen.within[name][chosen.layer])
                held = f"{say(chosen.held_out.within)} | {say(one.second[name].within)}"
                lines.append(f"| {one.trait} | {name}{mark} | {chosen.layer} | {r:.2f} | {held} |")
        return "\n".join([*lines, "", "![What says before a response what will come](../../figures/detection.png)", ""])
