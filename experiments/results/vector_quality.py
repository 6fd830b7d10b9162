"""Does what can be measured of a vector before steering say how well it will steer?"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from scipy.stats import rankdata

from persona_lens.plots.style import COLORS, GREY, INK, add_crosses, add_intervals, lay_out
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.verdicts import say_verdicts
from persona_lens.statistics import Interval, bootstrap_spearman_r
from persona_lens.vectors.quality.card import VectorQuality

NAMED_IN_ADVANCE = "agreement of differences"
"""The predictor of arXiv 2505.22637, named before any correlation was computed."""
PREDICTORS = (
    NAMED_IN_ADVANCE, "cosine of two differences", "cosine of two halves", "angle to that of endless pairs",
    "held-out AUROC", "held-out d'", "cosine with the nearest other trait", "kurtosis of the unembedding",
    "length of the push", "pairs that the judge kept",
)  # fmt: skip
"""What was tried: of the pairs alone, but for the last two. The push is the coefficient times the direction's length,
as a share of the typical length of an activation."""
OUTCOMES = {"rise": "points above unsteered", "above_random": "points above random directions"}
_N_SHUFFLES = 10_000


@dataclass(frozen=True)
class PredictedTrait(Record):
    """One trait: what was measured of its vector, and what steering with it did in the survey.

    Args:
        trait: Its name.
        layer: Where the survey steered.
        coefficient: How far.
        judge: Whose scores: the survey's that chose.
        pairs: Pairs that were measured.
        kept: Those of them that the survey's judge kept for its vector.
        predictors: What was measured at that layer.
        agreement: The predictor named in advance, with its interval.
        measured: By outcome, what the survey found.
    """

    trait: str
    layer: int
    coefficient: float
    judge: str
    pairs: int
    kept: int
    predictors: dict[str, float]
    agreement: Interval
    measured: dict[str, Interval]


@dataclass(frozen=True, eq=False)
class VectorQualities(Result):
    """What experiments/vector_quality.py finds, with the cards of some bundled vectors."""

    traits: tuple[PredictedTrait, ...]
    cards: tuple[VectorQuality, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The predictors."""
        return tuple(self.traits[0].predictors)

    def correlate(self, predictor: str, outcome: str) -> Interval:
        """Return Spearman's rank correlation over traits; missing with fewer than four of them."""
        x, y = self._collect(predictor, outcome)
        if len(x) < 4:
            return Interval.missing()
        return bootstrap_spearman_r(torch.tensor(x), torch.tensor(y))

    def _collect(self, predictor: str, outcome: str) -> tuple[list[float], list[float]]:
        pairs = [(one.predictors[predictor], one.measured[outcome].estimate) for one in self.traits]
        found = [(x, y) for x, y in pairs if not math.isnan(x) and not math.isnan(y)]
        return [x for x, _ in found], [y for _, y in found]

    def find_largest(self) -> tuple[str, str, float]:
        """Return predictor, outcome and value of the correlation that is furthest from zero."""
        tried = [(name, outcome, self.correlate(name, outcome).estimate) for name in self.names for outcome in OUTCOMES]
        return max(tried, key=lambda one: -1.0 if math.isnan(one[2]) else abs(one[2]))

    def shuffle(self) -> tuple[float, float]:
        """Shuffle traits: the 95th percentile of the largest correlation, and how often it reaches the one found."""
        whole = [one for one in self.traits if not any(map(math.isnan, one.predictors.values()))]
        if len(whole) < 4:
            return math.nan, math.nan
        x = _rank([[one.predictors[name] for one in whole] for name in self.names])
        y = _rank([[one.measured[outcome].estimate for one in whole] for outcome in OUTCOMES])
        rng = np.random.default_rng(0)
        orders = [rng.permutation(len(whole)) for _ in range(_N_SHUFFLES)]
        largest = np.array([np.abs(x @ y[:, order].T).max() for order in orders])
        found = np.abs(x @ y.T).max()
        return float(np.quantile(largest, 0.95)), float((largest >= found - 1e-12).mean())

    def say_finding(self) -> str:
        """Say how the predictor that was named in advance does, and the best of those tried against chance."""
        named = self.correlate(NAMED_IN_ADVANCE, "rise")
        sure = "predicts" if named.low > 0 or named.high < 0 else "does not surely predict"
        name, outcome, value = self.find_largest()
        _, share = self.shuffle()
        n = len(self.names) * len(OUTCOMES)
        return (
            f"Over {len(self.traits)} traits agreement of differences {sure} how far steering raises the score "
            f"(r = {named}); the largest of {n} correlations, {value:.2f} ({name}, {OUTCOMES[outcome]}), comes of "
            f"shuffled traits in {100 * share:.0f} % of draws"
        )

    def plot(self) -> go.Figure:
        """Draw every predictor's correlation with both outcomes, and the traits along the one named in advance."""
        figure = make_subplots(
            rows=1, cols=2, column_widths=[0.44, 0.56], horizontal_spacing=0.1,
            subplot_titles=("every predictor that was tried", "the one named in advance"),
        )  # fmt: skip
        names = list(reversed(self.names))
        looks = (("circle", COLORS[2], 0.13), ("square", COLORS[1], -0.13))
        for outcome, (symbol, color, offset) in zip(OUTCOMES, looks, strict=True):
            found = [self.correlate(name, outcome) for name in names]
            label = f"correlation with {OUTCOMES[outcome]}"
            add_intervals(figure, 1, [row + offset for row in range(len(names))], found, color, symbol, label)
        figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, row=1, col=1)
        chance, _ = self.shuffle()
        for end in (-chance, chance):
            figure.add_vline(x=end, line={"color": GREY, "dash": "dash", "width": 1}, row=1, col=1)
        figure.add_vline(x=0, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=1)
        for judged, color, symbol in (("a judge that was measured", COLORS[2], "circle"), ("none", GREY, "x")):
            rows = [one for one in self.traits if (", " in one.judge) == (judged != "none")]
            if rows:
                x, y = [one.agreement for one in rows], [one.measured["rise"] for one in rows]
                label = f"traits scored by {judged}" if judged != "none" else "traits without a measured judge"
                add_crosses(figure, 1, 2, x, y, label, {"color": color, "symbol": symbol}, in_legend=True)
        shown = [one for one in self.traits if not one.agreement.is_missing]
        places = place_labels([(one.agreement.estimate, one.measured["rise"].estimate) for one in shown])
        for one, (across, up) in zip(shown, places, strict=True):
            figure.add_annotation(
                x=one.agreement.estimate, y=one.measured["rise"].estimate, text=html.escape(one.trait),
                ax=across, ay=-up, xanchor="left" if across > 0 else "right", arrowwidth=0.7, arrowcolor=GREY,
                arrowhead=0, standoff=6, font={"size": 11}, bgcolor="rgba(255,255,255,0.7)", row=1, col=2,
            )  # fmt: skip
        figure.add_hline(y=0, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=2)
        figure.update_xaxes(title_text="Spearman's r over traits", range=[-1.05, 1.05], row=1, col=1)
        figure.update_xaxes(title_text="mean cosine of a difference with the others' mean", row=1, col=2)
        figure.update_yaxes(title_text="points above unsteered (0–100)", row=1, col=2)
        subtitle = (
            f"{self.model_name}; responses, layers, coefficients and scores of the trait survey; bars: 95 % bootstrap "
            "intervals (left over traits, right over questions);<br>dashed: what the largest of all these correlations "
            "reaches in 5 % of draws when traits are shuffled"
        )
        lay_out(figure, self.say_finding(), subtitle, width=1250, height=860, bottom=130, legend=-0.14)
        figure.update_layout(margin={"l": 230})
        say_verdicts(
            figure, {one.trait: one.judge for one in self.traits}, {}
        )  # of this figure alone, not of the cards
        return figure

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw the correlations, and each card."""
        return {"": self.plot(), **{f"_{card.trait}": card.plot() for card in self.cards}}

    def to_markdown(self) -> str:
        """Write the correlations, the traits, then the figure."""
        heads = [f"Spearman's r with {said}" for said in OUTCOMES.values()]
        lines = [f"| predictor | {' | '.join(heads)} |", "|---|---|---|"]
        for name in self.names:
            found = [str(self.correlate(name, outcome)) for outcome in OUTCOMES]
            lines.append(f"| {name} | {' | '.join(found)} |")
        chance, _ = self.shuffle()
        n = len(self.names) * len(OUTCOMES)
        lines += [
            "",
            f"{self.say_finding()}. {n} correlations were tried; with shuffled traits the largest of them is above "
            f"{chance:.2f} in 5 % of draws, so only one beyond that would speak against chance.",
            "",
            "| trait | layer × coefficient | pairs (kept by the survey's judge) | agreement of differences | "
            f"{' | '.join(OUTCOMES.values())} |",
            "|---|---|---|---|---|---|",
        ]
        for one in sorted(self.traits, key=lambda one: -one.measured["rise"].estimate):
            seen = " | ".join(f"{one.measured[outcome]:.0f}" for outcome in OUTCOMES)
            where = f"{one.layer} × {one.coefficient:g}"
            lines.append(f"| {one.trait} | {where} | {one.pairs} ({one.kept}) | {one.agreement} | {seen} |")
        return "\n".join([*lines, "", "![Predicted and measured](../../figures/vector_quality.png)"])

    def cards_to_markdown(self) -> str:
        """Write each card with its figure."""
        parts = []
        for card in self.cards:
            name = html.escape(card.trait)
            picture = f"![Card of {name}](../../figures/vector_quality_{name}.png)"
            parts.append(f"### {name}\n\n{card.to_markdown()}\n\n{picture}\n")
        return "\n".join(parts)


def place_labels(points: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """Return how far right of each point and above it, in pixels, its label stands, so that labels do not meet.

    Each takes the nearest place that is free of those before it, on a canvas of about 550 times 450 pixels.
    """
    x, y = (np.array(side, dtype=float) for side in zip(*points, strict=True))
    x, y = (side / (np.ptp(side) or 1.0) * size for side, size in ((x, 420), (y, 130)))
    tries = [(way * 14, up) for up in (12, -12, 28, -28, 44, -44, 60, -60, 76, -76, 92) for way in (1, -1)]
    places: list[tuple[int, int]] = []
    taken: list[tuple[float, float]] = []
    for at_x, at_y in zip(x, y, strict=True):
        middles = [(at_x + across + (40 if across > 0 else -40), at_y + up) for across, up in tries]
        free = [
            all(abs(mx - ox) > 85 or abs(my - oy) > 15 for ox, oy in taken)
            and all(abs(mx - px) > 45 or abs(my - py) > 12 for px, py in zip(x, y, strict=True))
            for mx, my in middles
        ]
        chosen = free.index(True) if True in free else 0
        places.append(tries[chosen])
        taken.append(middles[chosen])
    return places


def _rank(values: Sequence[Sequence[float]]) -> np.ndarray:
    """Return ranks of each row, shifted and scaled so that products of rows are Spearman's correlations."""
    ranks = rankdata(np.array(values), axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    scaled: np.ndarray = ranks / np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-12)
    return scaled
