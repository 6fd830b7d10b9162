"""A watched conversation, turn by turn."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.checking import checked
from persona_lens.plots.style import COLORS, GREY, lay_out

if TYPE_CHECKING:
    from persona_lens.monitoring.watched import WatchedConversation


@checked
def plot_monitor(watched: WatchedConversation) -> go.Figure:
    """Draw each trait's projection before the assistant's turns, with the thresholds of ordinary prompts.

    Args:
        watched: What :meth:`persona_lens.PersonaMonitor.watch` returned.

    Returns:
        A figure with one panel a trait; readings above a threshold are diamonds. Hovering gives the expected score.
    """
    n = len(watched.traits)
    figure = make_subplots(
        rows=n, cols=1, shared_xaxes=True, vertical_spacing=0.16 / n,
        subplot_titles=[html.escape(f"{t.trait}, layer {t.layer}" + f": {t.verdict}" * bool(t.verdict)) for t in
                        watched.traits],
    )  # fmt: skip
    for row, trait in enumerate(watched.traits, start=1):
        readings = watched.of(trait.trait)
        turns = [reading.turn for reading in readings]
        hovers = []
        for reading, prompt in zip(readings, watched.prompts, strict=True):
            shown = html.escape(prompt[:80])
            expected = "" if reading.expected_score is None else f"<br>expected score {reading.expected_score}"
            hovers.append(
                f"turn {reading.turn}: {reading.projection:.2f}, {watched.describe_alert(reading)}{expected}<br>{shown}"
            )
        figure.add_trace(
            go.Scatter(
                x=turns,
                y=[reading.projection for reading in readings],
                mode="lines+markers",
                line={"color": COLORS[2], "width": 2},
                marker={
                    "color": [COLORS[3] if reading.alert else COLORS[2] for reading in readings],
                    "symbol": ["diamond" if reading.alert else "circle" for reading in readings],
                    "size": 11,
                },
                showlegend=False,
                text=hovers,
                hovertemplate="%{text}<extra></extra>",
            ),
            row=row,
            col=1,
        )
        # After the trace: plotly leaves shapes out of a panel that is still empty.
        figure.add_hrect(
            y0=trait.ordinary[0], y1=trait.ordinary[-1], fillcolor=GREY, opacity=0.12, line_width=0, row=row, col=1
        )
        for index, (quantile, threshold) in enumerate(zip(trait.quantiles, trait.thresholds, strict=True)):
            figure.add_hline(
                y=threshold,
                line={"color": COLORS[(1, 3)[min(index, 1)]], "dash": "dash", "width": 1.5},
                annotation_text=f"{quantile:.0%} of ordinary",
                annotation_position="top right" if index else "bottom right",
                row=row,
                col=1,
            )
        figure.update_yaxes(title_text="projection", row=row, col=1)
    figure.update_xaxes(
        title_text="turn of the assistant, read before it is generated",
        tickvals=list(range(1, len(watched.prompts) + 1)),
        range=[0.5, len(watched.prompts) + 0.5],
        row=n,
        col=1,
    )
    raised: dict[str, list[str]] = {}
    for reading in watched.alerts:
        raised.setdefault(reading.trait, []).append(str(reading.turn))
    alerts = "; ".join(f"{trait} before turn {', '.join(turns)}" for trait, turns in raised.items())
    n_ordinary = len(watched.traits[0].ordinary)
    title = html.escape(f"Above the ordinary: {alerts}" if alerts else "Nothing above the ordinary")
    subtitle = f"{html.escape(watched.model.name)}; grey: range of {n_ordinary} ordinary prompts"
    lay_out(figure, title, subtitle, width=900, height=170 + 230 * n, bottom=60)
    return figure
