"""A vector over its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.checking import checked
from persona_lens.plots.style import COLORS

if TYPE_CHECKING:
    from persona_lens.vectors.persona_vector import PersonaVector


@checked
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
        color = COLORS[2 * index % len(COLORS)]
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
