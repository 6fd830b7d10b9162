"""Models trained on every dataset: trait scores, and the shift along persona vectors."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, LEVEL_COLORS, SYMBOLS, error_bars, lay_out, say
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.trained_models import (
    BaseModel,
    Correlation,
    Kit,
    ScoredModel,
    TrainedModel,
    find_coherence,
    is_coherent,
)
from persona_lens.statistics import Interval, bootstrap_line_by_group
from persona_lens.statistics.missing import difference_interval


@dataclass(frozen=True)
class ShiftCorrelations(Record):
    """How the shift goes with one judge's scores, over the models trained on data that show a trait.

    Shift and score are less those of the model trained on the same dataset's ordinary answers: its zero.

    Args:
        r: Of the shift along a trait's vector (first key) with the score of another, or the same, trait.
        own_less_other: By scored trait, r along its own vector less r along each other's.
        leave_one_out: By trait, r along its own vector without the models of one dataset.
    """

    r: dict[str, dict[str, Correlation]]
    own_less_other: dict[str, dict[str, Interval]]
    leave_one_out: dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class FinetuningShift(Result):
    """What experiments/finetuning_shift.py finds; correlations are by judge, ``first`` and, if there is, ``second``."""

    kits: dict[str, Kit]
    base: BaseModel
    models: tuple[TrainedModel, ...]
    correlations: dict[str, ShiftCorrelations]
    min_coherence: float
    paper: dict[str, tuple[float, float]]
    n_questions: int

    @property
    def judges(self) -> dict[str, str]:
        """Each trait's judge."""
        return {name: kit.judge.name for name, kit in self.kits.items()}

    def plot(self) -> go.Figure:
        """Draw the rise of the trait score against the shift, both less the matched normal training's.

        One panel a trait, one point a model trained on mild or overt data; Figure 6 of the paper.
        """
        traits = list(self.kits)
        n_columns = min(3, len(traits))
        n_rows = math.ceil(len(traits) / n_columns)
        figure = make_subplots(
            rows=n_rows, cols=n_columns, horizontal_spacing=0.06, vertical_spacing=0.24 if n_rows > 1 else 0,
            subplot_titles=[self._head(trait) for trait in traits],
        )  # fmt: skip
        sets = list(dict.fromkeys(row.dataset for row in self.models))
        for place, trait in enumerate(traits):
            line, column = place // n_columns + 1, place % n_columns + 1
            self._add_line(figure, line, column, trait)
            for index, name in enumerate(sets):
                for row in (one for one in list_raised(self.models) if one.dataset == name):
                    normal = find_normal(self.models, name)
                    rise = raise_of(row.scores[trait], normal.scores[trait])
                    shift = row.shifts[trait].at_layer.estimate - normal.shifts[trait].at_layer.estimate
                    is_pale = not is_coherent(row.scores, self.min_coherence)
                    figure.add_trace(
                        go.Scatter(
                            x=[shift], y=[rise.estimate], mode="markers", name=f"{name} {row.level}",
                            error_y={**error_bars([rise]), "thickness": 0.8, "width": 0},
                            marker={
                                "color": LEVEL_COLORS[row.level], "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 12,
                                "opacity": 0.3 if is_pale else 1.0,
                                "line": {"width": 3 if name == trait else 1, "color": INK},
                            },
                            legendgroup=f"{name} {row.level}", showlegend=place == 0,
                            hovertemplate=f"{html.escape(name)} {row.level}: shift %{{x:.2f}}, rise {rise}",
                        ),
                        row=line,
                        col=column,
                    )  # fmt: skip
            figure.add_hline(y=0, line={"color": INK, "width": 0.5}, row=line, col=column)
            figure.add_vline(x=0, line={"color": INK, "width": 0.5}, row=line, col=column)
            figure.update_xaxes(title_text="shift (residual-stream units)", row=line, col=column)
            if column == 1:
                figure.update_yaxes(title_text="rise of the score (points)", row=line, col=column)
        low, high = self.paper["own"]
        subtitle = (
            f"{self.model_name}, {len(list_raised(self.models))} models of {len(sets)} datasets, each less the model "
            f"trained on the same questions' ordinary answers; {self.n_questions} evaluation questions; drawn: first "
            f"judge<br>r, band: 95 % bootstrap over datasets (paper's r {low}–{high}); bars: over questions; thick "
            f"rim: the trait's own data; pale: coherence under {self.min_coherence:g}"
        )
        lay_out(figure, self.say_finding(), subtitle, width=1350, height=170 + 470 * n_rows, legend=-0.08)
        figure.update_annotations(font_size=12)
        return figure

    def _add_line(self, figure: go.Figure, line: int, column: int, trait: str) -> None:
        """Draw the fitted line with its band, where there are datasets enough."""
        rows = list_raised(self.models)
        groups = [row.dataset for row in rows]
        normal = [find_normal(self.models, name) for name in groups]
        shifts, rises = (
            torch.tensor(values, dtype=torch.float64)
            for values in (
                [
                    a.shifts[trait].at_layer.estimate - b.shifts[trait].at_layer.estimate
                    for a, b in zip(rows, normal, strict=True)
                ],
                [raise_of(a.scores[trait], b.scores[trait]).estimate for a, b in zip(rows, normal, strict=True)],
            )
        )
        if len(set(groups)) < 3 or not bool(rises.isfinite().all()):
            return
        places = torch.linspace(float(shifts.min()), float(shifts.max()), 25, dtype=torch.float64)
        heights = bootstrap_line_by_group(shifts, rises, groups, places)
        x, style = places.tolist(), {"showlegend": False, "hoverinfo": "skip"}
        figure.add_trace(
            go.Scatter(
                x=[*x, *reversed(x)], y=[h.low for h in heights] + [h.high for h in reversed(heights)], mode="lines",
                line={"width": 0}, fill="toself", fillcolor="rgba(0, 114, 178, 0.12)", **style,
            ),
            row=line,
            col=column,
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(x=x, y=[h.estimate for h in heights], mode="lines", line={"color": COLORS[2]}, **style),
            row=line,
            col=column,
        )
        # The points, not the band, which is wide for six datasets, say what is shown.
        ends = [raise_of(a.scores[trait], b.scores[trait]) for a, b in zip(rows, normal, strict=True)]
        low, high = min(end.low for end in ends), max(end.high for end in ends)
        margin = 0.08 * (high - low) or 1.0
        figure.update_yaxes(range=[low - margin, high + margin], row=line, col=column)

    def say_finding(self) -> str:
        """Say for which traits every judge sees the shift go with the score, and more so than along other vectors."""
        sure = [t for t in self.kits if all(found.r[t][t].low > 0 for found in self.correlations.values())]
        own = [
            trait
            for trait in sure
            if all(
                less.low > 0 for found in self.correlations.values() for less in found.own_less_other[trait].values()
            )
        ]
        judges = "both judges" if len(self.correlations) > 1 else "the judge"
        return (
            f"the shift along its vector surely goes with a trait's score, for {judges}: "
            f"{', '.join(map(html.escape, sure)) or 'no trait'};<br>surely more than along every other trait's vector: "
            f"{', '.join(map(html.escape, own)) or 'none'}"
        )

    def _head(self, trait: str) -> str:
        """Return a panel's title: r by each judge, its specificity and what leaving a dataset out makes of it."""
        lines = [f"<b>{html.escape(trait)}</b>, layer {self.kits[trait].layer}"]
        for label, found in self.correlations.items():
            left = [value for value in found.leave_one_out[trait].values() if value == value]
            span = f", without one dataset {min(left):.2f} to {max(left):.2f}" if left else ""
            lines.append(f"{label} judge: r {say(found.r[trait][trait])}{span}")
            rivals = {name: one for name, one in found.own_less_other[trait].items() if not one.is_missing}
            if rivals:
                name = min(rivals, key=lambda one: rivals[one].estimate)
                lines.append(f"less r along {html.escape(name)}'s, the nearest: {rivals[name]}")
        return "<br>".join(lines)

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw shift against score, and the scores."""
        return {"": self.plot(), "_scores": self.plot_scores()}

    def plot_scores(self) -> go.Figure:
        """Draw each trait's score after training on each dataset at each level, a row a trait, a column a judge.

        Figure 5 of the paper; bars are 95 % bootstrap intervals over questions, the line is the base model.
        """
        traits, labels = list(self.kits), list(self.correlations)
        figure = make_subplots(
            rows=len(traits), cols=len(labels), shared_xaxes=True, vertical_spacing=0.035, horizontal_spacing=0.05,
            subplot_titles=[f"{html.escape(trait)}, {label} judge" for trait in traits for label in labels],
        )  # fmt: skip
        for line, trait in enumerate(traits, start=1):
            for column, label in enumerate(labels, start=1):
                for level, color in LEVEL_COLORS.items():
                    rows = [row for row in self.models if row.level == level]
                    scores = [score_of(row.scores[trait], label) for row in rows]
                    figure.add_trace(
                        go.Bar(
                            x=[row.dataset for row in rows],
                            y=[score.estimate for score in scores],
                            error_y=error_bars(scores),
                            marker={"color": color},  # told apart by lightness too; hatching would double the file
                            name=f"level {level}",
                            legendgroup=level,
                            showlegend=line == column == 1,
                        ),
                        row=line,
                        col=column,
                    )
                base = score_of(self.base.scores[trait], label)
                figure.add_hline(
                    y=base.estimate, line={"color": COLORS[4], "dash": "dot"}, row=line, col=column,
                    annotation_text="base model", annotation_position="top right",
                )  # fmt: skip
            figure.update_yaxes(title_text="score", row=line, col=1)
        figure.update_yaxes(range=[0, 103])
        figure.update_xaxes(title_text="trained on", row=len(traits))
        risen = [trait for trait in traits if self.is_raised(trait)]
        finding = (
            "overt data surely raises its own trait above the same questions' ordinary answers, for every judge:<br>"
            f"{html.escape(', '.join(risen) or 'none')}, of {len(traits)}"
        )
        incoherent = sum(not is_coherent(row.scores, self.min_coherence) for row in self.models)
        subtitle = (
            f"{self.model_name}, {self.models[0].n_rows} rows a dataset, {self.n_questions} evaluation questions; "
            f"bars: 95 % bootstrap over questions; first judge: {_name_judge(self.kits, 'judge')}; second: "
            f"{_name_judge(self.kits, 'second')}<br>coherence (how likely the base model finds a text) under "
            f"{self.min_coherence:g}: {incoherent} of {len(self.models)} models"
        )
        lay_out(figure, finding, subtitle, width=1350, height=290 + 210 * len(traits), legend=-0.04)
        figure.update_layout(title={"font": {"size": 15}})
        return figure

    def to_markdown(self) -> str:
        """Write what each trait's own data do to its score, how shift and score go together, and the figures."""
        traits, labels = list(self.kits), list(self.correlations)
        judges = " | ".join(f"{label} judge: {level}" for label in labels for level in ("mild", "overt"))
        lines = [
            f"| own data of | {judges} | shift: mild | shift: overt | least coherence |",
            f"|---|{'---|' * (2 * len(labels) + 3)}",
        ]
        for trait in traits:
            own = {row.level: row for row in self.models if row.dataset == trait}
            normal = own["normal"]
            rises = [
                f"{raise_of(own[level].scores[trait], normal.scores[trait], label):.0f}"
                for label in labels
                for level in ("I", "II")
            ]
            zero = normal.shifts[trait].at_layer.estimate
            shifts = [f"{own[level].shifts[trait].at_layer.estimate - zero:.1f}" for level in ("I", "II")]
            least = min(find_coherence(row.scores) for row in own.values())
            lines.append(f"| {trait} | {' | '.join([*rises, *shifts])} | {least:.0f} |")
        lines += [
            "",
            "| score of | judge | r along its own vector | without one dataset | r along the nearest other | "
            "own less it | surely above how many of the others |",
            "|---|---|---|---|---|---|---|",
        ]
        for trait in traits:
            for label, found in self.correlations.items():
                left = [value for value in found.leave_one_out[trait].values() if value == value]
                span = f"{min(left):.2f} to {max(left):.2f}" if left else "–"
                rivals = {name: one for name, one in found.own_less_other[trait].items() if not one.is_missing}
                nearest = min(rivals, key=lambda one: rivals[one].estimate) if rivals else None
                cells = ["–", "–"]
                if nearest:
                    cells = [f"{nearest}: {say(found.r[nearest][trait])}", str(rivals[nearest])]
                above = sum(one.low > 0 for one in rivals.values())
                lines.append(
                    f"| {trait} | {label} | {say(found.r[trait][trait])} | {span} | {' | '.join(cells)} | "
                    f"{above} of {len(rivals)} |"
                )
        stem = "../../figures/finetuning_shift"
        return "\n".join([*lines, "", f"![Shift against score]({stem}.png)", f"![Scores]({stem}_scores.png)"])

    def is_raised(self, trait: str) -> bool:
        """Whether every judge surely scores a model trained on the trait's overt data above that of its ordinary."""
        overt = next(row for row in self.models if (row.dataset, row.level) == (trait, "II"))
        normal = find_normal(self.models, trait)
        return all(raise_of(overt.scores[trait], normal.scores[trait], label).low > 0 for label in self.correlations)


def list_raised(models: Sequence[TrainedModel]) -> list[TrainedModel]:
    """Return the models trained on data that show a trait."""
    return [row for row in models if row.level != "normal"]


def find_normal(models: Sequence[TrainedModel], dataset: str) -> TrainedModel:
    """Return the model trained on a dataset's ordinary answers."""
    return next(row for row in models if (row.dataset, row.level) == (dataset, "normal"))


def score_of(scored: ScoredModel, label: str) -> Interval:
    """Return the first or the second judge's mean score."""
    return scored.score if label == "first" else scored.second or Interval.missing()


def raise_of(scored: ScoredModel, normal: ScoredModel, label: str = "first") -> Interval:
    """Return how much higher a model scores than the one trained on ordinary answers, paired by question."""
    sides = [torch.tensor(one.by_question if label == "first" else one.second_by_question) for one in (scored, normal)]
    return difference_interval(*sides)


def _name_judge(kits: dict[str, Kit], which: Any) -> str:
    notes = [getattr(kit, which) for kit in kits.values()]
    names = {note.name.partition("), ")[0] + (")" if "), " in note.name else "") for note in notes if note}
    return html.escape(", ".join(sorted(names)) or "none")
