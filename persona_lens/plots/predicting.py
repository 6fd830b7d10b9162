"""What a dataset's projection difference says of the model that will be trained on it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.finetuning import LEVEL_COLORS, SYMBOLS
from persona_lens.plots.style import COLORS, INK, add_crosses, add_intervals, error_bars, lay_out, name_model, say

_TARGETS = {"score": "trait score after training (0–100)", "shift": "shift (residual-stream units)"}
_PREDICTORS = {
    "exact": "projection difference",
    "subset": "… of a random subset",
    "last_prompt": "… from the last prompt token",
    "raw": "raw projection",
}


def plot_projection_difference(content: Mapping[str, Any]) -> go.Figure:
    """Draw score and shift after training against the data's projection difference, one column a trait.

    Args:
        content: What experiments/projection_difference.py writes.

    Returns:
        A figure, one point a dataset; bars are 95 % bootstrap intervals over samples (ΔP) and questions.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figures 8 and 17.
    """
    traits = list(content["kits"])
    sets = list(dict.fromkeys(row["dataset"] for row in content["datasets"]))
    titles = [
        f"<b>{html.escape(trait)}</b>, {target}: r {_r(content, trait, target)}"
        f"<br><sup>coherent models only: {_r(content, trait, target, 'correlations_coherent')}</sup>"
        for target in _TARGETS
        for trait in traits
    ]
    figure = make_subplots(
        rows=2, cols=len(traits), subplot_titles=titles, horizontal_spacing=0.05, vertical_spacing=0.17
    )
    for line, (target, label) in enumerate(_TARGETS.items(), start=1):
        for column, trait in enumerate(traits, start=1):
            for index, name in enumerate(sets):
                for level, color in LEVEL_COLORS.items():
                    rows = [r for r in content["datasets"] if (r["dataset"], r["level"]) == (name, level)]
                    opacity = [1.0 if _is_coherent(content, row) else 0.3 for row in rows]
                    marker = {"color": color, "symbol": SYMBOLS[index % len(SYMBOLS)], "opacity": opacity}
                    add_crosses(
                        figure, line, column, [row["predictors"][trait]["exact"] for row in rows],
                        [row["outcome"][trait][target] for row in rows], f"{name} {level}", marker,
                        in_legend=line == column == 1,
                    )  # fmt: skip
            figure.update_xaxes(title_text="ΔP of the data (residual-stream units)", row=line, col=column)
        figure.update_yaxes(title_text=label, row=line, col=1)
    sure = {target: [t for t in traits if _is_sure(content, t, target)] for target in _TARGETS}
    finding = "; ".join(
        f"ΔP goes with the {target} for {', '.join(map(html.escape, names)) or 'no trait'}"
        for target, names in sure.items()
    )
    low, high = content["paper"]["score"]
    subtitle = (
        f"{name_model(content)}, {len(content['datasets'])} datasets, three levels of each of {len(sets)}, screened "
        "with the base model before training; r: 95 % bootstrap over datasets (paper, score, other traits: "
        f"{low}–{high})<br>"
        "bars: 95 % bootstrap over samples and questions; likelihood judge (proxy); pale: coherence after training "
        f"under {content['min_coherence']:g}, where the score means little"
    )
    lay_out(figure, finding, subtitle, width=440 * len(traits) + 80, height=1080)
    figure.update_annotations(font_size=13)
    figure.update_layout(margin={"t": 170, "b": 120}, legend={"y": -0.09})
    return figure


def plot_predictors(content: Mapping[str, Any]) -> go.Figure:
    """Draw how well each way of measuring the data goes with score and shift, one panel a trait.

    Args:
        content: What experiments/projection_difference.py writes.

    Returns:
        A figure; bars are 95 % bootstrap intervals over datasets.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figures 21 and 23.
    """
    traits = list(content["kits"])
    figure = make_subplots(rows=1, cols=len(traits), shared_yaxes=True, subplot_titles=list(map(html.escape, traits)))
    styles = {"score": (COLORS[3], "circle"), "shift": (COLORS[2], "square-open")}
    for column, trait in enumerate(traits, start=1):
        for target, (color, symbol) in styles.items():
            found = content["correlations"][trait][target]
            there = [name for name in _PREDICTORS if found[name]["estimate"] is not None]
            add_intervals(
                figure, column, [_PREDICTORS[name] for name in there], [found[name] for name in there], color, symbol,
                f"against the {target} after training",
            )  # fmt: skip
        figure.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
        figure.update_xaxes(title_text="r over datasets", range=[-1.05, 1.05], row=1, col=column)
    figure.update_yaxes(autorange="reversed")
    figure.update_traces(showlegend=False)
    figure.update_traces(showlegend=True, selector=lambda trace: trace.xaxis in (None, "x"))
    n_subset = f"{100 * content['subset_fraction']:.0f} %"
    finding = "<br>".join(f"{html.escape(trait)}: {_name_sure(content, trait)}" for trait in traits)
    subtitle = (
        f"{name_model(content)}, {len(content['datasets'])} datasets, 95 % bootstrap over datasets; likelihood judge "
        f"(proxy)<br>random subset: {n_subset} of the samples; last prompt token: in place of the base model's response"
    )
    lay_out(figure, f"surely goes with the score after training<br>{finding}", subtitle, width=1350, height=600)
    figure.update_layout(margin={"t": 180, "b": 120, "l": 210}, legend={"y": -0.3}, title={"font": {"size": 15}})
    return figure


def plot_real_conversations(content: Mapping[str, Any]) -> go.Figure:
    """Draw what training on the highest, random and lowest samples of real data does, before and after a judge.

    Args:
        content: What experiments/real_conversations.py writes.

    Returns:
        A figure; bars are 95 % bootstrap intervals over questions (ΔP: over samples), lines the base model.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figure 10.
    """
    measures = {
        "delta": "ΔP of the subset (residual-stream units)",
        "score": "trait score after training (0–100)",
        "coherence": "coherence after training (0–100)",
        "shift": "shift (residual-stream units)",
    }
    pools = list(content["n_pool"])
    figure = make_subplots(rows=1, cols=len(measures), horizontal_spacing=0.06)
    for column, (measure, label) in enumerate(measures.items(), start=1):
        for index, pool in enumerate(pools):
            rows = [row for row in content["models"] if row["pool"] == pool]
            intervals = [row[measure] for row in rows]
            figure.add_trace(
                go.Scatter(
                    x=[row["subset"] for row in rows], y=[one["estimate"] for one in intervals],
                    error_y=error_bars(intervals), mode="markers+lines", name=html.escape(pool), legendgroup=pool,
                    line={"color": (COLORS[3], COLORS[2])[index % 2], "dash": ("solid", "dash")[index % 2]},
                    marker={"size": 11, "symbol": ("circle", "square-open")[index % 2]}, showlegend=column == 1,
                ),
                row=1,
                col=column,
            )  # fmt: skip
        level = content["base"][measure]["estimate"] if measure in ("score", "coherence") else 0.0
        figure.add_hline(y=level, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=column)
        figure.update_yaxes(title_text=label, row=1, col=column)
        if measure in ("score", "coherence"):
            figure.update_yaxes(range=[0, 103], row=1, col=column)
    trait = html.escape(content["trait"])
    findings = []
    for pool in pools:
        rows = [row for row in content["models"] if row["pool"] == pool]
        shown = ", ".join(f"{row['subset']} {say(row['score'])}" for row in rows)
        findings.append(f"{html.escape(pool)}: {html.escape(shown)}")
    speed = content["speed"]
    share = content["counts"]["scored"] / sum(content["counts"].values())
    rate = f" at {share * speed['rows'] / speed['seconds']:.1f} a second" if speed["seconds"] else ""
    data = html.escape(content["config"]["data"])
    fewest = min(row["n_rows"] for row in content["models"])
    subtitle = (
        f"{name_model(content)}; {content['counts']['scored']} conversations of {data} "
        f"screened for {len(content['kits'])} traits{rate}; {fewest} or more rows for each of "
        f"{len(content['models'])} trainings<br>"
        "likelihood judge (proxy); its filter removes the half it scores highest; dotted: base model; 95 % bootstrap "
        "over questions (ΔP: over samples), which leaves the chance of training out"
    )
    title = f"{trait} after training on real conversations — {'<br>'.join(findings)}"
    lay_out(figure, title, subtitle, width=1450, height=640)
    figure.update_layout(margin={"t": 190, "b": 110}, legend={"y": -0.16}, title={"font": {"size": 15}})
    return figure


def _name_sure(content: Mapping[str, Any], trait: str) -> str:
    found = content["correlations"][trait]["score"]
    sure = [_PREDICTORS[name].replace("… ", "ΔP ") for name in _PREDICTORS if (found[name]["low"] or 0.0) > 0]
    return ", ".join(sure) or "none"


def _r(content: Mapping[str, Any], trait: str, target: str, which: str = "correlations") -> str:
    found = content[which][trait][target]["exact"]
    return f"{say(found)}, n = {found['n']}"


def _is_sure(content: Mapping[str, Any], trait: str, target: str) -> bool:
    return (content["correlations"][trait][target]["exact"]["low"] or 0.0) > 0


def _is_coherent(content: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return all((one["coherence"]["estimate"] or 0.0) >= content["min_coherence"] for one in row["outcome"].values())
