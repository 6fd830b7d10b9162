"""How well judges tell what they must, and ignore what they must."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, error_bars, lay_out

if TYPE_CHECKING:
    from persona_lens.judges.validation import JudgeValidation

_SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up", "x")
_PANELS_A_ROW = 3
_GOOD = "#009E73"


def plot_validations(validations: Sequence[JudgeValidation]) -> go.Figure:
    """Draw judges' AUROCs on texts of known nature, a panel a trait, with the ranges of a valid judge.

    Args:
        validations: What :func:`persona_lens.judges.validate` returned, of any judges and traits.

    Returns:
        A figure; a filled marker is a judge that is valid for the trait, an open one another.
    """
    traits = list(dict.fromkeys(one.trait for one in validations))
    judges = list(dict.fromkeys(one.judge for one in validations))
    names = list(dict.fromkeys(contrast.name for one in validations for contrast in one.contrasts))
    columns = min(len(traits), _PANELS_A_ROW)
    rows = -(-len(traits) // columns)
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.26 / rows,
        subplot_titles=list(map(html.escape, traits)),
    )  # fmt: skip
    for index, trait in enumerate(traits):
        row, column = index // columns + 1, index % columns + 1
        own = [one for one in validations if one.trait == trait]
        for place, one in enumerate(own):
            number = judges.index(one.judge)
            color, symbol = COLORS[(2, 3, 1, 5, 4, 0)[number % 6]], _SYMBOLS[number % len(_SYMBOLS)]
            shown = [contrast.auroc for contrast in one.contrasts]
            is_valid = one.verdict == "valid"
            aside = 0.5 * ((place + 0.5) / len(own) - 0.5)  # so that the bars do not hide each other
            figure.add_trace(
                go.Scatter(
                    x=[interval.estimate for interval in shown],
                    y=[names.index(contrast.name) + aside for contrast in one.contrasts],
                    error_x={**error_bars(shown), "color": color},
                    mode="markers",
                    marker={
                        "color": color, "size": 9, "symbol": symbol if is_valid else f"{symbol}-open",
                        "line": {"width": 2, "color": color},
                    },
                    name=html.escape(one.judge),
                    legendgroup=one.judge,
                    showlegend=index == 0,
                    text=[html.escape(f"{c.name}: {c.auroc}, {one.verdict}") for c in one.contrasts],
                    hovertemplate="%{text}",
                ),
                row=row,
                col=column,
            )  # fmt: skip
        for contrast in own[0].contrasts:
            at = names.index(contrast.name)
            low, high = (contrast.least, 1.0) if contrast.least is not None else (0.4, 0.6)
            figure.add_shape(
                type="rect", x0=low, x1=high, y0=at - 0.45, y1=at + 0.45, fillcolor=_GOOD, opacity=0.15, line_width=0,
                layer="below", row=row, col=column,
            )  # fmt: skip
        figure.add_vline(x=0.5, line={"color": INK, "dash": "dot", "width": 1}, row=row, col=column)
    figure.update_xaxes(range=[-0.03, 1.03], title_text="AUROC")
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=list(map(html.escape, names)), range=[len(names) - 0.4, -0.6]
    )
    valid = [sum(one.verdict == "valid" for one in validations if one.trait == trait) for trait in traits]
    counts = ", ".join(f"{html.escape(trait)} {n}" for trait, n in zip(traits, valid, strict=True))
    finding = f"valid judges out of {len(judges)}: {counts}"
    subtitle = (
        f"{max(one.n_questions for one in validations)} written questions a trait that no judge was fitted on; green: "
        "where a valid judge lies; filled: valid; bars: 95 % bootstrap over questions"
    )
    lay_out(figure, finding, subtitle, width=max(700, 420 * columns + 100), height=150 + 360 * rows)
    figure.update_layout(margin={"l": 160}, legend={"y": -0.12 / rows})
    return figure
