"""A survey of traits: does the judge tell the two sides apart, and does steering raise the score?"""

from __future__ import annotations

import html
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.evaluation.confirmation import Confirmation
from persona_lens.judges.likelihood import LIKELIHOOD_JUDGE
from persona_lens.plots.style import COLORS, GREY, INK, add_intervals, lay_out
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics.interval import Interval
from persona_lens.vectors.persona_vector import ExtractionCounts


@dataclass(frozen=True)
class SurveyedTrait(Record):
    """One trait; counts and confirmation are None where no pair was kept, so that there is no vector."""

    trait: str
    works: bool
    failure: str
    auroc: Interval
    counts: ExtractionCounts | None
    confirmation: Confirmation | None


@dataclass(frozen=True, eq=False)
class TraitSurvey(Result):
    """What experiments/trait_survey.py finds."""

    min_auroc: float
    traits: tuple[SurveyedTrait, ...]

    @property
    def judges(self) -> dict[str, str]:
        """Each trait's judge, which the survey calibrates."""
        return {row.trait: LIKELIHOOD_JUDGE for row in self.traits}

    def plot(self) -> go.Figure:
        """Draw the judge's AUROC, and steering against random directions, with the traits that fail listed below."""
        ordered = sorted(self.traits, key=lambda row: (row.works, row.auroc.estimate))
        names = [html.escape(f"{row.trait} {'✓' if row.works else '✗'}") for row in ordered]
        figure = make_subplots(
            rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04, column_widths=[0.4, 0.6],
            subplot_titles=("does the judge tell the two sides apart?", "does steering raise the score?"),
        )  # fmt: skip
        add_intervals(
            figure, 1, names, [row.auroc for row in ordered], COLORS[2], "circle", "AUROC, held-out questions"
        )
        found = [(name, row.confirmation) for name, row in zip(names, ordered, strict=True) if row.confirmation]
        for key, color, symbol, label in (
            ("baseline", GREY, "line-ns-open", "unsteered"),
            ("random", COLORS[1], "x", "random directions, same norm"),
            ("steered", COLORS[3], "diamond", "steered with the vector"),
        ):
            add_intervals(figure, 2, [n for n, _ in found], [getattr(c, key) for _, c in found], color, symbol, label)
        figure.add_vline(x=0.9, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=1)
        figure.update_xaxes(title_text="AUROC", range=[0.45, 1.02], row=1, col=1)
        figure.update_xaxes(title_text="trait score (0–100), fresh questions", range=[-3, 103], row=1, col=2)
        # Fixes the order on the shared axis, whatever traces hold.
        figure.update_yaxes(categoryorder="array", categoryarray=names)
        failed = [f"{row.trait}: {row.failure[:130]}" for row in ordered if not row.works]
        works = len(ordered) - len(failed)
        title = f"{works} of {len(ordered)} traits can be told apart and steered above random directions"
        subtitle = "bars: 95 % bootstrap intervals over questions; scores by the likelihood judge (proxy)"
        height, bottom = 280 + 36 * len(ordered) + 18 * len(failed), 130 + 18 * len(failed)
        lay_out(figure, title, subtitle, width=1050, height=height, bottom=bottom, legend=-0.16)
        figure.update_layout(margin={"l": 120})
        figure.add_annotation(
            text="✗ " + "<br>✗ ".join(map(html.escape, failed)) if failed else "",
            xref="paper", yref="paper", x=0, y=0, yshift=-112, xanchor="left", yanchor="top", showarrow=False,
            align="left", font={"size": 12},
        )  # fmt: skip
        return figure
