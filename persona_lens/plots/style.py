"""What the figures share: colours that a colour-blind reader can tell apart, intervals, layout."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from persona_lens.statistics.interval import Interval

# Okabe and Ito's palette, told apart by colour-blind readers; ordered so that neighbours differ in lightness too.
COLORS = ("#56B4E9", "#E69F00", "#0072B2", "#D55E00", "#CC79A7", "#009E73")
GREY = "#555555"
INK = "#222222"
LEVEL_COLORS = {"normal": COLORS[0], "I": COLORS[1], "II": COLORS[3]}
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star", "cross", "pentagon", "hexagon")

# Height of a line of title or subtitle, and of a panel's title, in pixels; mean width of their letters.
_LINE, _HEAD_LINE = 24, 20
_TITLE_LETTER, _SUBTITLE_LETTER = 8.7, 6.4


def add_intervals(
    figure: go.Figure,
    column: int,
    names: Sequence[str] | Sequence[float | int],
    intervals: Sequence[Interval],
    color: str,
    symbol: str,
    label: str,
    *,
    line: int = 1,
) -> None:
    """Draw one row's estimate with its interval, along the x axis."""
    figure.add_trace(
        go.Scatter(
            x=[i.estimate for i in intervals],
            y=list(names),
            error_x={**error_bars(intervals), "thickness": 1.5},
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 11, "line": {"width": 2, "color": color}},
            name=label,
        ),
        row=line,
        col=column,
    )


def error_bars(intervals: Sequence[Interval]) -> dict[str, Any]:
    """Return error bars; none for a missing interval, and of length 0 on a side where the estimate lies outside."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(i.high - i.estimate, 0.0) for i in intervals],  # NaN stays, as it is compared first
        "arrayminus": [max(i.estimate - i.low, 0.0) for i in intervals],
        "thickness": 1.2,
        "width": 3,
    }


def add_band(
    figure: go.Figure,
    line: int,
    column: int,
    x: Sequence[float | int],
    found: Sequence[Interval],
    color: str,
    name: str | None = None,
) -> None:
    """Draw intervals as a band in a panel, which goes on and off with the line of its name."""
    band = go.Scatter(
        x=[*x, *reversed(x)], y=[*(one.high for one in found), *(one.low for one in reversed(found))],
        fill="toself", fillcolor=color, opacity=0.2, line={"width": 0}, hoverinfo="skip", showlegend=False,
        legendgroup=name,
    )  # fmt: skip
    figure.add_trace(band, row=line, col=column)


def add_points(
    figure: go.Figure,
    line: int,
    column: int,
    x: Sequence[Interval | float | int | str],
    y: Sequence[Interval],
    name: str,
    look: Mapping[str, Any],
    *,
    in_legend: bool,
    bars: Mapping[str, Any] | None = None,
) -> None:
    """Draw points with their intervals; those of one name go on and off together.

    Args:
        figure: Is added to.
        line: Of its panel.
        column: Of its panel.
        x: Intervals too, or values that are known exactly.
        y: Intervals.
        name: In the legend.
        look: Properties of a plotly Scatter, such as its mode, line and marker.
        in_legend: Whether it is shown there.
        bars: Properties of the error bars.
    """
    across = [one for one in x if isinstance(one, Interval)]
    figure.add_trace(
        go.Scatter(
            x=[one.estimate if isinstance(one, Interval) else one for one in x],
            y=[one.estimate for one in y],
            error_x={**error_bars(across), **(bars or {})} if across else None,
            error_y={**error_bars(y), **(bars or {})},
            name=html.escape(name),
            legendgroup=name,
            showlegend=in_legend,
            **look,
        ),
        row=line,
        col=column,
    )


def add_crosses(
    figure: go.Figure,
    line: int,
    column: int,
    x: Sequence[Interval],
    y: Sequence[Interval],
    name: str,
    marker: Mapping[str, Any],
    *,
    in_legend: bool,
) -> None:
    """Draw points with an interval in both directions, the bars thin and grey."""
    look = {"mode": "markers", "marker": {"size": 12, "line": {"width": 1, "color": INK}, **marker}}
    bars = {"color": GREY, "width": 0, "thickness": 0.8}
    add_points(figure, line, column, x, y, name, look, in_legend=in_legend, bars=bars)


def say(interval: Interval) -> str:
    """Write an interval as ``1.23 [1.00, 1.50]``, and a missing one as ``none``."""
    return "none" if interval.is_missing else str(interval)


def say_estimate(interval: Interval, spec: str) -> str:
    """Write an interval's estimate, and a missing one as ``none``."""
    return "none" if interval.is_missing else format(interval.estimate, spec)


def lay_out(
    figure: go.Figure, title: str, subtitle: str, *, width: int, height: int, bottom: int = 90, legend: float = -0.08
) -> None:
    """Give a figure the look of the others: finding as title, what it rests on as subtitle, the legend below.

    Call it when the figure has its panels: their titles lie between the subtitle and the topmost panels.
    Both are wrapped to the width; a line of the title that is meant to end there ends with a comma, colon or semicolon,
    and does so if all of them fit.
    """
    figure.update_layout(
        template="plotly_white",
        width=width,
        height=height,
        font={"size": 13, "color": INK},
        title={"text": f"{title}<br><sup>{subtitle}</sup>", "x": 0.02, "yanchor": "top"},
        legend={"orientation": "h", "y": legend, "x": 0},
        margin={"l": 80, "r": 40, "b": bottom},
    )
    make_room_for_title(figure)


def make_room_for_title(figure: go.Figure) -> None:
    """Wrap title and subtitle to the figure's width, and leave as much room above the panels as they need.

    A figure that takes whatever width there is stays as it is.
    """
    if figure.layout.width is None:
        return
    title, _, subtitle = figure.layout.title.text.partition("<br><sup>")
    # Lines that were wrapped before something was put in front are joined again; those meant to end do so on a mark.
    title = re.sub(r"(?<![,;:])<br>", " ", title)
    room = 0.94 * figure.layout.width
    longest = int(room / _TITLE_LETTER)
    if any(len(line) > longest for line in title.split("<br>")):
        title = title.replace("<br>", " ")  # else a word or two of one of them would have a line to themselves
    title = _wrap(title, longest)
    subtitle = subtitle.removesuffix("</sup>").replace("</sup><br><sup>", "<br>")
    subtitle = _wrap(subtitle, int(room / _SUBTITLE_LETTER))
    n_lines = 2 + title.count("<br>") + subtitle.count("<br>")
    heads = [
        _HEAD_LINE * (1 + one.text.count("<br>"))
        for one in figure.layout.annotations
        if one.yref == "paper" and one.yanchor == "bottom" and one.y > 0.97
    ]
    figure.update_layout(
        title={"text": f"{title}<br><sup>{subtitle}</sup>", "y": 1 - 40 / figure.layout.height},
        margin={"t": 30 + _LINE * n_lines + max(heads, default=0)},
    )


def _wrap(text: str, width: int) -> str:
    """Break lines that are too long; those with markup stay as they are."""
    lines = []
    for line in text.split("<br>"):
        lines += [line] if "<" in line else textwrap.wrap(line, width, break_long_words=False) or [""]
    return "<br>".join(lines)
