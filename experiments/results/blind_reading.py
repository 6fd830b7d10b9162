"""What a person read in responses without knowing where they came from, and how far the judges agree."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, add_intervals, lay_out, say
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics import Interval


@dataclass(frozen=True)
class ReadTrait(Record):
    """One trait: mean ratings by condition, AUROC against the unsteered model, and judges' rank correlations."""

    trait: str
    counts: dict[str, int]
    means: dict[str, Interval]
    aurocs: dict[str, Interval]
    correlations: dict[str, Interval]


@dataclass(frozen=True, eq=False, repr=False)
class BlindReading(Result):
    """What experiments/blind_reading.py finds: ratings 0 to 100, ``read blind by one developer``."""

    reader: str
    traits: tuple[ReadTrait, ...]

    def to_markdown(self) -> str:
        """Write each trait's mean ratings, AUROCs against unsteered and rank correlations with the judges."""
        lines = []
        for one in self.traits:
            lines += [
                f"### {one.trait}",
                "",
                "| condition | texts | mean rating | AUROC v unsteered |",
                "|---|---|---|---|",
            ]
            for name, mean in one.means.items():
                lines.append(f"| {name} | {one.counts[name]} | {mean:.0f} | {one.aurocs.get(name, '–')} |")
            correlations = "; ".join(f"{judge} {say(r)}" for judge, r in one.correlations.items())
            lines += ["", f"Rank correlation of the ratings with each judge's scores: {correlations}.", ""]
        return "\n".join(lines)

    def correlations_to_markdown(self) -> str:
        """Write each judge's rank correlation with the ratings, trait by trait."""
        lines = ["| trait | judge | rank correlation with the reading |", "|---|---|---|"]
        for one in self.traits:
            lines += [f"| {one.trait} | {judge} | {r} |" for judge, r in one.correlations.items()]
        return "\n".join(lines)

    def plot(self) -> go.Figure:
        """Draw the mean rating of each condition, a panel a trait, with the judges' rank correlations."""
        heads = [
            f"<b>{html.escape(one.trait)}</b><br><sup>"
            + "<br>".join(f"{_shorten(judge, one.trait)}: r {say(r)}" for judge, r in one.correlations.items())
            + "</sup>"
            for one in self.traits
        ]
        n_columns = min(3, len(heads))
        n_rows = math.ceil(len(heads) / n_columns)
        figure = make_subplots(
            rows=n_rows, cols=n_columns, shared_yaxes=True, horizontal_spacing=0.04,
            vertical_spacing=0.26 if n_rows > 1 else 0, subplot_titles=heads,
        )  # fmt: skip
        for place, one in enumerate(self.traits):
            line, column = place // n_columns + 1, place % n_columns + 1
            names = [f"{name} ({one.counts[name]})" for name in one.means]
            means = list(one.means.values())
            add_intervals(figure, column, names, means, COLORS[2], "circle", "mean rating", line=line)
            plain = one.means["unsteered"].estimate
            figure.add_vline(x=plain, line={"color": INK, "dash": "dot", "width": 1}, row=line, col=column)
        figure.update_yaxes(autorange="reversed")
        figure.update_xaxes(title_text="rating (0–100)", range=[-3, 103])
        figure.update_traces(showlegend=False)
        steered = next(iter(self.traits[0].aurocs))
        more = [one.trait for one in self.traits if one.aurocs[steered].low > 0.5]
        less = [one.trait for one in self.traits if one.aurocs[steered].high < 0.5]
        seen = [f"{word} {', '.join(names)}" for word, names in (("more", more), ("less", less)) if names]
        which = steered if steered.startswith("steered") else f"under the {steered}"
        title = f"A blind reader of texts {which} surely sees {' and '.join(seen) or 'no difference'}"
        subtitle = (
            f"{self.model_name}; {html.escape(self.reader)}; r: Spearman with the ratings; 95 % intervals over texts"
        )
        width = max(800, 400 * n_columns + 160)
        lay_out(figure, html.escape(title), subtitle, width=width, height=190 + 400 * n_rows)
        figure.update_layout(margin={"l": 190})
        return figure


def _shorten(judge: str, trait: str) -> str:
    """Write a judge's name so that it fits over its panel."""
    return html.escape(judge.removeprefix("embedding judge ").removesuffix(f" for {trait}"))
