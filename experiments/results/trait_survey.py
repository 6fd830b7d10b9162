"""A survey of traits: is there a judge to believe, and does steering raise its score?"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.evaluation.confirmation import Confirmation
from persona_lens.judges.likelihood import LIKELIHOOD_JUDGE
from persona_lens.plots.style import COLORS, GREY, add_intervals, lay_out
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.vectors.persona_vector import ExtractionCounts


@dataclass(frozen=True)
class SurveyedTrait(Record):
    """One trait.

    Args:
        trait: Its name.
        failure: Why it cannot be said to work; empty if it does.
        verdicts: By judge, what validation found of it; empty where no judge was measured.
        counts: Pairs that the vector was made from; None where none was kept, so that there is no vector.
        confirmations: By judge, what the chosen setting does to fresh questions.
    """

    trait: str
    failure: str
    verdicts: dict[str, str]
    counts: ExtractionCounts | None
    confirmations: dict[str, Confirmation]

    @property
    def works(self) -> bool:
        """Whether two judges that may be believed see steering do what random directions do not."""
        return not self.failure


@dataclass(frozen=True, eq=False)
class TraitSurvey(Result):
    """What experiments/trait_survey.py finds."""

    traits: tuple[SurveyedTrait, ...]

    @property
    def judges(self) -> dict[str, str]:
        """Each trait's judge that chose."""
        return {row.trait: next(iter(row.confirmations), LIKELIHOOD_JUDGE) for row in self.traits}

    def plot(self) -> go.Figure:
        """Draw each judge's scores of the choice, unsteered and under random directions; why traits fail, below."""
        ordered = sorted(self.traits, key=lambda row: (row.works, *_rises(row)))
        names = [html.escape(f"{row.trait} {'✓' if row.works else '✗'}") for row in ordered]
        heads = ("by the judge that chose layer and coefficient", "by one of another model")
        figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=heads)
        for column in (1, 2):
            found = [
                (name, list(row.confirmations.values())[column - 1])
                for name, row in zip(names, ordered, strict=True)
                if len(row.confirmations) >= column
            ]
            for key, color, symbol, label in (
                ("baseline", GREY, "line-ns-open", "unsteered"),
                ("random", COLORS[1], "x", "random directions, same norm"),
                ("steered", COLORS[3], "diamond", "steered with the vector"),
            ):
                shown = [getattr(one, key) for _, one in found]
                add_intervals(figure, column, [name for name, _ in found], shown, color, symbol, label)
                figure.data[-1].update(legendgroup=label, showlegend=column == 1)
        figure.update_xaxes(title_text="trait score (0–100), fresh questions", range=[-3, 103])
        # Fixes the order on the shared axis, whatever traces hold.
        figure.update_yaxes(categoryorder="array", categoryarray=names)
        failed = [f"{row.trait}: {row.failure[:200]}" for row in ordered if not row.works]
        works = len(ordered) - len(failed)
        title = f"for {works} of {len(ordered)} traits two judges see steering raise the score above random directions"
        subtitle = "bars: 95 % bootstrap intervals over questions (random directions: over directions too)"
        height, bottom = 280 + 36 * len(ordered) + 18 * len(failed), 130 + 18 * len(failed)
        lay_out(figure, title, subtitle, width=1050, height=height, bottom=bottom, legend=-0.16)
        figure.update_layout(margin={"l": 120})
        figure.add_annotation(
            text="✗ " + "<br>✗ ".join(map(html.escape, failed)) if failed else "",
            xref="paper", yref="paper", x=0, y=0, yshift=-112, xanchor="left", yanchor="top", showarrow=False,
            align="left", font={"size": 12},
        )  # fmt: skip
        return figure


def _rises(row: SurveyedTrait) -> tuple[int, float]:
    """Return how many judges read the trait, and the least rise that one of them sees: for an order."""
    rises = [one.rise.estimate for one in row.confirmations.values()]
    return len(rises), min(rises, default=0.0)


def survey_to_markdown(found: Sequence[TraitSurvey]) -> str:
    """Write what each judge sees of each trait, those that work first; then the figure."""
    lines = [
        "| trait | pairs kept | layer × coefficient | judge | unsteered | random directions | steered | coherence | "
        "verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        for row in sorted(one.traits, key=lambda row: (row.works, *_rises(row)), reverse=True):
            kept = "–" if row.counts is None else f"{row.counts.kept} of {row.counts.pairs}"
            if not row.confirmations:
                lines.append(f"| {row.trait} | {kept} | – | – | – | – | – | – | {row.failure} |")
            for judge, seen in row.confirmations.items():
                scores = " | ".join(f"{score:.0f}" for score in (seen.baseline, seen.random, seen.steered))
                where = f"{seen.layer} × {seen.coefficient:g}"
                lines.append(
                    f"| {row.trait} | {kept} | {where} | {judge} | {scores} | {seen.coherence:.0f} | "
                    f"{row.failure or 'works'} |"
                )
    return "\n".join([*lines, "", *["![Survey of the bundled traits](../../figures/trait_survey.png)" for _ in found]])
