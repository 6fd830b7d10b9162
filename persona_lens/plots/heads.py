"""How well each attention head tells a trait's answers apart."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from scipy.stats import binom

from persona_lens.checking import checked
from persona_lens.plots.style import COLORS, lay_out

if TYPE_CHECKING:
    from persona_lens.vectors.heads import HeadChoice


@checked
def plot_heads(choice: HeadChoice) -> go.Figure:
    """Draw the held-out accuracy of every attention head's probe over layers and heads.

    Args:
        choice: What :func:`persona_lens.vectors.choose_heads` returned.

    Returns:
        A heat map; the chosen heads are ringed.

    Reference:
        Inference-Time Intervention (arXiv 2306.03341), Figure 2 (A).
    """
    accuracies = choice.accuracies
    n_layers, n_heads = accuracies.shape
    figure = go.Figure(
        go.Heatmap(
            x=list(range(n_layers)), y=list(range(n_heads)), z=accuracies.T.tolist(), zmin=0.4, zmax=1,
            colorscale="Cividis",
            colorbar={"title": {"text": "held-out accuracy", "side": "right"}, "tickformat": ".0%"},
            hovertemplate="layer %{x}, head %{y}: %{z:.0%}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[layer for layer, _ in choice.heads], y=[head for _, head in choice.heads], mode="markers",
            marker={"symbol": "circle-open", "size": 13, "color": COLORS[3], "line": {"width": 2.5}},
            name=f"the {len(choice.heads)} chosen", showlegend=True, hoverinfo="skip",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="layer (zero-based block)", dtick=max(1, n_layers // 15))
    figure.update_yaxes(title_text="head", dtick=max(1, n_heads // 16), autorange="reversed")
    # As if each question were one toss, which is strict: its two answers are told one by one.
    n = choice.n_questions
    highest = float(binom.ppf(1 - 0.05 / (n_layers * n_heads), n, 0.5)) / n
    n_above = int((accuracies > highest).sum())
    best = float(accuracies.max())
    n_best = int((accuracies == best).sum())
    (layer, head), *_ = choice.heads
    which = f"layer {layer} head {head}" if n_best == 1 else f"{n_best} of them"
    finding = (
        f"{html.escape(choice.trait)}: {n_above} of {n_layers * n_heads} heads tell its answers apart above chance;<br>"
        f"the best, {which}, {best:.0%} of those held out (median head {float(accuracies.median()):.0%})"
    )
    subtitle = (
        f"{html.escape(choice.model.name)}, {choice.n_pairs} pairs of written answers to {n} questions, {choice.folds} "
        f"folds that share no question; guessing heads all stay below {highest:.0%} in 95 % of cases"
    )
    lay_out(figure, finding, subtitle, width=980, height=300 + 26 * n_heads, legend=-0.2)
    return figure
