"""What two judges say of the same, what both surely see, and how it is drawn and written."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from persona_lens.plots.style import COLORS, INK, add_intervals
from persona_lens.statistics import Interval

Pair = tuple[Interval, Interval]
"""What each of the two judges says."""
_JUDGES = (("first judge", COLORS[3], "circle"), ("second judge", COLORS[2], "diamond"))


def falls(pair: Sequence[Interval]) -> bool:
    """Whether a difference lies surely below 0 for both judges."""
    return all(one.high < 0 for one in pair)


def rises(pair: Sequence[Interval]) -> bool:
    """Whether a difference lies surely above 0 for both judges."""
    return all(one.low > 0 for one in pair)


def find_verdicts(judge_names: Sequence[str], trait: str) -> str:
    """Return what validation found of two judges, from their names' ends."""
    return " and ".join(name.rpartition("), ")[2].removesuffix(f" for {trait}") for name in judge_names)


def join(names: Sequence[str]) -> str:
    """List names with commas, the last one with *and*."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def say_which(names: Sequence[str], n: int) -> str:
    """Name which of ``n`` it is, or say that it is all or none of them."""
    if len(names) == n > 1:
        return f"all {n}"
    return join(names) if names else f"none of {n}"


def add_pairs(
    figure: go.Figure, line: int, column: int, names: Sequence[str], pairs: Sequence[Pair], *, zero: bool = True
) -> None:
    """Draw what both judges say, one row a name, the first on top."""
    for index, (label, color, symbol) in enumerate(_JUDGES):
        places = [len(names) - 1 - at + 0.13 - 0.26 * index for at in range(len(names))]
        add_intervals(figure, column, places, [pair[index] for pair in pairs], color, symbol, label, line=line)
    if zero:
        figure.add_vline(x=0, line={"color": INK, "width": 1}, row=line, col=column)


def name_places(figure: go.Figure, line: int, column: int, names: Sequence[str]) -> None:
    """Write a panel's names along its y axis, the first on top."""
    places = list(range(len(names)))[::-1]
    figure.update_yaxes(tickvals=places, ticktext=list(names), range=[-0.6, len(names) - 0.4], row=line, col=column)


def show_legend_once(figure: go.Figure) -> None:
    """Leave each name in the legend once."""
    seen: set[str] = set()
    for trace in figure.data:
        trace.update(showlegend=trace.name not in seen, legendgroup=trace.name)
        seen.add(trace.name)
