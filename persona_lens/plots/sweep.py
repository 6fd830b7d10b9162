"""The layer sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.plots.style import COLORS, GREY, INK, error_bars, lay_out
from persona_lens.statistics.crossed import mean_over_directions_interval
from persona_lens.statistics.missing import mean_interval

if TYPE_CHECKING:
    from persona_lens.evaluation.confirmation import Confirmation
    from persona_lens.evaluation.sweep import LayerChoice, SweepResult


@checked
def plot_sweep(
    sweep: SweepResult, confirmation: Confirmation | None = None, *, min_coherence: float = 50.0
) -> go.Figure:
    """Draw trait score and coherence over layers, one line a coefficient, with the null and the choices.

    Args:
        sweep: What :func:`persona_lens.sweep_layers` returned.
        confirmation: The chosen setting measured on fresh questions; its numbers then make the title.
        min_coherence: The floor that the coherent choice keeps.

    Returns:
        A figure with two panels: score above, coherence below. Bands are 95 % bootstrap intervals over
        questions; the bars of random directions hold for other directions too.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figures 3 and 13.
    """
    best, coherent = sweep.choose_by_score(), sweep.choose_coherent(min_coherence)
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.58, 0.42], y_title=None
    )
    layers = list(sweep.layers)
    for index, coefficient in enumerate(sweep.coefficients):
        color = COLORS[index % len(COLORS)]
        for row, values in ((1, sweep.scores[:, index]), (2, sweep.coherences[:, index])):
            _add_band(figure, row, layers, values, color, f"vector × {coefficient:g}", show=row == 1)
    shown = coherent or best
    column = sweep.coefficients.index(shown.coefficient)
    for row, values in ((1, sweep.null_scores[:, :, column]), (2, sweep.null_coherences[:, :, column])):
        name = f"random directions × {shown.coefficient:g} (same norm)"
        _add_points(figure, row, list(sweep.null_layers), values.transpose(0, 1), name, show=row == 1)
    for row, values in ((1, sweep.baseline_scores), (2, sweep.baseline_coherences)):
        interval = mean_interval(values)
        figure.add_hrect(y0=interval.low, y1=interval.high, fillcolor=GREY, opacity=0.12, line_width=0, row=row, col=1)
        figure.add_trace(
            go.Scatter(
                x=[layers[0], layers[-1]],
                y=[interval.estimate] * 2,
                mode="lines",
                line={"color": GREY, "dash": "dash", "width": 1.5},
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
        line={"color": INK, "dash": "dot", "width": 1},
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
    finding = _sweep_finding(sweep, confirmation, shown, min_coherence)
    lay_out(figure, finding, subtitle, width=1050, height=820, bottom=60, legend=-0.1)
    figure.update_layout(hovermode="x unified")
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
        return f"{sweep.trait}: no clear effect above random directions, not even at {where};<br>{numbers}"
    coherence = confirmation.coherence
    if coherence.low >= min_coherence:
        return f"{sweep.trait}: steering at {where} raises the score and surely stays coherent;<br>{numbers}"
    if coherence.high < min_coherence:
        return f"{sweep.trait}: {where} raises the score, but surely breaks coherence;<br>{numbers}"
    return (
        f"{sweep.trait}: {where} raises the score; whether text stays coherent is not sure "
        f"[{coherence.low:.0f}, {coherence.high:.0f}];<br>{numbers}"
    )


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
    intervals = [mean_interval(one) for one in values]
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
    values: Float[Tensor, "null_layer direction question"],
    name: str,
    *,
    show: bool,
) -> None:
    intervals = [mean_over_directions_interval(one) for one in values]
    figure.add_trace(
        go.Scatter(
            x=list(layers),
            y=[i.estimate for i in intervals],
            error_y=error_bars(intervals),
            mode="markers",
            marker={"color": GREY, "symbol": "x-thin", "size": 8, "line": {"width": 2, "color": GREY}},
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
                marker={"symbol": symbol, "size": 17, "color": INK, "line": {"width": 2}},
                name=f"{name}: layer {choice.layer} × {choice.coefficient:g}",
                legendgroup=name,
                showlegend=row == 1,
                hoverinfo="skip",
            ),
            row=row,
            col=1,
        )
