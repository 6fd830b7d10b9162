"""Models trained on every dataset: trait scores, and the shift along persona vectors."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import INK, LEVEL_COLORS, SYMBOLS, add_crosses, error_bars, lay_out, say
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.trained_models import BaseModel, Correlation, Kit, TrainedModel, is_coherent


@dataclass(frozen=True, eq=False)
class FinetuningShift(Result):
    """What experiments/finetuning_shift.py finds; correlations are of shift along one trait with another's score."""

    kits: dict[str, Kit]
    base: BaseModel
    models: tuple[TrainedModel, ...]
    correlations: dict[str, dict[str, Correlation]]
    correlations_coherent: dict[str, dict[str, Correlation]]
    min_coherence: float
    paper: dict[str, tuple[float, float]]
    n_questions: int

    @property
    def judges(self) -> dict[str, str]:
        """Each trait's judge."""
        return {name: kit.judge.name for name, kit in self.kits.items()}

    def plot(self) -> go.Figure:
        """Draw trait score against shift along the trait's vector, one panel a trait, one point a trained model.

        Figure 6 of the paper; bars are 95 % bootstrap intervals over questions.
        """
        traits = list(self.kits)
        sets = list(dict.fromkeys(row.dataset for row in self.models))
        low, high = self.paper["own"]
        coherent = self.correlations_coherent
        titles = []
        for trait in traits:
            others = [f"{html.escape(other)} {_r(self, other, trait)}" for other in traits if other != trait]
            titles.append(
                f"<b>{html.escape(trait)}</b>, layer {self.kits[trait].layer}<br>"
                f"r {_r(self, trait, trait)} (paper {low}–{high})<br>coherent models only: "
                f"{say(coherent[trait][trait])}, n = {coherent[trait][trait].n}"
                f"<br><sup>along other vectors: {'; '.join(others)}</sup>"
            )
        figure = make_subplots(
            rows=1, cols=len(traits), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles
        )

        def draw(column: int, rows: Sequence[BaseModel], trait: str, name: str, marker: dict[str, Any]) -> None:
            shifts = [row.shifts[trait].at_layer for row in rows]
            scores = [row.scores[trait].score for row in rows]
            opacity = [1.0 if is_coherent(row.scores, self.min_coherence) else 0.3 for row in rows]
            add_crosses(figure, 1, column, shifts, scores, name, {**marker, "opacity": opacity}, in_legend=column == 1)

        for column, trait in enumerate(traits, start=1):
            for index, name in enumerate(sets):
                for level, color in LEVEL_COLORS.items():
                    rows = [r for r in self.models if (r.dataset, r.level) == (name, level)]
                    draw(
                        column,
                        rows,
                        trait,
                        f"{name} {level}",
                        {"color": color, "symbol": SYMBOLS[index % len(SYMBOLS)]},
                    )
            draw(column, [self.base], trait, "base model", {"color": INK, "symbol": "star-open"})
            figure.update_xaxes(title_text="shift (residual-stream units)", row=1, col=column)
        figure.update_yaxes(range=[-3, 103])
        figure.update_yaxes(title_text="trait score after training (0–100)", row=1, col=1)
        sure = [trait for trait in traits if self.correlations[trait][trait].low > 0]
        surely = [trait for trait in traits if coherent[trait][trait].low > 0]
        finding = (
            f"the shift goes with the trait's score for {', '.join(map(html.escape, sure)) or 'no trait'}; "
            f"among coherent models for {', '.join(map(html.escape, surely)) or 'none'}"
        )
        domains = ", ".join(map(html.escape, self.config["domains"]))
        subtitle = (
            f"{self.model_name}, n = {len(self.models)} trained models, {self.n_questions} evaluation "
            "questions, likelihood judge (proxy); r: 95 % bootstrap over models; bars: over questions<br>"
            f"pale: coherence under {self.min_coherence:g}, where the score means little; "
            f"of the rows of {domains} half are the base model's ordinary answers"
        )
        lay_out(figure, finding, subtitle, width=1350, height=860, top=230, legend=-0.14)
        figure.update_annotations(font_size=13)
        return figure

    def plot_scores(self) -> go.Figure:
        """Draw each trait's score after training on each dataset at each level, one panel a trait.

        Figure 5 of the paper; bars are 95 % bootstrap intervals over questions, the line is the base model.
        """
        traits = list(self.kits)
        sets = list(dict.fromkeys(row.dataset for row in self.models))
        figure = make_subplots(
            rows=len(traits), cols=1, shared_xaxes=True, vertical_spacing=0.07,
            subplot_titles=[f"score of {html.escape(trait)}" for trait in traits],
        )  # fmt: skip
        for line, trait in enumerate(traits, start=1):
            for level, color in LEVEL_COLORS.items():
                rows = [row for row in self.models if row.level == level]
                scores = [row.scores[trait].score for row in rows]
                figure.add_trace(
                    go.Bar(
                        x=[row.dataset for row in rows],
                        y=[score.estimate for score in scores],
                        error_y=error_bars(scores),
                        marker={"color": color, "pattern": {"shape": {"normal": "", "I": "/", "II": "x"}[level]}},
                        name=f"level {level}",
                        legendgroup=level,
                        showlegend=line == 1,
                    ),
                    row=line,
                    col=1,
                )
            base = self.base.scores[trait].score
            figure.add_hline(
                y=base.estimate, line={"color": INK, "dash": "dot"}, row=line, col=1,
                annotation_text="base model", annotation_position="top right",
            )  # fmt: skip
        figure.update_yaxes(range=[0, 103], title_text="trait score (0–100)")
        figure.update_xaxes(title_text="trained on", row=len(traits))
        risen = [trait for trait in traits if _rises(self, trait)]
        finding = (
            f"overt trait data surely raises the trait: {html.escape(', '.join(risen) or 'none')}, of {len(traits)}"
        )
        incoherent = [
            f"{row.dataset} {row.level}" for row in self.models if not is_coherent(row.scores, self.min_coherence)
        ]
        subtitle = (
            f"{self.model_name}, {self.models[0].n_rows} rows a dataset, {self.n_questions} evaluation "
            f"questions, likelihood judge (proxy); {len(sets)} datasets; bars: 95 % bootstrap over questions"
            f"<br>coherence under {self.min_coherence:g}, where the score means little: "
            f"{html.escape(', '.join(incoherent) or 'none')}"
        )
        lay_out(figure, finding, subtitle, width=1000, height=300 + 260 * len(traits))
        return figure


def _rises(result: FinetuningShift, trait: str) -> bool:
    """Whether the interval after training on the trait's own overt data lies above the base model's."""
    after = next(r for r in result.models if (r.dataset, r.level) == (trait, "II")).scores[trait].score
    before = result.base.scores[trait].score
    return after.low > before.high


def _r(result: FinetuningShift, along: str, scored: str) -> str:
    return say(result.correlations[along][scored])
