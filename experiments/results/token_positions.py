"""Directions from several token positions, compared by steering."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, GREY, add_points, lay_out, say
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.layer_sweep import JudgeNote, ScoreAndCoherence, VectorNote
from persona_lens.statistics.interval import Interval


@dataclass(frozen=True)
class PositionSetting(ScoreAndCoherence):
    """A direction at a layer and a coefficient, scored; ``second`` is the second judge's score."""

    direction: str
    layer: int
    coefficient: float
    example: str
    second: Interval | None = None


_TOKEN_POSITION_STYLES = {
    "response_mean": ("response mean", COLORS[2], "circle"),
    "prompt_mean": ("prompt mean", COLORS[1], "square"),
    "last_prompt": ("last prompt token", COLORS[4], "diamond"),
    "random": ("random direction", GREY, "x"),
}


@dataclass(frozen=True, eq=False)
class TokenPositions(Result):
    """What experiments/token_positions.py finds; numbers by direction have one value a layer."""

    trait: str
    judge: JudgeNote
    vector: VectorNote
    layers: tuple[int, ...]
    coefficients: tuple[float, ...]
    norms: dict[str, tuple[float, ...]]
    cosine_with_response_mean: dict[str, tuple[float, ...]]
    unsteered: ScoreAndCoherence
    settings: tuple[PositionSetting, ...]
    response_mean_less: dict[str, ScoreAndCoherence]
    n_questions: int
    n_responses: int
    n_unscored: int
    second: JudgeNote | None = None
    unsteered_second: Interval | None = None
    response_mean_less_second: dict[str, Interval] = field(default_factory=dict)

    @property
    def judges(self) -> dict[str, str]:
        """The trait's judge."""
        return {self.trait: self.judge.name}

    def plot(self) -> go.Figure:
        """Draw score and coherence under steering with directions from each token position, one column a layer.

        Figure 11 of the paper; bars are 95 % bootstrap intervals over questions.
        """
        layers = self.layers
        cosines = self.cosine_with_response_mean
        heads = [
            f"layer {layer}<br><sup>cosine with response mean: prompt {cosines['prompt_mean'][i]:.2f}, "
            f"last {cosines['last_prompt'][i]:.2f}</sup>"
            for i, layer in enumerate(layers)
        ]
        rows = [("score", "trait score (0–100)"), ("coherence", "coherence (0–100)")]
        if self.second is not None:
            rows[:1] = [("score", "score, first judge"), ("second", "score, second judge")]
        figure = make_subplots(
            rows=len(rows), cols=len(layers), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.04,
            horizontal_spacing=0.03, subplot_titles=heads,
        )  # fmt: skip
        for column, layer in enumerate(layers, start=1):
            for index, (direction, (label, color, symbol)) in enumerate(_TOKEN_POSITION_STYLES.items()):
                aside = 0.03 * (index - 1.5)  # so that the bars do not hide each other
                settings = [r for r in self.settings if r.direction == direction and r.layer == layer]
                x = [0.0, *(r.coefficient + aside for r in settings)]
                look = {
                    "mode": "lines+markers",
                    "marker": {"symbol": symbol, "size": 9},
                    "line": {"color": color, "width": 2, "dash": "dot" if direction == "random" else "solid"},
                }
                for line, (key, _) in enumerate(rows, start=1):
                    unsteered = self.unsteered_second if key == "second" else getattr(self.unsteered, key)
                    y = [one or Interval.missing() for one in (unsteered, *(getattr(r, key) for r in settings))]
                    add_points(figure, line, column, x, y, label, look, in_legend=line == column == 1)
        figure.update_yaxes(range=[-3, 103])
        for line, (_, name) in enumerate(rows, start=1):
            figure.update_yaxes(title_text=name, row=line, col=1)
        figure.update_xaxes(title_text="coefficient (× response-mean norm)", row=len(rows))
        readers = self.judge.name if self.second is None else f"{self.judge.name}; second: {self.second.name}"
        subtitle = (
            f"{self.model_name}, {self.n_questions} questions, scored by the {readers}; "
            "bars: 95 % bootstrap over questions"
        )
        height = 380 + 190 * len(rows)
        lay_out(figure, _token_position_finding(self), subtitle, width=max(700, 360 * len(layers)), height=height)
        return figure


def _token_position_finding(result: TokenPositions) -> str:
    """Say whether the response mean steers best, averaged over every layer and coefficient."""
    others = {name: result.response_mean_less[name] for name in ("prompt_mean", "last_prompt")}
    seen = {name: [one.score] for name, one in others.items()}
    who = "its judge"
    if result.second is not None:
        who = "both judges"
        for name, scores in seen.items():
            scores.append(result.response_mean_less_second[name])
    better = [_TOKEN_POSITION_STYLES[name][0] for name, scores in seen.items() if all(one.high < 0 for one in scores)]
    if any(one.is_missing for scores in seen.values() for one in scores):
        verdict = "too few scores to compare token positions"
    elif all(one.low > 0 for scores in seen.values() for one in scores):
        verdict = f"at equal norm the response mean steers best for {who}"
    elif better:
        verdict = f"at equal norm the {' and the '.join(better)} steers further than the response mean for {who}"
    else:
        verdict = f"at equal norm no token position surely steers best for {who}"
    lines = [
        f"response mean less {_TOKEN_POSITION_STYLES[name][0]}, over all layers and coefficients: score "
        f"{' and '.join(map(say, seen[name]))}, coherence {say(one.coherence)}"
        for name, one in others.items()
    ]
    return f"{html.escape(result.trait)}: {verdict}<br><sup>{'<br>'.join(lines)}</sup>"


def positions_to_markdown(found: Sequence[TokenPositions]) -> str:
    """Write how far the response mean is ahead of the prompt's positions, a row a trait and judge; then the figures."""
    lines = [
        "| trait | judge | response mean less prompt mean | less last prompt token | less random direction | "
        "coherence: less prompt mean | less last prompt token |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        coherence = [format(one.response_mean_less[name].coherence, ".0f") for name in ("prompt_mean", "last_prompt")]
        for judge, by_name in (
            (one.judge, {name: both.score for name, both in one.response_mean_less.items()}),
            (one.second, one.response_mean_less_second),
        ):
            if judge is not None:
                cells = [format(by_name[name], ".0f") for name in ("prompt_mean", "last_prompt", "random")]
                lines.append(f"| {one.trait} | {judge.name} | {' | '.join([*cells, *coherence])} |")
    figures = [f"![Token positions, {one.trait}](../../figures/token_positions_{one.trait}.png)" for one in found]
    return "\n".join([*lines, "", *figures])
