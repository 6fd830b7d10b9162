"""A model's drift over the turns of conversations."""

from __future__ import annotations

import html
import textwrap
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.checking import checked
from persona_lens.errors import check_index
from persona_lens.plots.style import COLORS, INK, SYMBOLS, add_points, lay_out

if TYPE_CHECKING:
    from persona_lens.evaluation.drift import Course, Drift

_COLUMNS = 4
_HEAD_LETTERS = 44  # of a line above a panel


@checked
def plot_drift(drift: Drift, condition: int = 0) -> go.Figure:
    """Draw what was measured, turn by turn, under one condition.

    Args:
        drift: What :func:`persona_lens.evaluation.measure_drift` returned.
        condition: Number of the condition.

    Returns:
        A figure with a panel a course, those of one trait side by side, and a line a kind of user: means over scripts
        with 95 % intervals; the control is dark and dashed.
    """
    check_index("condition", condition, len(drift.conversations.conditions))
    rows = _arrange(drift)
    heads = [_name(course) for row in rows for course in [*row, *[None] * (_COLUMNS - len(row))]]
    figure = make_subplots(
        rows=len(rows), cols=_COLUMNS, subplot_titles=heads, vertical_spacing=0.32 / len(rows), horizontal_spacing=0.07,
        specs=[[{}] * len(row) + [None] * (_COLUMNS - len(row)) for row in rows],
    )  # fmt: skip
    others = [kind for kind in drift.kinds if kind != drift.control]
    styles = {kind: (COLORS[i % len(COLORS)], SYMBOLS[i % len(SYMBOLS)]) for i, kind in enumerate(others)}
    styles[drift.control] = (INK, "cross")
    for line, row in enumerate(rows, start=1):
        for column, course in enumerate(row, start=1):
            for number, (kind, (color, symbol)) in enumerate(styles.items()):
                found = drift.by_turn(course, kind, condition)
                aside = 0.1 * (number - len(styles) / 2)  # so that the bars do not hide each other
                turns = [turn + aside for turn in range(1, len(found) + 1)]
                dash = "dash" if kind == drift.control else "solid"
                look = {
                    "mode": "lines+markers",
                    "marker": {"color": color, "symbol": symbol, "size": 6},
                    "line": {"color": color, "width": 1.8, "dash": dash},
                }
                bars = {"width": 0, "thickness": 0.8}
                in_legend = line == column == 1
                add_points(figure, line, column, turns, found, kind, look, in_legend=in_legend, bars=bars)
            figure.update_yaxes(title_text=html.escape(course.unit), title_standoff=4, row=line, col=column)
            figure.update_xaxes(title_text="turn", title_standoff=4, dtick=3, row=line, col=column)
    name = html.escape(drift.conversations.conditions[condition] or f"condition {condition}")
    figure.update_annotations(font_size=12)
    lay_out(
        figure,
        f"Over the turns of conversations, {name}",
        f"{html.escape(drift.conversations.model.name)}; read without interventions and system prompt; means over "
        "scripts with 95 % intervals",
        width=1280, height=180 + 260 * len(rows), bottom=90, legend=-0.28 / len(rows),
    )  # fmt: skip
    return figure


def _arrange(drift: Drift) -> list[list[Course]]:
    """Return the courses by trait, a row or more a trait, those of none last."""
    by_trait: dict[str, list[Course]] = {}
    for course in sorted(drift.courses, key=lambda one: one.trait == "" or one.name == "coherence"):
        own = "" if course.name == "coherence" else course.trait
        by_trait.setdefault(own, []).append(course)
    return [own[at : at + _COLUMNS] for own in by_trait.values() for at in range(0, len(own), _COLUMNS)]


def _name(course: Course | None) -> str:
    if course is None:
        return ""
    short = course.name.partition(", partly valid")[0].partition(", valid")[0].partition(", not valid")[0]
    head = short if course.name == "coherence" or not course.trait else f"{course.trait}: {short}"
    return "<br>".join(map(html.escape, textwrap.wrap(head, _HEAD_LETTERS)))
