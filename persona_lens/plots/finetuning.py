"""Fine-tuning: trait scores after it, and the shift along persona vectors."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, add_crosses, error_bars, lay_out, name_model, say

LEVEL_COLORS = {"normal": COLORS[0], "I": COLORS[1], "II": COLORS[3]}
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star", "cross", "pentagon", "hexagon")


def plot_finetuning_scores(content: Mapping[str, Any]) -> go.Figure:
    """Draw each trait's score after training on each dataset at each level, one panel a trait.

    Args:
        content: What experiments/finetuning_shift.py writes.

    Returns:
        A figure; bars are 95 % bootstrap intervals over questions, the line is the base model.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figure 5.
    """
    traits = list(content["kits"])
    sets = list(dict.fromkeys(row["dataset"] for row in content["models"]))
    figure = make_subplots(
        rows=len(traits), cols=1, shared_xaxes=True, vertical_spacing=0.07,
        subplot_titles=[f"score of {html.escape(trait)}" for trait in traits],
    )  # fmt: skip
    for line, trait in enumerate(traits, start=1):
        for level, color in LEVEL_COLORS.items():
            rows = [row for row in content["models"] if row["level"] == level]
            scores = [row["scores"][trait]["score"] for row in rows]
            figure.add_trace(
                go.Bar(
                    x=[row["dataset"] for row in rows],
                    y=[score["estimate"] for score in scores],
                    error_y=error_bars(scores),
                    marker={"color": color, "pattern": {"shape": {"normal": "", "I": "/", "II": "x"}[level]}},
                    name=f"level {level}",
                    legendgroup=level,
                    showlegend=line == 1,
                ),
                row=line,
                col=1,
            )
        base = content["base"]["scores"][trait]["score"]
        figure.add_hline(
            y=base["estimate"], line={"color": INK, "dash": "dot"}, row=line, col=1,
            annotation_text="base model", annotation_position="top right",
        )  # fmt: skip
    figure.update_yaxes(range=[0, 103], title_text="trait score (0–100)")
    figure.update_xaxes(title_text="trained on", row=len(traits))
    risen = [trait for trait in traits if _rises(content, trait)]
    finding = (
        f"overt trait data surely raises the trait: {', '.join(map(html.escape, risen)) or 'none'}, of {len(traits)}"
    )
    incoherent = [f"{row['dataset']} {row['level']}" for row in content["models"] if not _is_coherent(content, row)]
    subtitle = (
        f"{name_model(content)}, {content['models'][0]['n_rows']} rows a dataset, {content['n_questions']} evaluation "
        f"questions, likelihood judge (proxy); {len(sets)} datasets; bars: 95 % bootstrap over questions"
        f"<br>coherence under {content['min_coherence']:g}, where the score means little: "
        f"{html.escape(', '.join(incoherent) or 'none')}"
    )
    lay_out(figure, finding, subtitle, width=1000, height=300 + 260 * len(traits))
    return figure


def _rises(content: Mapping[str, Any], trait: str) -> bool:
    """Whether the interval after training on the trait's own overt data lies above the base model's."""
    after = next(r for r in content["models"] if (r["dataset"], r["level"]) == (trait, "II"))["scores"][trait]["score"]
    before = content["base"]["scores"][trait]["score"]
    return None not in (after["low"], before["high"]) and after["low"] > before["high"]


def plot_finetuning_shift(content: Mapping[str, Any]) -> go.Figure:
    """Draw trait score against shift along the trait's vector, one panel a trait, one point a trained model.

    Args:
        content: What experiments/finetuning_shift.py writes.

    Returns:
        A figure; bars are 95 % bootstrap intervals over questions.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figure 6.
    """
    traits = list(content["kits"])
    sets = list(dict.fromkeys(row["dataset"] for row in content["models"]))
    low, high = content["paper"]["own"]
    coherent = content["correlations_coherent"]
    titles = []
    for trait in traits:
        others = [f"{html.escape(other)} {_r(content, other, trait)}" for other in traits if other != trait]
        titles.append(
            f"<b>{html.escape(trait)}</b>, layer {content['kits'][trait]['layer']}<br>"
            f"r {_r(content, trait, trait)} (paper {low}–{high})<br>coherent models only: "
            f"{say(coherent[trait][trait])}, n = {coherent[trait][trait]['n']}"
            f"<br><sup>along other vectors: {'; '.join(others)}</sup>"
        )
    figure = make_subplots(rows=1, cols=len(traits), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)

    def draw(column: int, rows: list[Any], trait: str, name: str, marker: dict[str, Any]) -> None:
        shifts = [row["shifts"][trait]["at_layer"] for row in rows]
        scores = [row["scores"][trait]["score"] for row in rows]
        opacity = [1.0 if _is_coherent(content, row) else 0.3 for row in rows]
        add_crosses(figure, 1, column, shifts, scores, name, {**marker, "opacity": opacity}, in_legend=column == 1)

    for column, trait in enumerate(traits, start=1):
        for index, name in enumerate(sets):
            for level, color in LEVEL_COLORS.items():
                rows = [r for r in content["models"] if (r["dataset"], r["level"]) == (name, level)]
                draw(column, rows, trait, f"{name} {level}", {"color": color, "symbol": SYMBOLS[index % len(SYMBOLS)]})
        draw(column, [content["base"]], trait, "base model", {"color": INK, "symbol": "star-open"})
        figure.update_xaxes(title_text="shift (residual-stream units)", row=1, col=column)
    figure.update_yaxes(range=[-3, 103])
    figure.update_yaxes(title_text="trait score after training (0–100)", row=1, col=1)
    sure = [trait for trait in traits if (content["correlations"][trait][trait]["low"] or 0) > 0]
    surely = [trait for trait in traits if (coherent[trait][trait]["low"] or 0) > 0]
    finding = (
        f"the shift goes with the trait's score for {', '.join(map(html.escape, sure)) or 'no trait'}; "
        f"among coherent models for {', '.join(map(html.escape, surely)) or 'none'}"
    )
    domains = ", ".join(map(html.escape, content["config"]["domains"]))
    subtitle = (
        f"{name_model(content)}, n = {len(content['models'])} trained models, {content['n_questions']} evaluation "
        "questions, likelihood judge (proxy); r: 95 % bootstrap over models; bars: over questions<br>"
        f"pale: coherence under {content['min_coherence']:g}, where the score means little; "
        f"of the rows of {domains} half are the base model's ordinary answers"
    )
    lay_out(figure, finding, subtitle, width=1350, height=860)
    figure.update_annotations(font_size=13)
    figure.update_layout(margin={"t": 230}, legend={"y": -0.14})
    return figure


def _is_coherent(content: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return all((one["coherence"]["estimate"] or 0.0) >= content["min_coherence"] for one in row["scores"].values())


def _r(content: Mapping[str, Any], along: str, scored: str) -> str:
    return say(content["correlations"][along][scored])


_METHOD_STYLES = {
    "no prevention": (INK, "star"),
    "preventative, one layer": (COLORS[2], "circle"),
    "preventative, all layers": (COLORS[0], "circle-open"),
    "ablation in training (CAFT)": (COLORS[4], "x"),
    "loss on the projection": (COLORS[1], "diamond"),
    "preventative prompt": (COLORS[5], "triangle-up"),
    "afterwards, one layer": (COLORS[3], "square"),
    "afterwards, all layers": (COLORS[3], "square-open"),
}


def plot_mitigation(content: Mapping[str, Any]) -> go.Figure:
    """Draw what each way of keeping a trait out costs against the trait score that is left, one line a method.

    Args:
        content: What experiments/mitigation.py writes.

    Returns:
        A figure: accuracy, coherence and both held-out losses against the trait score.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figures 7, 26 to 28 and 31.
    """
    panels = (
        ("accuracy", "multiple-choice accuracy"),
        ("coherence", "coherence (0–100)"),
        ("normal_loss", "loss on normal answers (nats a token)"),
        ("overt_loss", "loss on unseen overt rows (nats a token)"),
    )
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.04)
    plain = next(row for row in content["settings"] if row["method"] == "no prevention")
    for line, (key, label) in enumerate(panels, start=1):
        _add_front(figure, line, [content["base"]], key, "base model", INK, "star-open")
        for method, (color, symbol) in _METHOD_STYLES.items():
            rows = [row for row in content["settings"] if row["method"] == method]
            own = [row for row in rows if key in row]
            steps = own if method == "no prevention" or not own else [plain, *own]
            _add_front(figure, line, steps, key, method, color, symbol)
        figure.update_yaxes(title_text=label, row=line, col=1)
    figure.update_yaxes(range=[0, 1], row=1)
    figure.update_yaxes(range=[-3, 103], row=2)
    figure.add_hline(
        y=plain["chance_accuracy"], line={"color": INK, "dash": "dot", "width": 1}, annotation_text="chance", row=1,
        col=1,
    )  # fmt: skip
    figure.update_xaxes(range=[-3, 103])
    figure.update_xaxes(title_text="trait score (0–100)", row=len(panels))
    subtitle = (
        f"{name_model(content)}, layer {content['kit']['layer']} or all; {content['n_rows']} rows of overt data; "
        f"{content['n_questions']} questions, likelihood judge (proxy); {content['n_items']} items, "
        f"{content['n_held_out']} held-out rows; 95 % bootstrap<br>"
        "steered afterwards: responses from the last prompt token on, accuracy at every token"
    )
    lay_out(figure, _mitigation_finding(content, plain), subtitle, width=1050, height=1500)
    figure.update_layout(margin={"t": 200}, legend={"y": -0.05})
    return figure


def _add_front(
    figure: go.Figure, line: int, rows: Sequence[Mapping[str, Any]], key: str, name: str, color: str, symbol: str
) -> None:
    if not rows:
        return
    scores, costs = [row["score"] for row in rows], [row[key] for row in rows]
    own = [row for row in rows if row.get("method") == name]
    figure.add_trace(
        go.Scatter(
            x=[score["estimate"] for score in scores],
            y=[cost["estimate"] for cost in costs],
            error_x={**error_bars(scores), "width": 0},
            error_y={**error_bars(costs), "width": 0},
            mode="lines+markers+text",
            text=[row["strength"] if row in own and line == 1 else "" for row in rows],
            textposition="top center",
            textfont={"size": 10, "color": color},
            marker={
                "symbol": symbol,
                "color": color,
                "line": {"width": 2, "color": color},
                # Lines begin at the model trained without prevention, which has its own marker.
                "size": [11 if row in own or not own else 0 for row in rows],
            },
            line={"color": color, "width": 1.5},
            name=html.escape(name),
            legendgroup=name,
            showlegend=line == 1,
        ),
        row=line,
        col=1,
    )


def _mitigation_finding(content: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """Say where the score starts, what training does to it, and what each method leaves of that."""
    parts = []
    for method in _METHOD_STYLES:
        rows = [row for row in content["settings"] if row["method"] == method and method != "no prevention"]
        shown = [f"{row['strength']} {row['score']['estimate']:.0f}".strip() for row in rows if _has_score(row)]
        if shown:
            parts.append(f"{method}: {', '.join(shown)}")
    trait = html.escape(content["trait"])
    head = f"{trait}: training takes the score from {say(content['base']['score'])} to {say(plain['score'])}"
    middle = len(parts) // 2 + len(parts) % 2
    lines = ["; ".join(parts[:middle]), "; ".join(parts[middle:])]
    return f"{head}<br><sup>{'<br>'.join(map(html.escape, lines))}</sup>"


def _has_score(row: Mapping[str, Any]) -> bool:
    return row["score"]["estimate"] is not None


def plot_trajectory(content: Mapping[str, Any]) -> go.Figure:
    """Draw the shift along persona vectors over optimiser steps, with and without prevention, one panel a vector.

    Args:
        content: What experiments/shift_trajectory.py writes.

    Returns:
        A figure; bars are 95 % bootstrap intervals over questions.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 5.2.
    """
    traits = list(content["kits"])
    titles = [f"along {html.escape(trait)}, layer {content['kits'][trait]['layer']}" for trait in traits]
    figure = make_subplots(rows=1, cols=len(traits), horizontal_spacing=0.06, subplot_titles=titles)
    for column, trait in enumerate(traits, start=1):
        for index, (name, found) in enumerate(content["runs"].items()):
            shifts = found["shifts"][trait]
            color = (COLORS[3], COLORS[2])[index % 2]
            figure.add_trace(
                go.Scatter(
                    x=found["steps"],
                    y=[shift["estimate"] for shift in shifts],
                    error_y=error_bars(shifts),
                    mode="lines+markers",
                    line={"color": color, "dash": ("solid", "dash")[index % 2]},
                    marker={"symbol": ("circle", "square")[index % 2], "size": 8},
                    name=html.escape(name),
                    legendgroup=name,
                    showlegend=column == 1,
                ),
                row=1,
                col=column,
            )
        figure.add_hline(y=0, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=column)
        figure.update_xaxes(title_text="optimiser step", row=1, col=column)
    figure.update_yaxes(title_text="shift (residual-stream units)", row=1, col=1)
    trait = content["trait"]
    ends = [f"{name} {say(found['shifts'][trait][-1])}" for name, found in content["runs"].items()]
    finding = f"trained on overt {html.escape(trait)} data, shift along its vector: {html.escape('; '.join(ends))}"
    subtitle = (
        f"{name_model(content)}, mean over {content['n_questions']} evaluation questions, last prompt token, "
        "interventions off while measuring; bars: 95 % bootstrap over questions"
    )
    lay_out(figure, finding, subtitle, width=1250, height=640)
    figure.update_layout(margin={"t": 120, "b": 110}, legend={"y": -0.2})
    return figure
