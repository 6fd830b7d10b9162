"""Ways of steering, compared: what each costs against how far it moves the trait score."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, add_points, lay_out, say, say_estimate
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.layer_sweep import JudgeNote, ScoreAndCoherence, VectorNote
from persona_lens.statistics.interval import Interval


@dataclass(frozen=True)
class SteeringSetting(ScoreAndCoherence):
    """One way of steering at one strength, towards the trait (up) or away from it (down).

    Score, coherence and ``second``, the second judge's score, are of other questions than ``chosen_by``, which is
    missing where one half of the questions did both.
    """

    method: str
    way: str
    strength: str
    perplexity: Interval
    kl: Interval | None
    accuracy: Interval
    example: str
    chosen_by: ScoreAndCoherence | None = None
    second: Interval | None = None


@dataclass(frozen=True)
class OrdinaryNote:
    """What ordinary projections, by which capping is set, were measured on."""

    n_responses: int
    n_tokens: int


_METHOD_STYLES = {
    "one layer": (COLORS[2], "circle"),
    "all layers": (COLORS[1], "square"),
    "capping": (COLORS[5], "diamond"),
    "ablation": (COLORS[4], "x"),
    "unsteered": (INK, "star"),
}


@dataclass(frozen=True, eq=False)
class SteeringModes(Result):
    """What experiments/steering_modes.py finds; ``furthest`` is by way and method, None where nothing is coherent."""

    trait: str
    layer: int
    judge: JudgeNote
    vector: VectorNote
    ordinary: OrdinaryNote
    settings: tuple[SteeringSetting, ...]
    min_coherence: float
    furthest: dict[str, dict[str, SteeringSetting | None]]
    chance_accuracy: float
    n_questions: int
    n_responses: int
    n_unscored: int
    n_items: int
    n_text_tokens: int

    @property
    def judges(self) -> dict[str, str]:
        """The trait's judge."""
        return {self.trait: self.judge.name}

    def plot(self) -> go.Figure:
        """Draw what each way of steering costs against how far it moves the trait score, one line a method.

        Figure 26 of the paper: columns up and down, rows coherence, accuracy and perplexity.
        """
        heads = ("up, from no system prompt", "down, from a system prompt that asks for the trait")
        panels = (
            ("coherence", "coherence (0–100)"),
            ("accuracy", "multiple-choice accuracy"),
            ("perplexity", "perplexity"),
        )
        figure = make_subplots(
            rows=3, cols=2, shared_xaxes=True, shared_yaxes="rows", vertical_spacing=0.04, horizontal_spacing=0.03,
            subplot_titles=heads,
        )  # fmt: skip
        for column, way in enumerate(("up", "down"), start=1):
            rows = [r for r in self.settings if r.way == way]
            start = next(r for r in rows if r.method == "unsteered")
            for line, (key, _) in enumerate(panels, start=1):
                for method in _METHOD_STYLES:
                    steps = [start, *(r for r in rows if r.method == method and r is not start)]
                    if len(steps) > 1 or method == "unsteered":
                        _add_costs(figure, line, column, steps, key, method)
        measured = [r.perplexity for r in self.settings if not r.perplexity.is_missing]
        shown = [end for one in measured for end in (one.low, one.high)] or [1.0]
        # Set by hand: axes that share their range ignore error bars when they choose it.
        ranges: dict[str, tuple[float, float]] = {"coherence": (-3, 103), "accuracy": (-0.03, 1.03)}
        ranges["perplexity"] = (math.log10(min(shown)) - 0.1, math.log10(max(shown)) + 0.1)
        for line, (key, label) in enumerate(panels, start=1):
            figure.update_yaxes(title_text=label, row=line, col=1)
            figure.update_yaxes(type="log" if key == "perplexity" else "linear", range=ranges[key], row=line)
        chance = self.chance_accuracy
        figure.add_hline(
            y=chance, line={"color": INK, "dash": "dot", "width": 1}, annotation_text="chance", row=2, col="all"
        )
        figure.update_yaxes(dtick=1, row=3)
        figure.update_xaxes(range=[-9, 109])
        figure.update_xaxes(title_text="trait score (0–100)", row=3)
        subtitle = (
            f"{self.model_name}, {self.n_questions} questions, {self.n_items} items, "
            f"{self.n_text_tokens} tokens of text; {self.judge.name}; bars: 95 % bootstrap<br>"
            "accuracy and perplexity: every token changed; responses: from the last prompt token on"
        )
        lay_out(figure, _modes_finding(self), subtitle, width=1150, height=1050)
        return figure


def _add_costs(figure: go.Figure, row: int, column: int, steps: Sequence[SteeringSetting], key: str, name: str) -> None:
    color, symbol = _METHOD_STYLES[name]
    kl = ["" if s.kl is None else f"KL {say(s.kl)} nats a token" for s in steps]
    look = {
        "mode": "lines+markers+text",
        "text": [s.strength if row == 1 else "" for s in steps],
        "textposition": "top right" if column == 2 else "top center",
        "textfont": {"size": 10, "color": color},
        "customdata": [[s.strength, divergence] for s, divergence in zip(steps, kl, strict=True)],
        "hovertemplate": f"{name} %{{customdata[0]}}: score %{{x:.0f}}, {key} %{{y:.3g}}; %{{customdata[1]}}",
        "marker": {"symbol": symbol, "size": 10, "color": color},
        "line": {"color": color, "width": 2},
    }
    scores, costs = [s.score for s in steps], [getattr(s, key) for s in steps]
    add_points(figure, row, column, scores, costs, name, look, in_legend=row == 1 and column == 2)


def _modes_finding(result: SteeringModes) -> str:
    """Say how far each method moves the score while the text stays coherent."""
    start = {r.way: r for r in result.settings if r.method == "unsteered"}
    lines = []
    for way in ("up", "down"):
        parts = []
        for method, row in result.furthest[way].items():
            if row is None:
                parts.append(f"{method} at no setting")
            else:
                strength = f" ({row.strength})" if row.strength else ""
                accuracy = say_estimate(row.accuracy, ".2f")
                parts.append(f"{method}{strength} {row.score.estimate:.0f}, accuracy {accuracy}")
        lines.append(f"{way} from {say_estimate(start[way].score, '.0f')}: {'; '.join(parts)}")
    sure = {
        way: [method for method, row in chosen.items() if row is not None and _is_sure(start[way], row, way)]
        for way, chosen in result.furthest.items()
    }
    who = "both judges" if start["up"].second else "its judge"
    said = ", ".join(f"{way} by {' and '.join(methods) or 'no method'}" for way, methods in sure.items())
    head = f"{html.escape(result.trait)}: the score is surely moved for {who} {said}"
    lines.append(f"of the settings surely as coherent as {result.min_coherence:g}; layer {result.layer} or all")
    return f"{head}<br><sup>{'<br>'.join(map(html.escape, lines))}</sup>"


def _is_sure(start: SteeringSetting, row: SteeringSetting, way: str) -> bool:
    """Whether the intervals of a setting and of the unsteered model lie apart, for every judge."""
    for label in ("first", "second") if start.second else ("first",):
        low, high = (
            (_score(start, label), _score(row, label)) if way == "up" else (_score(row, label), _score(start, label))
        )
        if not low.high < high.low:
            return False
    return True


def modes_to_markdown(found: Sequence[SteeringModes]) -> str:
    """Write each method's furthest coherent setting as the other questions saw it, by both judges; then the figures."""
    methods = ("one layer", "all layers", "capping", "ablation")
    lines = [
        f"| trait | way | judge | unsteered | {' | '.join(methods)} |",
        f"|---|---|---|---|{'---|' * len(methods)}",
    ]
    for one in found:
        for way, chosen in one.furthest.items():
            start = next(row for row in one.settings if (row.way, row.method) == (way, "unsteered"))
            for label in ("first", "second") if start.second else ("first",):
                cells = [_say_setting(chosen, method, label) for method in methods]
                lines.append(f"| {one.trait} | {way} | {label} | {_score(start, label):.0f} | {' | '.join(cells)} |")
    figures = [f"![Ways of steering, {one.trait}](../../figures/steering_modes_{one.trait}.png)" for one in found]
    return "\n".join([*lines, "", *figures])


def _score(row: SteeringSetting, label: str) -> Interval:
    return row.score if label == "first" else row.second or Interval.missing()


def _say_setting(chosen: dict[str, SteeringSetting | None], method: str, label: str) -> str:
    row = chosen.get(method)
    if row is None:
        return "no setting" if method in chosen else "–"
    return f"{row.strength}: {_score(row, label):.0f}".removeprefix(": ")
