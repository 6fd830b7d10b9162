"""How often a monitor's thresholds for responses are exceeded, where nothing is amiss and where something is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, GREY, add_points, lay_out
from persona_lens.reproduction.figures import Result
from persona_lens.statistics.interval import Interval

LOOKS = ((COLORS[2], "circle"), (COLORS[3], "diamond"), (COLORS[5], "square"), (COLORS[4], "x"))
HELD_OUT = "everyday questions"


@dataclass(frozen=True)
class AlarmShare:
    """Of one trait under one condition, percentages above a quantile's thresholds, with intervals over questions.

    ``tokens``: of single tokens; ``answers``: of answers whose running mean is above at some token.
    """

    trait: str
    layer: int
    condition: str
    quantile: float
    tokens: Interval
    answers: Interval
    n_answers: int
    n_questions: int


@dataclass(frozen=True, eq=False)
class Alarms(Result):
    """What experiments/alarms.py finds."""

    shares: tuple[AlarmShare, ...]

    @property
    def traits(self) -> tuple[str, ...]:
        """The traits, in their order."""
        return tuple(dict.fromkeys(one.trait for one in self.shares))

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions, in their order."""
        return tuple(dict.fromkeys(one.condition for one in self.shares))

    def find(self, trait: str, condition: str, quantile: float) -> AlarmShare:
        """Return one trait's shares under a condition."""
        wanted = (trait, condition, quantile)
        return next(one for one in self.shares if (one.trait, one.condition, one.quantile) == wanted)

    def plot(self) -> go.Figure:
        """Draw the shares of answers with an alarm, by condition and trait, at each threshold."""
        quantiles = sorted({one.quantile for one in self.shares})
        heads = [f"answers above the {100 * q:g} % threshold" for q in quantiles]
        figure = make_subplots(rows=1, cols=len(quantiles), subplot_titles=heads, horizontal_spacing=0.06)
        for column, quantile in enumerate(quantiles, start=1):
            for index, trait in enumerate(self.traits):
                color, symbol = LOOKS[index % len(LOOKS)]
                aside = 0.2 * (index - (len(self.traits) - 1) / 2)
                at = [place + aside for place in range(len(self.conditions))]
                shares = [self.find(trait, name, quantile).answers for name in self.conditions]
                look = {"mode": "markers", "marker": {"symbol": symbol, "size": 10, "color": color}}
                add_points(figure, 1, column, at, shares, trait, look, in_legend=column == 1)
            figure.add_hline(y=100 * (1 - quantile), line={"dash": "dot", "color": GREY}, row=1, col=column)
            figure.update_xaxes(
                tickvals=list(range(len(self.conditions))), tickangle=30, row=1, col=column,
                ticktext=[name.replace(": ", ":<br>") for name in self.conditions],
            )  # fmt: skip
            figure.update_yaxes(range=[-4, 104], title_text="answers (%)" if column == 1 else "", row=1, col=column)
        lay_out(figure, self._find(quantiles), self._describe(), width=1200, height=640, bottom=170, legend=-0.42)
        return figure

    def _find(self, quantiles: Sequence[float]) -> str:
        parts = []
        for quantile in quantiles:
            held = [self.find(trait, HELD_OUT, quantile).answers for trait in self.traits]
            low, high = min(one.estimate for one in held), max(one.estimate for one in held)
            parts.append(f"{low:.1f} to {high:.1f} % (meant: {100 * (1 - quantile):g} %)")
        return f"Of ordinary answers to unseen questions, {' and '.join(parts)} raise an alarm"

    def _describe(self) -> str:
        first = self.shares[0]
        read = ", ".join(f"{one} at layer {self.find(one, HELD_OUT, first.quantile).layer}" for one in self.traits)
        return (
            f"{self.model_name}, {read}. Thresholds from the answers to half of {first.n_questions} everyday "
            f"questions, tried on the other half, and the reverse ({first.n_answers} answers). An answer counts where "
            "its running mean, from the eighth token on, is above at any token; dotted: what the threshold means. "
            "'The text alone' leaves out what steering itself adds to the reading. Bars: 95 % bootstrap over questions"
        )


def alarms_to_markdown(found: Sequence[Alarms]) -> str:
    """Write the shares by trait and condition, and the figure."""
    lines = []
    for one in found:
        quantiles = sorted({share.quantile for share in one.shares})
        heads = [f"{what}, {100 * q:g} %" for q in quantiles for what in ("tokens above (%)", "answers above (%)")]
        lines += [f"| trait | condition | answers | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
        for trait in one.traits:
            for condition in one.conditions:
                shares = [one.find(trait, condition, quantile) for quantile in quantiles]
                cells = [str(value) for share in shares for value in (share.tokens, share.answers)]
                lines.append(f"| {trait} | {condition} | {shares[0].n_answers} | {' | '.join(cells)} |")
        lines += ["", "![Alarms](../../figures/alarms.png)"]
    return "\n".join(lines)
