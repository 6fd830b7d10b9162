"""How far judges agree."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.checking import checked
from persona_lens.plots.style import lay_out

if TYPE_CHECKING:
    from persona_lens.judges.panel import PanelResult


@checked
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
        if not one.spearman.is_missing:
            values[0][row][column] = one.spearman.estimate
            texts[0][row][column] = str(one.spearman).replace(" [", "<br>[")
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
    spearmans = [one.spearman.estimate for one in agreements if not one.spearman.is_missing]
    span = f"{min(spearmans):.2f} to {max(spearmans):.2f}" if spearmans else "that cannot be computed"
    subject = f"{trait}: " if trait else ""
    title = f"{html.escape(subject)}{len(judges)} judges, rank correlations {span}"
    subtitle = f"{html.escape(scored)}<br>intervals: 95 % bootstrap over responses"
    lay_out(figure, title, subtitle, width=1150, height=340 + 90 * len(judges))
    figure.update_layout(margin={"l": 150})
    return figure
