"""Ways of keeping a trait out of a model that is trained on data which show it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, add_points, lay_out
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.trained_models import Kit, ScoredModel, Shift
from persona_lens.statistics.interval import Interval


@dataclass(frozen=True)
class MeasuredModel(ScoredModel):
    """A model with what it costs; losses and shift are None where it is steered afterwards."""

    accuracy: Interval
    perplexity: Interval
    chance_accuracy: float
    overt_loss: Interval | None
    normal_loss: Interval | None
    shift: Shift | None


@dataclass(frozen=True)
class MeasuredModels(Record):
    """A trained model as it is and with every intervention; ``losses`` are those of its training."""

    losses: tuple[float, ...]
    models: tuple[MeasuredModel, ...]


@dataclass(frozen=True)
class MitigationSetting(MeasuredModel):
    """A way of training, or of steering afterwards, at one strength."""

    method: str
    strength: str
    losses: tuple[float, ...]


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


@dataclass(frozen=True, eq=False)
class Mitigation(Result):
    """What experiments/mitigation.py finds."""

    trait: str
    kit: Kit
    base: MeasuredModel
    settings: tuple[MitigationSetting, ...]
    n_questions: int
    n_rows: int
    n_held_out: int
    n_items: int

    @property
    def judges(self) -> dict[str, str]:
        """The trait's judge."""
        return {self.trait: self.kit.judge.name}

    def plot(self) -> go.Figure:
        """Draw what each way of keeping a trait out costs against the trait score that is left, one line a method.

        Figures 7, 26 to 28 and 31 of the paper: accuracy, coherence and both held-out losses.
        """
        panels = (
            ("accuracy", "multiple-choice accuracy"),
            ("coherence", "coherence (0–100)"),
            ("normal_loss", "loss on normal answers<br>(nats a token)"),
            ("overt_loss", "loss on unseen overt rows<br>(nats a token)"),
        )
        figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.04)
        plain = next(row for row in self.settings if row.method == "no prevention")
        for line, (key, label) in enumerate(panels, start=1):
            _add_front(figure, line, [self.base], key, "base model", INK, "star-open")
            for method, (color, symbol) in _METHOD_STYLES.items():
                rows = [row for row in self.settings if row.method == method]
                own = [row for row in rows if getattr(row, key) is not None]
                steps = own if method == "no prevention" or not own else [plain, *own]
                _add_front(figure, line, steps, key, method, color, symbol)
            figure.update_yaxes(title_text=label, row=line, col=1)
        figure.update_yaxes(range=[0, 1], row=1)
        figure.update_yaxes(range=[-3, 103], row=2)
        figure.add_hline(
            y=plain.chance_accuracy, line={"color": INK, "dash": "dot", "width": 1}, annotation_text="chance", row=1,
            col=1,
        )  # fmt: skip
        figure.update_xaxes(range=[-3, 103])
        figure.update_xaxes(title_text="trait score (0–100)", row=len(panels))
        subtitle = (
            f"{self.model_name}, layer {self.kit.layer} or all; {self.n_rows} rows of overt data; "
            f"{self.n_questions} questions, {html.escape(self.kit.judge.name)}; {self.n_items} items, "
            f"{self.n_held_out} held-out rows; 95 % bootstrap<br>"
            "steered afterwards: responses from the last prompt token on, accuracy at every token"
        )
        lay_out(figure, _mitigation_finding(self, plain), subtitle, width=1050, height=1500, legend=-0.05)
        return figure


def _add_front(
    figure: go.Figure, line: int, rows: Sequence[MeasuredModel], key: str, name: str, color: str, symbol: str
) -> None:
    if not rows:
        return
    own = [row for row in rows if isinstance(row, MitigationSetting) and row.method == name]
    look = {
        "mode": "lines+markers+text",
        "text": [row.strength if row in own and line == 1 else "" for row in rows],
        "textposition": "top center",
        "textfont": {"size": 10, "color": color},
        "marker": {
            "symbol": symbol,
            "color": color,
            "line": {"width": 2, "color": color},
            # Lines begin at the model trained without prevention, which has its own marker.
            "size": [11 if row in own or not own else 0 for row in rows],
        },
        "line": {"color": color, "width": 1.5},
    }
    scores, costs = [row.score for row in rows], [getattr(row, key) for row in rows]
    add_points(figure, line, 1, scores, costs, name, look, in_legend=line == 1, bars={"width": 0})


def _mitigation_finding(result: Mitigation, plain: MitigationSetting) -> str:
    """Say where the score starts, what training does to it, and what each method leaves of that."""
    parts = []
    for method in _METHOD_STYLES:
        rows = [row for row in result.settings if row.method == method and method != "no prevention"]
        shown = [f"{row.strength} {row.score.estimate:.0f}".strip() for row in rows if not row.score.is_missing]
        if shown:
            parts.append(f"{method}: {', '.join(shown)}")
    trait = html.escape(result.trait)
    sure = [
        f"{row.method}{f' × {row.strength}' if row.strength else ''}"
        for row in result.settings
        if all(
            kept is not None and worst is not None and kept.high < worst.low
            for kept, worst in ((row.score, plain.score), (row.second, plain.second))
        )
    ]
    head = (
        f"{trait}: training takes the score from {result.base.score.estimate:.0f} to {plain.score.estimate:.0f}; "
        f"surely lower than that for both judges: {html.escape(', '.join(sure) or 'no way')}"
    )
    middle = len(parts) // 2 + len(parts) % 2
    lines = ["; ".join(parts[:middle]), "; ".join(parts[middle:])]
    return f"{head}<br><sup>{'<br>'.join(map(html.escape, lines))}</sup>"


def mitigation_to_markdown(found: Sequence[Mitigation]) -> str:
    """Write every way of keeping the trait out with what it costs, a table a trait; then the figures."""
    lines = []
    for one in found:
        lines += [
            f"| {one.trait} | strength | score, first judge | second judge | coherence | accuracy | perplexity | "
            "loss, unseen overt rows | loss, ordinary answers | shift |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        rows: list[tuple[str, str, MeasuredModel]] = [("base model", "–", one.base)]
        rows += [(row.method, row.strength or "–", row) for row in one.settings]
        for method, strength, row in rows:
            losses = ["–" if loss is None else f"{loss:.2f}" for loss in (row.overt_loss, row.normal_loss)]
            cells = [f"{row.score:.0f}", "–" if row.second is None else f"{row.second:.0f}", f"{row.coherence:.0f}"]
            cells += [f"{row.accuracy:.2f}", f"{row.perplexity:.0f}", *losses]
            cells.append("–" if row.shift is None else f"{row.shift.at_layer:.1f}")
            lines.append(f"| {method} | {strength} | {' | '.join(cells)} |")
        lines += ["", f"![Keeping {one.trait} out](../../figures/mitigation_{one.trait}.png)", ""]
    return "\n".join(lines)
