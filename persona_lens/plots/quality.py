"""A vector's quality card over layers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.checking import checked
from persona_lens.plots.style import COLORS, GREY, INK, add_band, error_bars, lay_out
from persona_lens.statistics.interval import Interval

if TYPE_CHECKING:
    from persona_lens.vectors.quality.card import VectorQuality

_HEADS = (
    "do the pairs agree?", "how far off is the direction?",
    "does it tell held-out answers apart?", "does it read style or length instead?",
    "does it read other traits?", "is it about few tokens?",
)  # fmt: skip
_AXES = ("cosine", "angle (degrees)", "AUROC", "AUROC, correlation", "AUROC", "excess kurtosis")
_LEVELS = (0.0, 90.0, 0.5, None, 0.5, None)  # of noise, or of a vector that does not hear
_RANGES = (None, (0.0, 93.0), None, None, (-0.03, 1.03), None)


@checked
def plot_quality(quality: VectorQuality) -> go.Figure:
    """Draw a vector's measures over layers, with what noise or an ideal vector would have as dotted lines.

    Args:
        quality: What :meth:`persona_lens.PersonaVector.quality` returned.

    Returns:
        A figure with six panels; one that nothing was measured for says so.
    """
    figure = make_subplots(rows=3, cols=2, subplot_titles=_HEADS, vertical_spacing=0.19, horizontal_spacing=0.1)
    colors = iter((*COLORS, INK, GREY) * 2)
    stability, separation, style = quality.stability, quality.separation, quality.style
    if stability is not None:
        _add_band(figure, 0, stability.agreement, "a difference with the mean of the others", next(colors))
        _add_band(figure, 0, stability.pairwise, "two differences", next(colors))
        _add_band(figure, 0, stability.split_half, "two halves (95 % of halvings)", next(colors))
        _add_band(figure, 1, stability.cone, "to the direction of endless pairs (95 % of draws)", next(colors))
    if quality.again is not None:
        _add_band(figure, 0, quality.again.cosine, _name_repeats(quality.again.sources), INK)
    if separation is not None:
        _add_band(figure, 2, separation.auroc, "trait against its opposite", COLORS[5])
    if style is not None:
        _add_band(figure, 3, style.auroc, "AUROC, style alone against ordinary (wanted: 0.5)", COLORS[3])
        figure.add_hline(y=0.5, line={"color": COLORS[3], "width": 1, "dash": "dot"}, row=2, col=2)
    if quality.length:
        _add_band(figure, 3, quality.length, "r with length, within the class (wanted: 0)", COLORS[4])
        figure.add_hline(y=0, line={"color": COLORS[4], "width": 1, "dash": "dot"}, row=2, col=2)
    for index, one in enumerate(quality.specificity):
        color = ((*COLORS, INK, GREY) * (1 + index // 8))[index]
        _add_line(figure, 4, [found.estimate for found in one.auroc], f"{one.trait} against its opposite", color)
        aside = 0.3 * (index - (len(quality.specificity) - 1) / 2)  # so that the bars do not hide each other
        _add_bar(figure, 4, quality.layer + aside, one.auroc[quality.layer], color)
    if quality.unembedding is not None:
        kurtosis = [one.kurtosis for one in quality.unembedding.layers]
        _add_line(figure, 5, kurtosis, "the vector's, through the unembedding", COLORS[2])
        random = quality.unembedding.random
        _add_band(figure, 5, [random] * len(kurtosis), "random directions' (95 % of them)", GREY)
    shown = {int((trace.xaxis or "x").removeprefix("x") or 1) - 1 for trace in figure.data}
    for panel, (axis, level, ends) in enumerate(zip(_AXES, _LEVELS, _RANGES, strict=True)):
        row, column = _place(panel)
        figure.update_yaxes(title_text=axis, range=ends, row=row, col=column)
        below = figure.get_subplot(row, column)
        place = {"x": below.xaxis.domain[0], "y": below.yaxis.domain[0] - 0.035, "yanchor": "top", "tracegroupgap": 0}
        figure.update_layout({_name_legend(panel): {**place, "font": {"size": 11}}})
        figure.update_xaxes(
            title={"text": "layer (zero-based block)", "standoff": 2},
            range=[-0.5, quality.model.n_layers - 0.5],
            row=row,
            col=column,
        )
        if panel not in shown:
            number = "" if panel == 0 else panel + 1
            figure.add_annotation(
                text="not measured", showarrow=False, font={"color": GREY}, x=0.5, y=0.5,
                xref=f"x{number} domain", yref=f"y{number} domain",
            )  # fmt: skip
        else:
            figure.add_vline(x=quality.layer, line={"color": GREY, "width": 1, "dash": "dash"}, row=row, col=column)
            if level is not None:
                figure.add_hline(y=level, line={"color": INK, "width": 1, "dash": "dot"}, row=row, col=column)
    subtitle = (
        f"{html.escape(quality.model.name)}; dashed: layer {quality.layer}; dotted: noise, a vector that does not "
        "hear, or what is wanted; bands and bars: 95 % bootstrap intervals over questions, where nothing else is said"
    )
    lay_out(figure, say_finding(quality), subtitle, width=1100, height=1300, bottom=110)
    figure.update_layout(legend={"orientation": "v", "y": figure.get_subplot(1, 1).yaxis.domain[0] - 0.035})
    return figure


def say_finding(quality: VectorQuality) -> str:
    """Say how well a vector agrees and separates at its layer, and whether it reads style."""
    at, said = quality.layer, []
    if quality.stability is not None:
        said.append(f"single differences agree to {quality.stability.agreement[at]}")
    if quality.separation is not None:
        said.append(f"held-out AUROC {quality.separation.auroc[at]}")
    if quality.style is not None:
        said.append(f"style alone {quality.style.auroc[at]}")
    return f"{html.escape(quality.trait)}, layer {at}: {', '.join(said) or 'what the unembedding makes of it'}"


def _name_repeats(sources: Sequence[str]) -> str:
    """Name a band of cosines with what the vectors found anew rest on."""
    several = " (lowest to highest)" if len(sources) > 1 else ""
    return f"two, found anew{several}: {', '.join(sources)}"


def _place(panel: int) -> tuple[int, int]:
    return panel // 2 + 1, panel % 2 + 1


def _name_legend(panel: int) -> str:
    """Return the name of a panel's own legend: colours come again from panel to panel."""
    return "legend" if panel == 0 else f"legend{panel + 1}"


def _add_line(figure: go.Figure, panel: int, values: Sequence[float], name: str, color: str) -> None:
    row, column = _place(panel)
    line = go.Scatter(x=list(range(len(values))), y=list(values), mode="lines", name=html.escape(name))
    figure.add_trace(line.update(line={"color": color}, legend=_name_legend(panel)), row=row, col=column)


def _add_band(figure: go.Figure, panel: int, found: Sequence[Interval], name: str, color: str) -> None:
    """Draw estimates as a line and their intervals as a band around it."""
    row, column = _place(panel)
    add_band(figure, row, column, list(range(len(found))), found, color, name)
    _add_line(figure, panel, [one.estimate for one in found], name, color)
    figure.data[-1].update(legendgroup=name)


def _add_bar(figure: go.Figure, panel: int, x: float, found: Interval, color: str) -> None:
    row, column = _place(panel)
    bar = go.Scatter(
        x=[x], y=[found.estimate], error_y=error_bars([found]), mode="markers", showlegend=False,
        marker={"color": color, "size": 6},
    )  # fmt: skip
    figure.add_trace(bar, row=row, col=column)
