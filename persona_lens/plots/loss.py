"""The loss of a fine-tuning run."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from persona_lens.checking import checked
from persona_lens.plots.style import COLORS, lay_out

if TYPE_CHECKING:
    from persona_lens.finetuning.finetuned import Finetuned


@checked
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
