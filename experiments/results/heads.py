"""Which attention heads tell a trait's answers apart, and what shifting them does."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.plots.style import COLORS, GREY, add_points, lay_out
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics import Interval, bootstrap_mean, mean_over_directions_interval
from persona_lens.vectors import HeadChoice

CHOSEN, OTHER_HEADS, OTHER_DIRECTIONS = "chosen heads", "random heads", "random directions at the chosen heads"


@dataclass(frozen=True, eq=False)
class Shifted(Record):
    """What a shift of heads does to the likelihood of written answers, in nats a token.

    Args:
        way: What is shifted.
        coefficient: By how many standard deviations.
        preference: Log-likelihood of the overt answer less that of the opposite one.
        ordinary: Log-likelihood of the ordinary answer: what the shift costs.
    """

    way: str
    coefficient: float
    preference: Float[Tensor, "draw question"]
    ordinary: Float[Tensor, "draw question"]


@dataclass(frozen=True, eq=False)
class Heads(Result):
    """What experiments/heads.py finds of one trait."""

    trait: str
    choice: HeadChoice
    plain: Shifted
    shifted: tuple[Shifted, ...]

    def measure(self, one: Shifted, name: str) -> Interval:
        """Return how far a shift moves preference or ordinary likelihood, over questions and, if several, draws."""
        moved = getattr(one, name) - getattr(self.plain, name)
        return bootstrap_mean(moved[0]) if len(moved) == 1 else mean_over_directions_interval(moved)

    def list_advantages(self) -> list[tuple[str, float, Interval]]:
        """Return how much further the chosen heads move the preference than each random way at its coefficient."""
        chosen = {one.coefficient: one for one in self.shifted if one.way == CHOSEN}
        return [
            (one.way, one.coefficient, mean_over_directions_interval(
                chosen[one.coefficient].preference - one.preference
            ))
            for one in self.shifted if one.way != CHOSEN
        ]  # fmt: skip

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw what shifting does, and the map of the heads."""
        return {"": self.plot(), "_map": self.choice.plot()}

    def plot(self) -> go.Figure:
        """Draw preference and cost over coefficients."""
        figure = make_subplots(
            rows=1, cols=2, horizontal_spacing=0.1,
            subplot_titles=("trait: overt against opposite answer", "cost: ordinary answer"),
        )  # fmt: skip
        looks = {CHOSEN: (COLORS[2], "circle"), OTHER_HEADS: (COLORS[1], "square"), OTHER_DIRECTIONS: (GREY, "x")}
        for column, name in ((1, "preference"), (2, "ordinary")):
            for index, (way, (color, symbol)) in enumerate(looks.items()):
                of_way = sorted((one for one in self.shifted if one.way == way), key=lambda one: one.coefficient)
                # Set apart a little, or their bars would lie on one another.
                x = [one.coefficient + 0.3 * (index - 1) for one in of_way]
                look = {
                    "mode": "markers+lines" if way == CHOSEN else "markers",
                    "marker": {"color": color, "symbol": symbol, "size": 10}, "line": {"color": color},
                }  # fmt: skip
                found = [self.measure(one, name) for one in of_way]
                add_points(figure, 1, column, x, found, way, look, in_legend=column == 1)
            figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dash"}, row=1, col=column)
        figure.update_xaxes(title_text="shift (standard deviations of each head)")
        figure.update_yaxes(title_text="change of log-likelihood (nats a token)")
        draws = max(len(one.preference) for one in self.shifted)
        subtitle = (
            f"{self.model_name}; {len(self.choice.heads)} of {self.choice.accuracies.numel()} heads, chosen on "
            f"{self.choice.n_questions} questions; tried on {self.plain.preference.shape[1]} others, shifted at every "
            f"token; {draws} random draws of as many heads, and of directions at the chosen heads with steps as long; "
            "bars: 95 % bootstrap over questions, and draws"
        )
        lay_out(figure, self.say_finding(), subtitle, width=1050, height=520, bottom=110, legend=-0.22)
        return figure

    def say_finding(self) -> str:
        """Say whether shifting moves the preference, and whether that is more than random shifts do."""
        strongest = max((one for one in self.shifted if one.way == CHOSEN), key=lambda one: one.coefficient)
        moved, cost = self.measure(strongest, "preference"), self.measure(strongest, "ordinary")
        sign = "raises" if moved.low > 0 else "lowers" if moved.high < 0 else "does not surely move"
        beaten = [way for way, _, above in self.list_advantages() if above.low > 0]
        random = (
            "more than random heads and directions do" if len(beaten) == len(self.list_advantages())
            else f"surely more than {' and '.join(beaten)} alone" if beaten
            else "not surely more than random heads or directions do"
        )  # fmt: skip
        return (
            f"{html.escape(self.trait)}: shifting {len(self.choice.heads)} heads by {strongest.coefficient:g} sd "
            f"{sign} the preference for its answers ({moved} nats a token),<br>{random}; ordinary answers: {cost}"
        )


def heads_to_markdown(results: Sequence[Heads]) -> str:
    """Write what each shift does, a row a trait, way and coefficient; then the figures."""
    lines = [
        "| trait | shifted | by (sd) | overt − opposite, nats a token | ordinary answer | chosen heads' advantage |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        above = {(way, coefficient): interval for way, coefficient, interval in result.list_advantages()}
        for one in result.shifted:
            found = [result.measure(one, name) for name in ("preference", "ordinary")]
            advantage = above.get((one.way, one.coefficient), "–")
            lines.append(
                f"| {result.trait} | {one.way} | {one.coefficient:g} | {found[0]} | {found[1]} | {advantage} |"
            )
    figures = [
        f"![{title}, {one.trait}](../../figures/heads_{one.trait}{ending}.png)"
        for one in results
        for title, ending in (("Shifted heads", ""), ("Map of heads", "_map"))
    ]
    return "\n".join([*lines, "", *figures])
