"""Results as Plotly figures and coloured text. Nothing here computes a result."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.judges.panel import PanelResult
from persona_lens.sweep import Confirmation, LayerChoice, SweepResult
from persona_lens.tensors.statistics import Interval, bootstrap_mean
from persona_lens.tracing import ColouredTokens, Trace
from persona_lens.vectors import PersonaVector

# Okabe and Ito's palette, told apart by colour-blind readers; ordered so that neighbours differ in lightness too.
_COLORS = ("#56B4E9", "#E69F00", "#0072B2", "#D55E00", "#CC79A7", "#009E73")
_GREY = "#555555"
_INK = "#222222"


def plot_sweep(
    sweep: SweepResult, confirmation: Confirmation | None = None, *, min_coherence: float = 50.0
) -> go.Figure:
    """Draw trait score and coherence over layers, one line a coefficient, with the null and the choices.

    Args:
        sweep: What :func:`persona_lens.sweep_layers` returned.
        confirmation: The chosen setting measured on fresh questions; its numbers then make the title.
        min_coherence: The floor that the coherent choice keeps.

    Returns:
        A figure with two panels: score above, coherence below. Bands are 95 % bootstrap intervals over questions.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figures 3 and 13.
    """
    best, coherent = sweep.choose_by_score(), sweep.choose_coherent(min_coherence)
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.06,
        row_heights=[0.58, 0.42],
        y_title=None,
    )
    layers = list(sweep.layers)
    for index, coefficient in enumerate(sweep.coefficients):
        color = _COLORS[index % len(_COLORS)]
        for row, values in ((1, sweep.scores[:, index]), (2, sweep.coherences[:, index])):
            _add_band(figure, row, layers, values, color, f"vector × {coefficient:g}", show=row == 1)
    shown = coherent or best
    column = sweep.coefficients.index(shown.coefficient)
    for row, values in ((1, sweep.null_scores[:, :, column]), (2, sweep.null_coherences[:, :, column])):
        name = f"random directions × {shown.coefficient:g} (same norm)"
        # Every question under every random direction is one value of a layer's mean.
        _add_points(figure, row, list(sweep.null_layers), values.permute(1, 0, 2).flatten(1), name, show=row == 1)
    for row, values in ((1, sweep.baseline_scores), (2, sweep.baseline_coherences)):
        interval = _mean_interval(values)
        figure.add_hrect(y0=interval.low, y1=interval.high, fillcolor=_GREY, opacity=0.12, line_width=0, row=row, col=1)
        figure.add_trace(
            go.Scatter(
                x=[layers[0], layers[-1]],
                y=[interval.estimate] * 2,
                mode="lines",
                line={"color": _GREY, "dash": "dash", "width": 1.5},
                name="unsteered",
                legendgroup="unsteered",
                showlegend=row == 1,
                hovertemplate=f"unsteered: {interval}<extra></extra>",
            ),
            row=row,
            col=1,
        )
    figure.add_hline(
        y=min_coherence,
        line={"color": _INK, "dash": "dot", "width": 1},
        annotation_text=f"coherence floor {min_coherence:g}",
        annotation_position="bottom right",
        row=2,
        col=1,
    )
    _mark(figure, sweep, best, "diamond-open", "choice by score alone (the paper's rule)")
    if coherent is not None:
        _mark(figure, sweep, coherent, "star", f"choice with coherence surely ≥ {min_coherence:g}")
    figure.update_yaxes(title_text="trait score (0–100)", range=[-3, 103], row=1, col=1)
    figure.update_yaxes(title_text="coherence (0–100)", range=[-3, 103], row=2, col=1)
    figure.update_xaxes(title_text="layer (zero-based block; the paper's layer is one higher)", dtick=2, row=2, col=1)
    subtitle = (
        f"{sweep.model.name}, {len(sweep.questions)} questions, scored by the {sweep.judge}; "
        "bands and bars: 95 % bootstrap over questions"
    )
    figure.update_layout(
        template="plotly_white",
        width=1050,
        height=820,
        font={"size": 14, "color": _INK},
        title={
            "text": f"{_sweep_finding(sweep, confirmation, shown, min_coherence)}<br><sup>{subtitle}</sup>",
            "x": 0.02,
        },
        legend={"orientation": "h", "y": -0.1, "x": 0, "font": {"size": 13}},
        margin={"t": 110, "l": 70, "r": 30, "b": 60},
        hovermode="x unified",
    )
    return figure


def plot_vector(vector: PersonaVector) -> go.Figure:
    """Draw a vector's norm and its split-half cosine over layers, for each token position.

    Args:
        vector: What :func:`persona_lens.extract_persona_vector` returned.

    Returns:
        A figure with two panels.
    """
    layers = list(range(vector.model.n_layers))
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for index, (position, directions) in enumerate(vector.by_position.items()):
        color = _COLORS[2 * index % len(_COLORS)]
        label = position.replace("_", " ")
        panels = [(1, directions.norm(dim=-1))]
        if position in vector.split_half_cosine:
            panels.append((2, vector.split_half_cosine[position]))
        for row, values in panels:
            figure.add_trace(
                go.Scatter(
                    x=layers,
                    y=values.tolist(),
                    mode="lines",
                    name=label,
                    legendgroup=label,
                    showlegend=row == 1,
                    line={"color": color},
                ),
                row=row,
                col=1,
            )
    figure.update_yaxes(title_text="norm (residual-stream units)", type="log", row=1, col=1)
    figure.update_yaxes(title_text="split-half cosine", range=[-0.05, 1.05], row=2, col=1)
    figure.update_xaxes(title_text="layer (zero-based block)", row=2, col=1)
    title = f"{vector.trait}: direction from {vector.counts.kept} of {vector.counts.pairs} pairs ({vector.model.name})"
    figure.update_layout(template="plotly_white", width=900, height=640, title={"text": title, "x": 0.02})
    return figure


def _sweep_finding(
    sweep: SweepResult, confirmation: Confirmation | None, shown: LayerChoice, min_coherence: float
) -> str:
    """Say in one line what the sweep found, plainly where it found little."""
    if confirmation is None:
        return (
            f"{sweep.trait}: highest coherent score at layer {shown.layer} × {shown.coefficient:g}: "
            f"{shown.score.estimate:.0f}"
        )
    numbers = (
        f"score {confirmation.baseline.estimate:.0f} → {confirmation.steered.estimate:.0f} on fresh questions "
        f"(random directions {confirmation.random.estimate:.0f}), coherence "
        f"{confirmation.baseline_coherence.estimate:.0f} → {confirmation.coherence.estimate:.0f}"
    )
    where = f"layer {confirmation.layer} × {confirmation.coefficient:g}"
    if not confirmation.is_clear:
        return f"{sweep.trait}: no clear effect above random directions, not even at {where}<br>{numbers}"
    if confirmation.coherence.estimate < min_coherence:
        return f"{sweep.trait}: {where} raises the score, but breaks coherence<br>{numbers}"
    return f"{sweep.trait}: steering at {where} raises the score and stays coherent<br>{numbers}"


def _mean_interval(values: Tensor) -> Interval:
    present = values[~values.isnan()]
    return bootstrap_mean(present) if len(present) else Interval(float("nan"), float("nan"), float("nan"))


def _add_band(
    figure: go.Figure,
    row: int,
    layers: Sequence[int],
    values: Float[Tensor, "layer question"],
    color: str,
    name: str,
    *,
    show: bool,
) -> None:
    intervals = [_mean_interval(one) for one in values]
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_trace(
        go.Scatter(
            x=[*layers, *reversed(layers)],
            y=[*(i.high for i in intervals), *(i.low for i in reversed(intervals))],
            mode="lines",
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.15)",
            line={"width": 0},
            hoverinfo="skip",
            legendgroup=name,
            showlegend=False,
        ),
        row=row,
        col=1,
    )
    figure.add_trace(
        go.Scatter(
            x=list(layers),
            y=[i.estimate for i in intervals],
            mode="lines+markers",
            marker={"size": 5},
            line={"color": color, "width": 2.5},
            name=name,
            legendgroup=name,
            showlegend=show,
            text=[str(i) for i in intervals],
            hovertemplate="%{text}",
        ),
        row=row,
        col=1,
    )


def _add_points(
    figure: go.Figure,
    row: int,
    layers: Sequence[int],
    values: Float[Tensor, "null_layer sample"],
    name: str,
    *,
    show: bool,
) -> None:
    intervals = [_mean_interval(one) for one in values]
    figure.add_trace(
        go.Scatter(
            x=list(layers),
            y=[i.estimate for i in intervals],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [i.high - i.estimate for i in intervals],
                "arrayminus": [i.estimate - i.low for i in intervals],
                "thickness": 1.2,
                "width": 3,
            },
            mode="markers",
            marker={"color": _GREY, "symbol": "x-thin", "size": 8, "line": {"width": 2, "color": _GREY}},
            name=name,
            legendgroup="null",
            showlegend=show,
            text=[str(i) for i in intervals],
            hovertemplate="%{text}",
        ),
        row=row,
        col=1,
    )


def _mark(figure: go.Figure, sweep: SweepResult, choice: LayerChoice, symbol: str, name: str) -> None:
    index = sweep.layers.index(choice.layer), sweep.coefficients.index(choice.coefficient)
    for row, values in ((1, sweep.scores), (2, sweep.coherences)):
        figure.add_trace(
            go.Scatter(
                x=[choice.layer],
                y=[float(torch.nanmean(values[index]))],
                mode="markers",
                marker={"symbol": symbol, "size": 17, "color": _INK, "line": {"width": 2}},
                name=f"{name}: layer {choice.layer} × {choice.coefficient:g}",
                legendgroup=name,
                showlegend=row == 1,
                hoverinfo="skip",
            ),
            row=row,
            col=1,
        )


def plot_trait_survey(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw a survey of traits: the judge's AUROC, and steering against random directions.

    Args:
        rows: One a trait, as experiments/trait_survey.py writes them: ``trait``, ``works``, ``failure``, ``auroc``,
            and where a vector was found ``counts`` and ``confirmation``.

    Returns:
        A figure with two panels that share the traits; those that fail are marked with a cross and listed below.
    """
    ordered = sorted(rows, key=lambda row: (row["works"], row["auroc"]["estimate"]))
    names = [html.escape(f"{row['trait']} {'✓' if row['works'] else '✗'}") for row in ordered]
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04, column_widths=[0.4, 0.6],
        subplot_titles=("does the judge tell the two sides apart?", "does steering raise the score?"),
    )  # fmt: skip
    _add_intervals(
        figure, 1, names, [row["auroc"] for row in ordered], _COLORS[2], "circle", "AUROC, held-out questions"
    )
    found = [(name, row["confirmation"]) for name, row in zip(names, ordered, strict=True) if "confirmation" in row]
    for key, color, symbol, label in (
        ("baseline", _GREY, "line-ns-open", "unsteered"),
        ("random", _COLORS[1], "x", "random directions, same norm"),
        ("steered", _COLORS[3], "diamond", "steered with the vector"),
    ):
        _add_intervals(figure, 2, [n for n, _ in found], [c[key] for _, c in found], color, symbol, label)
    figure.add_vline(x=0.9, line={"color": _INK, "dash": "dot", "width": 1}, row=1, col=1)
    figure.update_xaxes(title_text="AUROC", range=[0.45, 1.02], row=1, col=1)
    figure.update_xaxes(title_text="trait score (0–100), fresh questions", range=[-3, 103], row=1, col=2)
    # Fixes the order on the shared axis, whatever traces hold.
    figure.update_yaxes(categoryorder="array", categoryarray=names)
    failed = [f"{row['trait']}: {row['failure'][:90]}" for row in ordered if not row["works"]]
    works = len(ordered) - len(failed)
    figure.update_layout(
        template="plotly_white",
        width=1050,
        height=260 + 36 * len(ordered) + 18 * len(failed),
        font={"size": 14, "color": _INK},
        title={
            "text": f"{works} of {len(ordered)} traits can be told apart and steered above random directions"
            "<br><sup>bars: 95 % bootstrap intervals over questions; scores by the likelihood judge (proxy)</sup>",
            "x": 0.02,
        },
        legend={"orientation": "h", "y": -0.16, "x": 0},
        margin={"t": 110, "l": 120, "r": 30, "b": 110 + 18 * len(failed)},
    )
    figure.add_annotation(
        text="✗ " + "<br>✗ ".join(map(html.escape, failed)) if failed else "",
        xref="paper", yref="paper", x=0, y=0, yshift=-95, xanchor="left", yanchor="top", showarrow=False, align="left",
        font={"size": 12},
    )  # fmt: skip
    return figure


def plot_agreement(panel: PanelResult, trait: str = "") -> go.Figure:
    """Draw how far judges agree: rank correlation and agreement on clear pairs, for every pair of judges.

    Args:
        panel: What :func:`persona_lens.judge_with_panel` returned.
        trait: The trait's name, for the title.

    Returns:
        Two matrices. Row: the judge whose clear pairs are taken; column: the judge that is compared with it.

    Reference:
        Persona Vectors (arXiv 2507.21509), appendix B.2.
    """
    judges = [html.escape(name) for name in panel.judges]
    place = {name: index for index, name in enumerate(panel.judges)}
    values: list[list[list[float | None]]] = [[[None] * len(judges) for _ in judges] for _ in range(2)]
    texts = [[["–"] * len(judges) for _ in judges] for _ in range(2)]
    agreements = panel.measure_agreement()
    for one in agreements:
        row, column = place[one.first], place[one.second]
        if not math.isnan(one.spearman.estimate):
            interval = one.spearman
            values[0][row][column] = interval.estimate
            texts[0][row][column] = f"{interval.estimate:.2f}<br>[{interval.low:.2f}, {interval.high:.2f}]"
        if one.n_clear_pairs:
            values[1][row][column] = one.pairwise
            texts[1][row][column] = f"{one.pairwise:.0%}<br>of {one.n_clear_pairs} pairs"
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05,
        subplot_titles=("rank correlation (Spearman)", "clear pairs (> 80 against < 20) ordered alike"),
    )  # fmt: skip
    short = [name.replace(", ", ",<br>").replace(" (", "<br>(").replace(" of ", " of<br>") for name in judges]
    for index, (low, high) in enumerate(((-1, 1), (0, 1))):
        figure.add_trace(
            go.Heatmap(
                x=short, y=short, z=values[index], text=texts[index], texttemplate="%{text}", zmin=low, zmax=high,
                colorscale="Cividis", showscale=False, hovertemplate="%{y} / %{x}: %{text}<extra></extra>",
            ),
            row=1,
            col=index + 1,
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", title_text="judge", row=1, col=1)
    figure.update_xaxes(title_text="compared with")
    counts = panel.count_reasons()
    n = len(panel.responses)
    scored = "; ".join(f"{name}: {counts[name].get('scored', 0)} of {n} scored" for name in panel.judges)
    spearmans = [one.spearman.estimate for one in agreements if not math.isnan(one.spearman.estimate)]
    span = f"{min(spearmans):.2f} to {max(spearmans):.2f}" if spearmans else "that cannot be computed"
    subject = f"{trait}: " if trait else ""
    figure.update_layout(
        template="plotly_white",
        width=1150,
        height=340 + 90 * len(judges),
        font={"size": 13, "color": _INK},
        title={
            "text": f"{html.escape(subject)}{len(judges)} judges, rank correlations {span}"
            f"<br><sup>{html.escape(scored)}; intervals: 95 % bootstrap over responses</sup>",
            "x": 0.02,
        },
        margin={"t": 130, "l": 150},
    )
    return figure


def _add_intervals(
    figure: go.Figure,
    column: int,
    names: Sequence[str],
    intervals: Sequence[Mapping[str, float]],
    color: str,
    symbol: str,
    label: str,
) -> None:
    figure.add_trace(
        go.Scatter(
            x=[i["estimate"] for i in intervals],
            y=list(names),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [i["high"] - i["estimate"] for i in intervals],
                "arrayminus": [i["estimate"] - i["low"] for i in intervals],
                "thickness": 1.5,
                "width": 3,
            },
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 11, "line": {"width": 2, "color": color}},
            name=label,
        ),
        row=1,
        col=column,
    )


def plot_trace(trace: Trace, layers: Sequence[int]) -> ColouredTokens:
    """Colour a traced conversation's tokens by their projection, one row a layer.

    Orange is towards the trait, blue away from it, both measured from the unsteered prompt-and-response median of the
    layer; a full colour is the layer's largest distance from it. Steered tokens are underlined; hovering over a token
    gives its numbers.

    Args:
        trace: What :func:`persona_lens.trace` returned.
        layers: Zero-based block indices.

    Returns:
        HTML.
    """
    rows = []
    for layer in layers:
        before, after = trace.before[layer], trace.after[layer]
        middle = before.median()
        # The first token's residual stream is far larger than all others in most models; it sets no scale.
        distances = torch.cat([before[1:], after[1:]]) - middle if len(before) > 1 else before - middle
        largest = float(distances.abs().max()) or 1.0
        spans = [
            _colour_token(token, float(b), float(a), float((a - middle) / largest), bool(s), bool(r))
            for token, b, a, s, r in zip(trace.tokens, before, after, trace.steered[layer], trace.read, strict=True)
        ]
        mean_before, mean_after = trace.response_mean[layer].tolist()
        caption = (
            f"Layer {layer}, projection on {html.escape(trace.trait)} (residual-stream units): response mean "
            f"{mean_before:.2f} without the hooks, {mean_after:.2f} with them. Orange: towards the trait, blue: away. "
            "Underlined: steered. Black: response, grey: prompt."
        )
        rows.append(
            f'<p style="font:12px sans-serif;color:{_GREY};margin:8px 0 2px">{caption}</p>'
            f'<div style="font:14px monospace;line-height:1.8;white-space:pre-wrap">{"".join(spans)}</div>'
        )
    return ColouredTokens(f'<div style="max-width:60em;background:#FFFFFF;padding:8px">{"".join(rows)}</div>')


def _colour_token(token: str, before: float, after: float, strength: float, steered: bool, read: bool) -> str:
    strength = max(-1.0, min(1.0, strength))
    red, green, blue = (230, 159, 0) if strength > 0 else (86, 180, 233)
    style = f"background:rgba({red},{green},{blue},{abs(strength):.2f});color:{_INK if read else _GREY};"
    style += f"border-bottom:2px solid {_INK if steered else 'transparent'}"
    title = f"{before:.2f} before, {after:.2f} after" + (", steered" if steered else "")
    text = html.escape(token).replace("\n", "⏎\n")
    return f'<span style="{style}" title="{title}">{text}</span>'
