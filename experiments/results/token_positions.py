"""Directions from several token positions, compared by steering."""

from __future__ import annotations

import html
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, GREY, add_points, lay_out, say
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.layer_sweep import JudgeNote, ScoreAndCoherence, VectorNote


@dataclass(frozen=True)
class PositionSetting(ScoreAndCoherence):
    """A direction at a layer and a coefficient, scored."""

    direction: str
    layer: int
    coefficient: float
    example: str


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
        figure = make_subplots(
            rows=2, cols=len(layers), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.06,
            horizontal_spacing=0.03, subplot_titles=heads,
        )  # fmt: skip
        for column, layer in enumerate(layers, start=1):
            for index, (direction, (label, color, symbol)) in enumerate(_TOKEN_POSITION_STYLES.items()):
                aside = 0.03 * (index - 1.5)  # so that the bars do not hide each other
                rows = [r for r in self.settings if r.direction == direction and r.layer == layer]
                x = [0.0, *(r.coefficient + aside for r in rows)]
                look = {
                    "mode": "lines+markers",
                    "marker": {"symbol": symbol, "size": 9},
                    "line": {"color": color, "width": 2, "dash": "dot" if direction == "random" else "solid"},
                }
                for row, key in ((1, "score"), (2, "coherence")):
                    y = [getattr(one, key) for one in (self.unsteered, *rows)]
                    add_points(figure, row, column, x, y, label, look, in_legend=row == column == 1)
        figure.update_yaxes(range=[-3, 103])
        figure.update_yaxes(title_text="trait score (0–100)", row=1, col=1)
        figure.update_yaxes(title_text="coherence (0–100)", row=2, col=1)
        figure.update_xaxes(title_text="coefficient (× response-mean norm)", row=2)
        subtitle = (
            f"{self.model_name}, {self.n_questions} questions, scored by the "
            f"{self.judge.name}; bars: 95 % bootstrap over questions"
        )
        lay_out(figure, _token_position_finding(self), subtitle, width=max(700, 360 * len(layers)), height=760)
        return figure


def _token_position_finding(result: TokenPositions) -> str:
    """Say whether the response mean steers best, averaged over every layer and coefficient."""
    others = {name: result.response_mean_less[name] for name in ("prompt_mean", "last_prompt")}
    scores = {name: one.score for name, one in others.items()}
    if any(one.is_missing for one in scores.values()):
        verdict = "too few scores to compare token positions"
    elif all(one.low > 0 for one in scores.values()):
        verdict = "at equal norm the response mean steers best"
    elif any(one.high < 0 for one in scores.values()):
        better = [_TOKEN_POSITION_STYLES[name][0] for name, one in scores.items() if one.high < 0]
        verdict = f"at equal norm the {' and the '.join(better)} steers further than the response mean"
    else:
        verdict = "at equal norm the response mean is not surely best"
    lines = [
        f"response mean less {_TOKEN_POSITION_STYLES[name][0]}, over all layers and coefficients: score "
        f"{say(one.score)}, coherence {say(one.coherence)}"
        for name, one in others.items()
    ]
    return f"{html.escape(result.trait)}: {verdict}<br><sup>{'<br>'.join(lines)}</sup>"
