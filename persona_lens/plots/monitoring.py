"""What a monitor can predict: projections against scores."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.plots.style import INK, lay_out

if TYPE_CHECKING:
    from persona_lens.monitoring.correlation import MonitoringCorrelation
    from persona_lens.monitoring.graded import GradedProjections


@checked
def plot_monitoring(
    settings: Mapping[str, GradedProjections],
    correlations: Mapping[str, MonitoringCorrelation],
    *,
    judge: str = "judge",
    labels: Mapping[str, Mapping[str, str]] | None = None,
    paper: Mapping[str, tuple[float, float]] | None = None,
    second: Mapping[str, MonitoringCorrelation] | None = None,
    second_judge: str = "second judge",
) -> go.Figure:
    """Draw projection against score for one trait, a panel a setting, coloured by condition.

    With a second judge's correlations the title claims only what both judges see.

    Args:
        settings: Graded prompts by setting, e.g. ``system prompts`` and ``shots``.
        correlations: For each setting.
        judge: Whose scores they are.
        labels: For each setting the legend's text for each condition; the condition itself if left out.
        paper: For each setting r overall and within conditions in the paper.
        second: For each setting, those of a second judge's scores of the same responses.
        second_judge: Whose scores these are.

    Returns:
        A figure whose conditions, in order of appearance, run from dark blue to yellow.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figures 4 and 14 and Table 2.
    """
    if not settings or settings.keys() != correlations.keys():
        rule = "name the settings of `correlations`, at least one"
        raise InvalidArgumentError.of("settings", rule, list(settings))
    titles = []
    for name, found in correlations.items():
        theirs = (paper or {}).get(name)
        across, within = (f" (paper {value:.3f})" for value in theirs) if theirs else ("", "")
        other = (second or {}).get(name)
        again = f"<br>second judge: r {other.overall}, within {other.within}" if other else ""
        titles.append(
            f"<b>{html.escape(name)}</b>, n = {found.n}<br>r {found.overall}{across}<br>"
            f"within {found.within}{within}{again}<br>left out, scores hardly vary: "
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
    lines = [f"{first.model.name}, layer {first.layer}; drawn: scores by the {judge}"]
    lines += [f"second judge: {second_judge}"] if second else []
    lines.append("within: r inside each condition, averaged; 95 % bootstrap over questions")
    subtitle = "<br>".join(map(html.escape, lines))
    most = max(len(set(graded.conditions)) for graded in settings.values())
    said = ";<br>".join(map(html.escape, _monitoring_finding(correlations, second)))
    finding = f"{html.escape(first.trait)}: what the projection predicts before the first token:<br>{said}"
    lay_out(figure, finding, subtitle, width=1150, height=760 + 20 * most, bottom=110 + 20 * most, legend=-0.16)
    figure.update_layout(legend_orientation="v")  # beside the other panels' legends
    return figure


def _monitoring_finding(
    correlations: Mapping[str, MonitoringCorrelation], second: Mapping[str, MonitoringCorrelation] | None
) -> list[str]:
    """Say for each setting whether the projection tells conditions, and prompts inside them, apart for every judge."""
    findings = []
    for name, found in correlations.items():
        judges = [found, *([second[name]] if second else [])]
        across = [one.overall.low > 0 for one in judges]
        if all(one.is_reliable for one in judges):
            findings.append(f"{name}: the score, inside conditions too")
        elif all(across):
            findings.append(f"{name}: the score across conditions, not surely inside them")
        elif any(across):
            findings.append(f"{name}: nothing surely for both judges")
        else:
            findings.append(f"{name}: nothing surely")
    return findings
