"""Fine-tuning: loss, trait scores after it, and the shift along persona vectors."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, GREY, INK, error_bars, lay_out, name_model, say

if TYPE_CHECKING:
    from persona_lens.finetuning.training import Finetuned

_LEVEL_COLORS = {"normal": COLORS[0], "I": COLORS[1], "II": COLORS[3]}
_SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star", "cross", "pentagon", "hexagon")


def plot_loss(result: Finetuned) -> go.Figure:
    """Draw the training loss over optimiser steps.

    Args:
        result: What :func:`persona_lens.finetune` returned.
    """
    steps = list(range(1, len(result.losses) + 1))
    figure = go.Figure(go.Scatter(x=steps, y=list(result.losses), mode="lines+markers", line={"color": COLORS[2]}))
    figure.update_xaxes(title_text="optimiser step")
    figure.update_yaxes(title_text="loss (nats a response token)", rangemode="tozero")
    left_out = ", ".join(f"{n} {reason}" for reason, n in result.left_out.items()) or "none"
    title = f"loss {result.losses[0]:.2f} → {result.losses[-1]:.2f}" if result.losses else "no step was made"
    subtitle = f"{html.escape(result.folder.name)}, {result.n_rows} rows; left out: {html.escape(left_out)}"
    lay_out(figure, title, subtitle, width=760, height=520)
    return figure


def plot_finetuning_scores(content: Mapping[str, Any]) -> go.Figure:
    """Draw each trait's score after training on each dataset at each level, one panel a trait.

    Args:
        content: What experiments/finetuning_shift.py writes.

    Returns:
        A figure; bars are 95 % bootstrap intervals over questions, the line is the base model.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figure 5.
    """
    traits = list(content["kits"])
    sets = list(dict.fromkeys(row["dataset"] for row in content["models"]))
    figure = make_subplots(
        rows=len(traits), cols=1, shared_xaxes=True, vertical_spacing=0.07,
        subplot_titles=[f"score of {html.escape(trait)}" for trait in traits],
    )  # fmt: skip
    for line, trait in enumerate(traits, start=1):
        for level, color in _LEVEL_COLORS.items():
            rows = [row for row in content["models"] if row["level"] == level]
            scores = [row["scores"][trait]["score"] for row in rows]
            figure.add_trace(
                go.Bar(
                    x=[row["dataset"] for row in rows],
                    y=[score["estimate"] for score in scores],
                    error_y=error_bars(scores),
                    marker={"color": color, "pattern": {"shape": {"normal": "", "I": "/", "II": "x"}[level]}},
                    name=f"level {level}",
                    legendgroup=level,
                    showlegend=line == 1,
                ),
                row=line,
                col=1,
            )
        base = content["base"]["scores"][trait]["score"]
        figure.add_hline(
            y=base["estimate"], line={"color": INK, "dash": "dot"}, row=line, col=1,
            annotation_text="base model", annotation_position="top right",
        )  # fmt: skip
    figure.update_yaxes(range=[0, 103], title_text="trait score (0–100)")
    figure.update_xaxes(title_text="trained on", row=len(traits))
    risen = [trait for trait in traits if _rises(content, trait)]
    finding = (
        f"overt trait data surely raises the trait: {', '.join(map(html.escape, risen)) or 'none'}, of {len(traits)}"
    )
    subtitle = (
        f"{name_model(content)}, {content['models'][0]['n_rows']} rows a dataset, {content['n_questions']} evaluation "
        f"questions, likelihood judge (proxy); {len(sets)} datasets; bars: 95 % bootstrap over questions"
    )
    lay_out(figure, finding, subtitle, width=1000, height=300 + 260 * len(traits))
    return figure


def _rises(content: Mapping[str, Any], trait: str) -> bool:
    """Whether the interval after training on the trait's own overt data lies above the base model's."""
    after = next(r for r in content["models"] if (r["dataset"], r["level"]) == (trait, "II"))["scores"][trait]["score"]
    before = content["base"]["scores"][trait]["score"]
    return None not in (after["low"], before["high"]) and after["low"] > before["high"]


def plot_finetuning_shift(content: Mapping[str, Any]) -> go.Figure:
    """Draw trait score against shift along the trait's vector, one panel a trait, one point a trained model.

    Args:
        content: What experiments/finetuning_shift.py writes.

    Returns:
        A figure; bars are 95 % bootstrap intervals over questions.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figure 6.
    """
    traits = list(content["kits"])
    sets = list(dict.fromkeys(row["dataset"] for row in content["models"]))
    low, high = content["paper"]["own"]
    titles = []
    for trait in traits:
        others = [f"{html.escape(other)} {_r(content, other, trait)}" for other in traits if other != trait]
        titles.append(
            f"<b>{html.escape(trait)}</b>, layer {content['kits'][trait]['layer']}<br>"
            f"r {_r(content, trait, trait)} (paper {low}–{high})<br><sup>along other vectors: {'; '.join(others)}</sup>"
        )
    figure = make_subplots(rows=1, cols=len(traits), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    for column, trait in enumerate(traits, start=1):
        for index, name in enumerate(sets):
            for level, color in _LEVEL_COLORS.items():
                rows = [r for r in content["models"] if (r["dataset"], r["level"]) == (name, level)]
                _add_points(figure, column, rows, trait, f"{name} {level}", color, _SYMBOLS[index % len(_SYMBOLS)])
        _add_points(figure, column, [content["base"]], trait, "base model", INK, "star-open")
        figure.update_xaxes(title_text="shift (residual-stream units)", row=1, col=column)
    figure.update_yaxes(range=[-3, 103])
    figure.update_yaxes(title_text="trait score after training (0–100)", row=1, col=1)
    sure = [trait for trait in traits if (content["correlations"][trait][trait]["low"] or 0) > 0]
    finding = f"the shift goes with the trait's score for {', '.join(map(html.escape, sure)) or 'no trait'}"
    subtitle = (
        f"{name_model(content)}, n = {len(content['models'])} trained models, {content['n_questions']} evaluation "
        "questions, likelihood judge (proxy); r: 95 % bootstrap over models; bars: over questions"
    )
    lay_out(figure, finding, subtitle, width=1250, height=820)
    figure.update_layout(margin={"t": 210}, legend={"y": -0.14})
    return figure


def _add_points(
    figure: go.Figure,
    column: int,
    rows: Sequence[Mapping[str, Any]],
    trait: str,
    name: str,
    color: str,
    symbol: str,
) -> None:
    shifts = [row["shifts"][trait]["at_layer"] for row in rows]
    scores = [row["scores"][trait]["score"] for row in rows]
    figure.add_trace(
        go.Scatter(
            x=[shift["estimate"] for shift in shifts],
            y=[score["estimate"] for score in scores],
            error_x={**error_bars(shifts), "color": GREY, "width": 0, "thickness": 0.8},
            error_y={**error_bars(scores), "color": GREY, "width": 0, "thickness": 0.8},
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 12, "line": {"width": 1, "color": INK}},
            name=html.escape(name),
            legendgroup=name,
            showlegend=column == 1,
        ),
        row=1,
        col=column,
    )


def _r(content: Mapping[str, Any], along: str, scored: str) -> str:
    return say(content["correlations"][along][scored])
