"""The front of a trait against a task, between a fine-tuned model and an accepted one."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.checking import checked
from persona_lens.plots.style import COLORS, SYMBOLS, add_points, lay_out, say

if TYPE_CHECKING:
    from persona_lens.finetuning.pulling_back import PullBack


@checked
def plot_pull_back(result: PullBack) -> go.Figure:
    """Draw the trait's score by each judge against the task's loss, one point a share, the chosen one filled.

    Args:
        result: What :func:`persona_lens.finetuning.pull_back` returned.
    """
    figure = make_subplots()
    losses = [result.task_loss(share) for share in result.shares]
    for index, name in enumerate(result.judges):
        color, symbol = COLORS[index % len(COLORS)], SYMBOLS[index % 3]
        look = {
            "mode": "lines+markers+text",
            "text": [f"{share:g}" for share in result.shares],
            "textposition": "top right",
            "textfont": {"color": color},
            "line": {"color": color},
            "marker": {
                "size": 11,
                "color": color,
                "symbol": [symbol if share == result.chosen else f"{symbol}-open" for share in result.shares],
            },
        }
        scores = [result.score(share, index) for share in result.shares]
        bars = {"width": 0, "thickness": 0.8}
        add_points(figure, 1, 1, losses, scores, name, look, in_legend=True, bars=bars)
    figure.update_xaxes(title_text="task loss (nats a token)")
    figure.update_yaxes(title_text="trait score (0–100)", range=[-3, 103])
    rises = [say(result.rise(result.chosen, index)) for index in range(len(result.judges))]
    said = "; ".join(f"{html.escape(name)}: {rise}" for name, rise in zip(result.judges, rises, strict=True))
    n_judged = int((~result.is_choosing_question).sum())
    subtitle = (
        f"points above the control, on {n_judged} questions that chose nothing: {said}; "
        "labels: the fine-tuned model's share; bars: 95 % bootstrap over questions and rows"
    )
    title = f"share {result.chosen:g} chosen: task loss {say(result.extra_loss(result.chosen))} above the whole's"
    lay_out(figure, title, subtitle, width=900, height=640, bottom=120, legend=-0.2)
    return figure
