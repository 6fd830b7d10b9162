"""Persona space drawn: roles in the first two components, what each explains, and what loads on them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.labels import place_labels
from persona_lens.plots.style import COLORS, GREY, INK, error_bars, lay_out
from persona_lens.statistics.interval import Interval

if TYPE_CHECKING:
    from persona_lens.space.space import PersonaSpace, Placed

KIND_STYLES = {
    "assistant": ("the assistant", INK, "star"),
    "service": ("roles that serve", COLORS[2], "circle"),
    "human": ("other people", COLORS[1], "square"),
    "non-human": ("no people", COLORS[4], "diamond"),
    "trait": ("traits", COLORS[5], "triangle-up"),
    "vector": ("trait vectors", COLORS[5], "triangle-up"),
}
_MOST_BARS = 9  # roles shown at each end of a component


def draw_space(space: PersonaSpace) -> go.Figure:
    """Draw a persona space: a scatter, the variance beside chance, and the loadings of two components and the axis.

    Args:
        space: Of at least two components.

    Returns:
        The figure.
    """
    n_first = min(2, len(space.variances))
    heads = ["roles in the first two components", "variance explained, beside chance"]
    heads += [f"component {k + 1}: who lies furthest out" for k in range(n_first)]
    heads += ["who lies along the axis to the assistant"]
    figure = make_subplots(
        rows=2, cols=6, row_heights=[0.55, 0.45], vertical_spacing=0.13, horizontal_spacing=0.13,
        specs=[[{"colspan": 4}, None, None, None, {"colspan": 2}, None], [{"colspan": 2}, None] * 3],
        subplot_titles=heads,
    )  # fmt: skip
    width, height = 1250, 1250
    _draw_scatter(figure, space)
    _draw_variances(figure, space)
    for k in range(n_first):
        _draw_loadings(figure, 1 + 2 * k, _ends(space.rank(k)), k)
    _draw_axis(figure, space)
    shares = ", ".join(f"{one.share:.0%}" for one in space.variances)
    beyond = sum(one.is_beyond_chance for one in space.variances)
    finding = (
        f"{space.variances[0].share:.0%} of what tells {len(space.roles)} roles apart lies along one direction; "
        f"{space.count_further_out(0)} of the roles point along it more closely than the assistant"
    )
    subtitle = (
        f"{html.escape(space.model.name)}, layer {space.layer}, means over {space.n_questions} questions; components "
        f"explain {shares}, {beyond} of them more than chance; {space.noise_share:.0%} of the spread between roles is "
        f"there too where answers are dealt out by chance. Bars: 95 % intervals over questions."
    )
    lay_out(figure, finding, subtitle, width=width, height=height, bottom=110, legend=-0.07)
    _write_labels(figure, space, width, height)
    return figure


def _draw_scatter(figure: go.Figure, space: PersonaSpace) -> None:
    everyone = (space.assistant, *space.roles)
    for kind, (label, color, symbol) in KIND_STYLES.items():
        ours = [one for one in everyone if one.kind == kind]
        if ours:
            figure.add_trace(
                go.Scatter(
                    x=[one.coordinates[0] for one in ours],
                    y=[_second(one) for one in ours],
                    mode="markers",
                    name=label,
                    marker={"color": color, "symbol": symbol, "size": 15 if kind == "assistant" else 9,
                            "line": {"color": "white", "width": 1}},
                    text=[one.name for one in ours],
                    hovertemplate="%{text}: %{x:.2f}, %{y:.2f}<extra></extra>",
                ),
                row=1, col=1,
            )  # fmt: skip
    x, y = ([read(one) for one in everyone] for read in (lambda one: one.coordinates[0], _second))
    for update, values, k in ((figure.update_xaxes, x, 0), (figure.update_yaxes, y, 1)):
        title = f"component {k + 1} (residual-stream units)" if k < len(space.variances) else ""
        update(title_text=title, range=_pad(values), zeroline=True, zerolinecolor="#CCCCCC", row=1, col=1)


def _second(one: Placed) -> float:
    return one.coordinates[1] if len(one.coordinates) > 1 else 0.0


def _pad(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    room = 0.1 * (high - low or 1.0)
    return [low - room, high + room]


def _write_labels(figure: go.Figure, space: PersonaSpace, width: int, height: int) -> None:
    """Name each role where no name covers another; called when the layout's margins are known."""
    xaxis, yaxis = figure.layout.xaxis, figure.layout.yaxis
    margin = figure.layout.margin
    wide = (width - margin.l - margin.r) * (xaxis.domain[1] - xaxis.domain[0])
    tall = (height - margin.t - margin.b) * (yaxis.domain[1] - yaxis.domain[0])
    (x0, x1), (y0, y1) = xaxis.range, yaxis.range
    everyone = (space.assistant, *space.roles)
    points = [
        ((one.coordinates[0] - x0) / (x1 - x0) * wide, (_second(one) - y0) / (y1 - y0) * tall) for one in everyone
    ]
    names = [one.name.replace("_", " ") for one in everyone]
    for one, name, label in zip(everyone, names, place_labels(points, names, wide, tall), strict=True):
        figure.add_annotation(
            x=one.coordinates[0], y=_second(one), ax=label.right, ay=-label.up, xref="x", yref="y",
            text=html.escape(name), font={"size": 11, "color": KIND_STYLES[one.kind][1]}, showarrow=True, arrowhead=0,
            arrowwidth=0.5, arrowcolor="#AAAAAA", standoff=4, borderpad=0,
        )  # fmt: skip


def _draw_variances(figure: go.Figure, space: PersonaSpace) -> None:
    names = [str(k + 1) for k in range(len(space.variances))]
    for label, color, values in (
        ("found", COLORS[2], [one.variance for one in space.variances]),
        ("answers dealt out by chance (95th percentile)", "#BBBBBB", [one.null_variance for one in space.variances]),
    ):
        figure.add_trace(go.Bar(x=names, y=values, name=label, marker_color=color), row=1, col=5)
    figure.update_xaxes(title_text="component", row=1, col=5)
    figure.update_yaxes(title_text="variance (squared units)", rangemode="tozero", row=1, col=5)


def _ends(ranked: Sequence[Placed]) -> list[Placed]:
    if len(ranked) <= 2 * _MOST_BARS:
        return list(ranked)
    return [*ranked[:_MOST_BARS], *ranked[-_MOST_BARS:]]


def _draw_loadings(figure: go.Figure, column: int, roles: Sequence[Placed], k: int) -> None:
    rows = [(one.name, one.cosines[k], KIND_STYLES[one.kind][1]) for one in reversed(roles)]
    _draw_bars(figure, column, rows)
    figure.update_xaxes(title_text=f"cosine with component {k + 1}", range=[-1.05, 1.05], row=2, col=column)


def _draw_axis(figure: go.Figure, space: PersonaSpace) -> None:
    vectors = sorted(space.vectors, key=lambda one: one.axis.estimate)
    rows = [(one.name, one.axis, KIND_STYLES["vector"][1]) for one in vectors]
    rows += [(f"component {k + 1}", one, COLORS[2]) for k, one in reversed(list(enumerate(space.axis_cosines)))]
    _draw_bars(figure, 5, rows)
    figure.update_xaxes(title_text="cosine with the axis", range=[-1.05, 1.05], row=2, col=5)


def _draw_bars(figure: go.Figure, column: int, rows: Sequence[tuple[str, Interval, str]]) -> None:
    intervals = [interval for _, interval, _ in rows]
    bars: dict[str, Any] = {**error_bars(intervals), "color": GREY, "width": 2}
    figure.add_trace(
        go.Bar(
            x=[one.estimate for one in intervals],
            y=[html.escape(name.replace("_", " ")) for name, _, _ in rows],
            orientation="h",
            marker_color=[color for _, _, color in rows],
            error_x=bars,
            showlegend=False,
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        ),
        row=2, col=column,
    )  # fmt: skip
    figure.update_yaxes(tickfont={"size": 11}, dtick=1, row=2, col=column)
