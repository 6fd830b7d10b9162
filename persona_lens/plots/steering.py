"""Token positions and ways of steering, compared."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, GREY, INK, error_bars, lay_out, name_model, say

_TOKEN_POSITION_STYLES = {
    "response_mean": ("response mean", COLORS[2], "circle"),
    "prompt_mean": ("prompt mean", COLORS[1], "square"),
    "last_prompt": ("last prompt token", COLORS[4], "diamond"),
    "random": ("random direction", GREY, "x"),
}


_METHOD_STYLES = {
    "one layer": (COLORS[2], "circle"),
    "all layers": (COLORS[1], "square"),
    "capping": (COLORS[5], "diamond"),
    "ablation": (COLORS[4], "x"),
}


def plot_token_positions(content: Mapping[str, Any]) -> go.Figure:
    """Draw score and coherence under steering with directions from several token positions, one column a layer.

    Args:
        content: What experiments/token_positions.py writes.

    Returns:
        A figure; bars are 95 % bootstrap intervals over questions.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figure 11.
    """
    layers = content["layers"]
    cosines = content["cosine_with_response_mean"]
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
            rows = [r for r in content["settings"] if r["direction"] == direction and r["layer"] == layer]
            for row, key in ((1, "score"), (2, "coherence")):
                intervals = [content["unsteered"][key], *(r[key] for r in rows)]
                figure.add_trace(
                    go.Scatter(
                        x=[0.0, *(r["coefficient"] + aside for r in rows)],
                        y=[i["estimate"] for i in intervals],
                        error_y=error_bars(intervals),
                        mode="lines+markers",
                        marker={"symbol": symbol, "size": 9},
                        line={"color": color, "width": 2, "dash": "dot" if direction == "random" else "solid"},
                        name=label,
                        legendgroup=label,
                        showlegend=row == 1 and column == 1,
                    ),
                    row=row,
                    col=column,
                )
    figure.update_yaxes(range=[-3, 103])
    figure.update_yaxes(title_text="trait score (0–100)", row=1, col=1)
    figure.update_yaxes(title_text="coherence (0–100)", row=2, col=1)
    figure.update_xaxes(title_text="coefficient (× response-mean norm)", row=2)
    subtitle = (
        f"{name_model(content)}, {content['n_questions']} questions, scored by the "
        f"{content['judge']['name']}; bars: 95 % bootstrap over questions"
    )
    lay_out(figure, _token_position_finding(content), subtitle, width=max(700, 360 * len(layers)), height=760)
    return figure


def _token_position_finding(content: Mapping[str, Any]) -> str:
    """Say whether the response mean steers best, averaged over every layer and coefficient."""
    others = {name: content["response_mean_less"][name] for name in ("prompt_mean", "last_prompt")}
    scores = {name: one["score"] for name, one in others.items()}
    if any(one["estimate"] is None for one in scores.values()):
        verdict = "too few scores to compare token positions"
    elif all(one["low"] > 0 for one in scores.values()):
        verdict = "at equal norm the response mean steers best"
    elif any(one["high"] < 0 for one in scores.values()):
        better = [_TOKEN_POSITION_STYLES[name][0] for name, one in scores.items() if one["high"] < 0]
        verdict = f"at equal norm the {' and the '.join(better)} steers further than the response mean"
    else:
        verdict = "at equal norm the response mean is not surely best"
    lines = [
        f"response mean less {_TOKEN_POSITION_STYLES[name][0]}, over all layers and coefficients: score "
        f"{say(one['score'])}, coherence {say(one['coherence'])}"
        for name, one in others.items()
    ]
    return f"{html.escape(content['trait'])}: {verdict}<br><sup>{'<br>'.join(lines)}</sup>"


def plot_steering_modes(content: Mapping[str, Any]) -> go.Figure:
    """Draw what each way of steering costs against how far it moves the trait score, one line a method.

    Args:
        content: What experiments/steering_modes.py writes.

    Returns:
        A figure: columns up and down, rows coherence, accuracy and perplexity.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figure 26.
    """
    heads = ("up, from no system prompt", "down, from a system prompt that asks for the trait")
    panels = (
        ("coherence", "coherence (0–100)"),
        ("accuracy", "multiple-choice accuracy"),
        ("perplexity", "perplexity"),
    )
    figure = make_subplots(
        rows=3, cols=2, shared_xaxes=True, shared_yaxes="rows", vertical_spacing=0.04, horizontal_spacing=0.03,
        subplot_titles=heads,
    )  # fmt: skip
    for column, way in enumerate(("up", "down"), start=1):
        rows = [r for r in content["settings"] if r["way"] == way]
        start = next(r for r in rows if r["method"] == "unsteered")
        for line, (key, _) in enumerate(panels, start=1):
            for method, (color, symbol) in _METHOD_STYLES.items():
                steps = [start, *(r for r in rows if r["method"] == method)]
                if len(steps) > 1:
                    show = line == 1 and way == "down"
                    _add_costs(figure, line, column, steps, key, method, color, symbol, show=show)
            _add_costs(figure, line, column, [start], key, "unsteered", INK, "star", show=line == 1 and way == "down")
    ends = [r["perplexity"][end] for r in content["settings"] for end in ("low", "high")]
    shown = [end for end in ends if end is not None] or [1.0]
    # Set by hand: axes that share their range ignore error bars when they choose it.
    ranges: dict[str, tuple[float, float]] = {"coherence": (-3, 103), "accuracy": (-0.03, 1.03)}
    ranges["perplexity"] = (math.log10(min(shown)) - 0.1, math.log10(max(shown)) + 0.1)
    for line, (key, label) in enumerate(panels, start=1):
        figure.update_yaxes(title_text=label, row=line, col=1)
        figure.update_yaxes(type="log" if key == "perplexity" else "linear", range=ranges[key], row=line)
    chance = content["chance_accuracy"]
    figure.add_hline(
        y=chance, line={"color": INK, "dash": "dot", "width": 1}, annotation_text="chance", row=2, col="all"
    )
    figure.update_xaxes(range=[-3, 103])
    figure.update_xaxes(title_text="trait score (0–100)", row=3)
    subtitle = (
        f"{name_model(content)}, {content['n_questions']} questions, {content['n_items']} items, "
        f"{content['n_text_tokens']} tokens of text; {content['judge']['name']}; bars: 95 % bootstrap<br>"
        "accuracy and perplexity: every token changed; responses: from the last prompt token on"
    )
    lay_out(figure, _modes_finding(content), subtitle, width=1150, height=1050)
    return figure


def _add_costs(
    figure: go.Figure,
    row: int,
    column: int,
    steps: Sequence[Mapping[str, Any]],
    key: str,
    name: str,
    color: str,
    symbol: str,
    *,
    show: bool,
) -> None:
    costs, scores = [s[key] for s in steps], [s["score"] for s in steps]
    kl = ["" if s["kl"] is None else f"KL {say(s['kl'])} nats a token" for s in steps]
    figure.add_trace(
        go.Scatter(
            x=[s["estimate"] for s in scores],
            y=[c["estimate"] for c in costs],
            error_x=error_bars(scores),
            error_y=error_bars(costs),
            mode="lines+markers+text",
            text=[s["strength"] if row == 1 else "" for s in steps],
            textposition="top center",
            textfont={"size": 10, "color": color},
            customdata=[[s["strength"], divergence] for s, divergence in zip(steps, kl, strict=True)],
            hovertemplate=f"{name} %{{customdata[0]}}: score %{{x:.0f}}, {key} %{{y:.3g}}; %{{customdata[1]}}",
            marker={"symbol": symbol, "size": 10, "color": color},
            line={"color": color, "width": 2},
            name=name,
            legendgroup=name,
            showlegend=show,
        ),
        row=row,
        col=column,
    )


def _modes_finding(content: Mapping[str, Any]) -> str:
    """Say how far each method moves the score while the text stays coherent."""
    start = {r["way"]: r for r in content["settings"] if r["method"] == "unsteered"}
    lines = []
    for way in ("up", "down"):
        parts = []
        for method, row in content["furthest"][way].items():
            if row is None:
                parts.append(f"{method} at no setting")
            else:
                strength = f" ({row['strength']})" if row["strength"] else ""
                accuracy = row["accuracy"]["estimate"]
                parts.append(
                    f"{method}{strength} {row['score']['estimate']:.0f}, accuracy "
                    f"{'none' if accuracy is None else format(accuracy, '.2f')}"
                )
        base = start[way]["score"]["estimate"]
        lines.append(f"{way} from {'none' if base is None else format(base, '.0f')}: {'; '.join(parts)}")
    floor = f"{content['min_coherence']:g}"
    head = f"{html.escape(content['trait'])}: how far each method moves the score, coherence surely ≥ {floor}"
    return f"{head} (layer {content['layer']} or all)<br><sup>{'<br>'.join(map(html.escape, lines))}</sup>"
