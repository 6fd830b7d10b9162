"""Results as Plotly figures and coloured text. Nothing here computes a result."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.judges.panel import PanelResult
from persona_lens.monitoring import GradedProjections, MonitoringCorrelation, WatchedConversation
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
    failed = [f"{row['trait']}: {row['failure'][:130]}" for row in ordered if not row["works"]]
    works = len(ordered) - len(failed)
    figure.update_layout(
        template="plotly_white",
        width=1050,
        height=280 + 36 * len(ordered) + 18 * len(failed),
        font={"size": 14, "color": _INK},
        title={
            "text": f"{works} of {len(ordered)} traits can be told apart and steered above random directions"
            "<br><sup>bars: 95 % bootstrap intervals over questions; scores by the likelihood judge (proxy)</sup>",
            "x": 0.02,
        },
        legend={"orientation": "h", "y": -0.16, "x": 0},
        margin={"t": 110, "l": 120, "r": 30, "b": 130 + 18 * len(failed)},
    )
    figure.add_annotation(
        text="✗ " + "<br>✗ ".join(map(html.escape, failed)) if failed else "",
        xref="paper", yref="paper", x=0, y=0, yshift=-112, xanchor="left", yanchor="top", showarrow=False, align="left",
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


def plot_monitor(watched: WatchedConversation) -> go.Figure:
    """Draw each trait's projection before the assistant's turns, with the thresholds of ordinary prompts.

    Args:
        watched: What :meth:`persona_lens.PersonaMonitor.watch` returned.

    Returns:
        A figure with one panel a trait; readings above a threshold are diamonds. Hovering gives the expected score.
    """
    n = len(watched.traits)
    figure = make_subplots(
        rows=n, cols=1, shared_xaxes=True, vertical_spacing=0.16 / n,
        subplot_titles=[html.escape(f"{t.trait}, layer {t.layer}" + f": {t.verdict}" * bool(t.verdict)) for t in
                        watched.traits],
    )  # fmt: skip
    for row, trait in enumerate(watched.traits, start=1):
        readings = watched.of(trait.trait)
        turns = [reading.turn for reading in readings]
        hovers = []
        for reading, prompt in zip(readings, watched.prompts, strict=True):
            shown = html.escape(prompt[:80])
            expected = "" if reading.expected_score is None else f"<br>expected score {reading.expected_score}"
            hovers.append(
                f"turn {reading.turn}: {reading.projection:.2f}, {watched.describe_alert(reading)}{expected}<br>{shown}"
            )
        figure.add_trace(
            go.Scatter(
                x=turns,
                y=[reading.projection for reading in readings],
                mode="lines+markers",
                line={"color": _COLORS[2], "width": 2},
                marker={
                    "color": [_COLORS[3] if reading.alert else _COLORS[2] for reading in readings],
                    "symbol": ["diamond" if reading.alert else "circle" for reading in readings],
                    "size": 11,
                },
                showlegend=False,
                text=hovers,
                hovertemplate="%{text}<extra></extra>",
            ),
            row=row,
            col=1,
        )
        # After the trace: plotly leaves shapes out of a panel that is still empty.
        figure.add_hrect(
            y0=trait.ordinary[0], y1=trait.ordinary[-1], fillcolor=_GREY, opacity=0.12, line_width=0, row=row, col=1
        )
        for index, (quantile, threshold) in enumerate(zip(trait.quantiles, trait.thresholds, strict=True)):
            figure.add_hline(
                y=threshold,
                line={"color": _COLORS[(1, 3)[min(index, 1)]], "dash": "dash", "width": 1.5},
                annotation_text=f"{quantile:.0%} of ordinary",
                annotation_position="top right" if index else "bottom right",
                row=row,
                col=1,
            )
        figure.update_yaxes(title_text="projection", row=row, col=1)
    figure.update_xaxes(
        title_text="turn of the assistant, read before it is generated",
        tickvals=list(range(1, len(watched.prompts) + 1)),
        range=[0.5, len(watched.prompts) + 0.5],
        row=n,
        col=1,
    )
    raised: dict[str, list[str]] = {}
    for reading in watched.alerts:
        raised.setdefault(reading.trait, []).append(str(reading.turn))
    alerts = "; ".join(f"{trait} before turn {', '.join(turns)}" for trait, turns in raised.items())
    n_ordinary = len(watched.traits[0].ordinary)
    figure.update_layout(
        template="plotly_white",
        width=900,
        height=170 + 230 * n,
        font={"size": 14, "color": _INK},
        title={
            "text": f"{html.escape(f'Above the ordinary: {alerts}' if alerts else 'Nothing above the ordinary')}"
            f"<br><sup>{html.escape(watched.model.name)}; grey: range of {n_ordinary} ordinary prompts</sup>",
            "x": 0.02,
        },
        margin={"t": 110, "l": 70, "r": 30, "b": 60},
    )
    return figure


def plot_monitoring(
    settings: Mapping[str, GradedProjections],
    correlations: Mapping[str, MonitoringCorrelation],
    *,
    labels: Mapping[str, Mapping[str, str]] | None = None,
    paper: Mapping[str, tuple[float, float]] | None = None,
) -> go.Figure:
    """Draw projection against score for one trait, a panel a setting, coloured by condition.

    Args:
        settings: Graded prompts by setting, e.g. ``system prompts`` and ``shots``.
        correlations: For each setting.
        labels: For each setting the legend's text for each condition; the condition itself if left out.
        paper: For each setting r overall and within conditions in the paper.

    Returns:
        A figure whose conditions, in order of appearance, run from dark blue to yellow.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figures 4 and 14 and Table 2.
    """
    titles = []
    for name, found in correlations.items():
        theirs = (paper or {}).get(name)
        across, within = (f" (paper {value:.3f})" for value in theirs) if theirs else ("", "")
        titles.append(
            f"<b>{html.escape(name)}</b>, n = {found.n}<br>r {_show(found.overall)}{across}<br>"
            f"within {_show(found.within)}{within}<br>left out, scores hardly vary: "
            f"{html.escape(', '.join(found.left_out) or 'none')}"
        )
    figure = make_subplots(
        rows=1, cols=len(settings), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles
    )
    for column, (name, graded) in enumerate(settings.items(), start=1):
        conditions = list(dict.fromkeys(graded.conditions))
        # Cividis looks the same to colour-blind readers; its order is that of the conditions.
        at = [index / max(len(conditions) - 1, 1) for index in range(len(conditions))]
        for index, (condition, color) in enumerate(zip(conditions, sample_colorscale("Cividis", at), strict=True)):
            rows = [row for row, its_own in enumerate(graded.conditions) if its_own == condition]
            label = (labels or {}).get(name, {}).get(condition, condition)
            figure.add_trace(
                go.Scatter(
                    x=[float(graded.projections[row]) for row in rows],
                    y=[float(graded.scores[row]) for row in rows],
                    mode="markers",
                    marker={
                        "color": color, "size": 9, "symbol": ("circle", "diamond", "square")[index % 3],
                        "line": {"width": 0.5, "color": _INK},
                    },
                    name=html.escape(label),
                    legend="legend" if column == 1 else f"legend{column}",
                    text=[html.escape(graded.questions[row]) for row in rows],
                    hovertemplate="%{text}<br>projection %{x:.2f}, score %{y:.0f}",
                ),
                row=1,
                col=column,
            )  # fmt: skip
        figure.update_xaxes(title_text="projection of the last prompt token (residual-stream units)", row=1, col=column)
        start = (column - 1) / len(settings)
        title = {"text": html.escape(name), "side": "top"}
        legend = {"x": start, "y": -0.16, "xanchor": "left", "yanchor": "top", "font": {"size": 11}, "title": title}
        figure.update_layout({"legend" if column == 1 else f"legend{column}": legend})
    figure.update_yaxes(title_text="mean trait score of the responses (0–100)", range=[-3, 103], row=1, col=1)
    first = next(iter(settings.values()))
    subtitle = (
        f"{first.model.name}, layer {first.layer}, scores by the likelihood judge (proxy); within: r inside each "
        "condition, averaged; 95 % bootstrap over questions"
    )
    most = max(len(set(graded.conditions)) for graded in settings.values())
    figure.update_layout(
        template="plotly_white",
        width=1150,
        height=700 + 20 * most,
        font={"size": 14, "color": _INK},
        title={
            "text": "<br>".join(map(html.escape, _monitoring_finding(first.trait, correlations)))
            + f"<br><sup>{html.escape(subtitle)}</sup>",
            "x": 0.02,
            "y": 0.97,
            "yanchor": "top",
        },
        margin={"t": 200, "l": 70, "r": 30, "b": 110 + 20 * most},
    )
    return figure


def _monitoring_finding(trait: str, correlations: Mapping[str, MonitoringCorrelation]) -> list[str]:
    """Say for each setting whether the projection tells conditions, and prompts inside them, apart."""
    findings = []
    for name, found in correlations.items():
        if found.is_reliable:
            findings.append(f"{name}: the score, inside conditions too")
        elif found.overall.low > 0:
            findings.append(f"{name}: the score across conditions, not surely inside them")
        else:
            findings.append(f"{name}: nothing surely")
    return [f"{trait}: what the projection predicts before the first token", "; ".join(findings)]


def _show(interval: Interval) -> str:
    return "not defined" if math.isnan(interval.estimate) else str(interval)


_TOKEN_POSITION_STYLES = {
    "response_mean": ("response mean", _COLORS[2], "circle"),
    "prompt_mean": ("prompt mean", _COLORS[1], "square"),
    "last_prompt": ("last prompt token", _COLORS[4], "diamond"),
    "random": ("random direction", _GREY, "x"),
}
_METHOD_STYLES = {
    "one layer": (_COLORS[2], "circle"),
    "all layers": (_COLORS[1], "square"),
    "capping": (_COLORS[5], "diamond"),
    "ablation": (_COLORS[4], "x"),
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
                        error_y=_error_bars(intervals),
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
        f"{_name_model(content)}, {content['n_questions']} questions, scored by the "
        f"{content['judge']['name']}; bars: 95 % bootstrap over questions"
    )
    _lay_out(figure, _token_position_finding(content), subtitle, width=max(700, 360 * len(layers)), height=760)
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
        f"{_say(one['score'])}, coherence {_say(one['coherence'])}"
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
            _add_costs(figure, line, column, [start], key, "unsteered", _INK, "star", show=line == 1 and way == "down")
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
        y=chance, line={"color": _INK, "dash": "dot", "width": 1}, annotation_text="chance", row=2, col="all"
    )
    figure.update_xaxes(range=[-3, 103])
    figure.update_xaxes(title_text="trait score (0–100)", row=3)
    subtitle = (
        f"{_name_model(content)}, {content['n_questions']} questions, {content['n_items']} items, "
        f"{content['n_text_tokens']} tokens of text; {content['judge']['name']}; bars: 95 % bootstrap. "
        "Accuracy and perplexity: every token changed; responses: from the last prompt token on"
    )
    _lay_out(figure, _modes_finding(content), subtitle, width=1150, height=1050)
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
    kl = ["" if s["kl"] is None else f"KL {_say(s['kl'])} nats a token" for s in steps]
    figure.add_trace(
        go.Scatter(
            x=[s["estimate"] for s in scores],
            y=[c["estimate"] for c in costs],
            error_x=_error_bars(scores),
            error_y=_error_bars(costs),
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
                parts.append(f"{method} only with coherence under {content['min_coherence']:g}")
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
    head = f"{html.escape(content['trait'])}: how far each method moves the score with coherence ≥ {floor}"
    return f"{head} (layer {content['layer']} or all)<br><sup>{'<br>'.join(map(html.escape, lines))}</sup>"


def plot_trait_geometry(content: Mapping[str, Any]) -> go.Figure:
    """Draw the cosines between traits at one layer and over layers, and each vector's split-half stability.

    On the diagonal stands the cosine between the two halves of a trait's questions, not 1: what a vector has in
    common with itself.

    Args:
        content: What experiments/trait_geometry.py writes.

    Returns:
        A figure with three panels.

    Reference:
        Persona Vectors (arXiv 2507.21509), section G.2.
    """
    names = [html.escape(row["trait"]) for row in content["traits"]]
    layer, n = content["layer"], len(names)
    cosines = torch.tensor(content["cosines"])
    halves = [row["split_half_cosine"] for row in content["traits"]]
    mean = cosines.mean(dim=0)
    panels = []
    for matrix, own in (
        (cosines[layer], [None if h is None else h[layer] for h in halves]),
        (mean, [None if h is None else sum(h) / len(h) for h in halves]),
    ):
        panels.append([[own[i] if i == j else float(matrix[i, j]) for j in range(n)] for i in range(n)])
    figure = make_subplots(
        rows=2, cols=2, specs=[[{}, {}], [{"colspan": 2}, None]], row_heights=[0.6, 0.4], shared_yaxes=True,
        vertical_spacing=0.17, horizontal_spacing=0.02,
        subplot_titles=(f"cosine at layer {layer}", f"mean over {len(cosines)} layers", "split-half stability"),
    )  # fmt: skip
    for column, panel in enumerate(panels, start=1):
        figure.add_trace(
            go.Heatmap(
                x=names, y=names, z=panel, zmin=-1, zmax=1, colorscale="PuOr", reversescale=True,
                text=[["–" if v is None else f"{v:.2f}" for v in row] for row in panel],
                texttemplate="%{text}", textfont={"size": 10}, showscale=column == 1,
                colorbar={"title": "cosine", "len": 0.55, "y": 0.75},
                hovertemplate="%{y} · %{x}: %{text}<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip
    figure.add_trace(
        go.Heatmap(
            x=list(range(len(cosines))), y=names, z=[h or [None] * len(cosines) for h in halves], zmin=0, zmax=1,
            colorscale="Cividis", colorbar={"title": "split-half<br>cosine", "len": 0.33, "y": 0.16},
            hovertemplate="%{y}, layer %{x}: %{z:.2f}<extra></extra>",
        ),
        row=2, col=1,
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title_text="trait", col=1)
    figure.update_xaxes(title_text="trait", row=1)
    figure.update_xaxes(title_text="layer (zero-based block)", row=2, col=1)
    band = 1.96 / math.sqrt(content["d_model"])
    left_out = "".join(f"; {html.escape(name)} left out: no vector" for name in content["left_out"])
    subtitle = (
        f"{_name_model(content)}; diagonal: cosine between two halves of the trait's own questions; 95 % of random "
        f"directions lie within ±{band:.2f}{left_out}"
    )
    pairs = [(float(cosines[layer, i, j]), f"{names[i]} · {names[j]}") for i in range(n) for j in range(i)]
    (least, apart), (most, together) = min(pairs), max(pairs)
    beyond = sum(abs(value) > band for value, _ in pairs)
    finding = (
        f"{beyond} of {len(pairs)} pairs of traits lie closer or further than random directions (layer {layer})"
        f"<br>highest cosine {together} {most:.2f}, lowest {apart} {least:.2f}"
    )
    _lay_out(figure, finding, subtitle, width=max(900, 300 + 80 * n), height=520 + 56 * n)
    return figure


def list_written_tokens(content: Mapping[str, Any]) -> str:
    """Write the tokens that each trait's direction promotes and suppresses as an HTML page, quoted and escaped.

    Args:
        content: What experiments/trait_geometry.py writes.

    Returns:
        HTML.
    """

    def quote(pairs: Sequence[Sequence[Any]]) -> str:
        return " ".join(f"<code>{html.escape(repr(token))}</code>&nbsp;{value:+.1f}" for token, value in pairs)

    rows = "\n".join(
        f"<tr><th>{html.escape(row['trait'])}</th><td>{one['layer']}</td><td>{quote(one['promoted'])}</td>"
        f"<td>{quote(one['suppressed'])}</td></tr>"
        for row in content["traits"]
        for one in row["tokens"]
    )
    return (
        '<!DOCTYPE html><meta charset="utf-8"><title>Tokens written by trait directions</title>'
        f"<style>body{{font:14px sans-serif;max-width:80em;color:{_INK}}}"
        "th,td{border-bottom:1px solid #CCC;padding:4px;text-align:left;vertical-align:top}"
        "code{background:#EEE}</style>"
        f"<h1>What each trait's direction writes through the unembedding of {_name_model(content)}</h1>"
        "<p>The direction v of a layer, read as if no later layer changed it: (f(v) − f(−v)) / 2, where f is the final "
        "norm with its gain, then the unembedding. Numbers: standard deviations over the vocabulary.</p>"
        "<table><tr><th>trait</th><th>layer</th><th>promoted</th><th>suppressed</th></tr>\n"
        f"{rows}\n</table>\n"
    )


def _error_bars(intervals: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Return error bars; none where an interval has a missing end."""

    def distance(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else max(a - b, 0.0)

    return {
        "type": "data",
        "symmetric": False,
        "array": [distance(i["high"], i["estimate"]) for i in intervals],
        "arrayminus": [distance(i["estimate"], i["low"]) for i in intervals],
        "thickness": 1.2,
        "width": 3,
    }


def _name_model(content: Mapping[str, Any]) -> str:
    return html.escape(content["config"]["model"]["name"])


def _say(interval: Mapping[str, float | None]) -> str:
    """Write an interval as ``1.23 [1.00, 1.50]``."""
    if interval["estimate"] is None:
        return "none"
    return f"{interval['estimate']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def _lay_out(figure: go.Figure, title: str, subtitle: str, *, width: int, height: int) -> None:
    """Give a figure the look of the others: finding as title, what it rests on as subtitle."""
    figure.update_layout(
        template="plotly_white",
        width=width,
        height=height,
        font={"size": 13, "color": _INK},
        title={"text": f"{title}<br><sup>{subtitle}</sup>", "x": 0.02, "y": 1 - 40 / height, "yanchor": "top"},
        legend={"orientation": "h", "y": -0.08, "x": 0},
        margin={"t": 160, "l": 80, "r": 40, "b": 90},
    )
