"""A watched conversation, and what a monitor can predict."""

from __future__ import annotations

import html
from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from persona_lens.monitoring import GradedProjections, MonitoringCorrelation, WatchedConversation
from persona_lens.plots.style import COLORS, GREY, INK, show


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
    figure.update_layout(
        template="plotly_white",
        width=900,
        height=170 + 230 * n,
        font={"size": 14, "color": INK},
        title={
            "text": f"{html.escape(f'Above the ordinary: {alerts}' if alerts else 'Nothing above the ordinary')}"
            f"<br><sup>{html.escape(watched.model.name)}; grey: range of {n_ordinary} ordinary prompts</sup>",
            "x": 0.02,
        },
        margin={"t": 110, "l": 70, "r": 30, "b": 60},
    )
    return figure


def plot_monitoring(
    settings: Mapping[str, GradedProjections],
    correlations: Mapping[str, MonitoringCorrelation],
    *,
    labels: Mapping[str, Mapping[str, str]] | None = None,
    paper: Mapping[str, tuple[float, float]] | None = None,
) -> go.Figure:
    """Draw projection against score for one trait, a panel a setting, coloured by condition.

    Args:
        settings: Graded prompts by setting, e.g. ``system prompts`` and ``shots``.
        correlations: For each setting.
        labels: For each setting the legend's text for each condition; the condition itself if left out.
        paper: For each setting r overall and within conditions in the paper.

    Returns:
        A figure whose conditions, in order of appearance, run from dark blue to yellow.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figures 4 and 14 and Table 2.
    """
    titles = []
    for name, found in correlations.items():
        theirs = (paper or {}).get(name)
        across, within = (f" (paper {value:.3f})" for value in theirs) if theirs else ("", "")
        titles.append(
            f"<b>{html.escape(name)}</b>, n = {found.n}<br>r {show(found.overall)}{across}<br>"
            f"within {show(found.within)}{within}<br>left out, scores hardly vary: "
            f"{html.escape(', '.join(found.left_out) or 'none')}"
        )
    figure = make_subplots(
        rows=1, cols=len(settings), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles
    )
    for column, (name, graded) in enumerate(settings.items(), start=1):
        conditions = list(dict.fromkeys(graded.conditions))
        # Cividis looks the same to colour-blind readers; its order is that of the conditions.
        at = [index / max(len(conditions) - 1, 1) for index in range(len(conditions))]
        for index, (condition, color) in enumerate(zip(conditions, sample_colorscale("Cividis", at), strict=True)):
            rows = [row for row, its_own in enumerate(graded.conditions) if its_own == condition]
            label = (labels or {}).get(name, {}).get(condition, condition)
            figure.add_trace(
                go.Scatter(
                    x=[float(graded.projections[row]) for row in rows],
                    y=[float(graded.scores[row]) for row in rows],
                    mode="markers",
                    marker={
                        "color": color, "size": 9, "symbol": ("circle", "diamond", "square")[index % 3],
                        "line": {"width": 0.5, "color": INK},
                    },
                    name=html.escape(label),
                    legend="legend" if column == 1 else f"legend{column}",
                    text=[html.escape(graded.questions[row]) for row in rows],
                    hovertemplate="%{text}<br>projection %{x:.2f}, score %{y:.0f}",
                ),
                row=1,
                col=column,
            )  # fmt: skip
        figure.update_xaxes(title_text="projection of the last prompt token (residual-stream units)", row=1, col=column)
        start = (column - 1) / len(settings)
        title = {"text": html.escape(name), "side": "top"}
        legend = {"x": start, "y": -0.16, "xanchor": "left", "yanchor": "top", "font": {"size": 11}, "title": title}
        figure.update_layout({"legend" if column == 1 else f"legend{column}": legend})
    figure.update_yaxes(title_text="mean trait score of the responses (0–100)", range=[-3, 103], row=1, col=1)
    first = next(iter(settings.values()))
    subtitle = (
        f"{first.model.name}, layer {first.layer}, scores by the likelihood judge (proxy); within: r inside each "
        "condition, averaged; 95 % bootstrap over questions"
    )
    most = max(len(set(graded.conditions)) for graded in settings.values())
    figure.update_layout(
        template="plotly_white",
        width=1150,
        height=700 + 20 * most,
        font={"size": 14, "color": INK},
        title={
            "text": "<br>".join(map(html.escape, _monitoring_finding(first.trait, correlations)))
            + f"<br><sup>{html.escape(subtitle)}</sup>",
            "x": 0.02,
            "y": 0.97,
            "yanchor": "top",
        },
        margin={"t": 200, "l": 70, "r": 30, "b": 110 + 20 * most},
    )
    return figure


def _monitoring_finding(trait: str, correlations: Mapping[str, MonitoringCorrelation]) -> list[str]:
    """Say for each setting whether the projection tells conditions, and prompts inside them, apart."""
    findings = []
    for name, found in correlations.items():
        if found.is_reliable:
            findings.append(f"{name}: the score, inside conditions too")
        elif found.overall.low > 0:
            findings.append(f"{name}: the score across conditions, not surely inside them")
        else:
            findings.append(f"{name}: nothing surely")
    return [f"{trait}: what the projection predicts before the first token", "; ".join(findings)]
