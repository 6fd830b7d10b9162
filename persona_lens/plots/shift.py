"""How far fine-tuning has moved a model along a vector, over its layers."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.checking import checked
from persona_lens.plots.style import COLORS, INK, add_band, lay_out

if TYPE_CHECKING:
    from persona_lens.finetuning.shift import FinetuningShift


@checked
def plot_shift(shift: FinetuningShift) -> go.Figure:
    """Draw the mean shift at every layer with its interval as a band; without one where there is but one question.

    Args:
        shift: What :func:`persona_lens.measure_shift` returned.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 4.2.
    """
    n_layers, n_questions = shift.by_question.shape
    layers = list(range(n_layers))
    figure = make_subplots()
    if shift.has_interval:
        add_band(figure, 1, 1, layers, [shift.interval(layer) for layer in layers], COLORS[2])
    line = go.Scatter(
        x=layers, y=shift.mean.tolist(), mode="lines+markers", name="mean over questions", showlegend=False,
        marker={"size": 5}, line={"color": COLORS[2], "width": 2.5},
    )  # fmt: skip
    figure.add_trace(line)
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    figure.update_xaxes(title_text="layer (zero-based block)")
    figure.update_yaxes(title_text="shift (residual-stream units)")
    middle = n_layers // 2  # no layer is chosen by how much is seen there
    moved = str(shift.interval(middle)) if shift.has_interval else f"{shift.mean[middle]:.2f}"
    asked = f"{n_questions} questions" if n_questions > 1 else "one question"
    band = "; band: 95 % bootstrap over them" if shift.has_interval else ""
    lay_out(
        figure,
        f"{html.escape(shift.trait)}: moved by {moved} at layer {middle}",
        f"fine-tuned less base, along the vector at the prompt's last token, mean of {asked}{band}",
        width=900, height=520,
    )  # fmt: skip
    return figure
