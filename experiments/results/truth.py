"""Directions that tell true statements from false ones, on kinds that they were not found on; and what they move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, GREY, INK, add_points, lay_out, say
from persona_lens.reproduction.figures import Result
from persona_lens.statistics.interval import Interval

ESTIMATOR_STYLES = {
    "MeanDifference": ("mean difference (mass-mean)", COLORS[2], "circle"),
    "FirstComponent": ("first component", COLORS[0], "square"),
    "LogisticProbe": ("logistic probe", COLORS[3], "diamond"),
    "ShrunkLDA": ("shrunk LDA", COLORS[5], "triangle-up"),
}


@dataclass(frozen=True)
class Transfer:
    """Found on one kind, at a layer chosen there, tried on another; on its own kind, held out by group."""

    trained: str
    tested: str
    layer: int
    auroc: Interval
    accuracy: Interval


@dataclass(frozen=True)
class EstimatorTransfer:
    """One estimator: every pair of kinds, and the means over pairs of different kinds, at each layer and as chosen."""

    estimator: str
    cells: tuple[Transfer, ...]
    auroc: Interval
    accuracy: Interval
    accuracy_by_layer: tuple[Interval, ...]


@dataclass(frozen=True)
class Effect:
    """How far a direction moves ``logit(TRUE) - logit(FALSE)`` the intended way, in logits; ``above_random`` is paired.

    ``indirect_effect`` divides by what true and false statements differ in unsteered; missing where they surely do not.
    """

    estimator: str
    shift: Interval
    to_true: Interval
    to_false: Interval
    above_random: Interval
    indirect_effect: Interval


@dataclass(frozen=True)
class Judgement:
    """The model's own judgement of one kind, and what directions found on the other kinds do to it.

    ``auroc`` and ``gap`` are unsteered; ``norm`` is the length of what was added, ``coefficient`` mean
    differences, and ``random`` the mean shift under each random direction.
    """

    kind: str
    n_statements: int
    layer: int
    coefficient: float
    norm: float
    auroc: Interval
    gap: Interval
    effects: tuple[Effect, ...]
    random: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Truth(Result):
    """What experiments/truth.py finds."""

    kinds: tuple[str, ...]
    n_statements: tuple[int, ...]
    transfers: tuple[EstimatorTransfer, ...]
    judgements: tuple[Judgement, ...]
    auroc_by_kind: Interval
    effects: tuple[Effect, ...]

    def plot(self) -> go.Figure:
        """Draw accuracy on other kinds by layer, who transfers to what, and the causal effect against random ones."""
        n = len(self.transfers)
        heads = ["accuracy on kinds that the direction was not found on"]
        heads += [ESTIMATOR_STYLES[one.estimator][0] for one in self.transfers]
        heads += ["moving statements of a kind along a direction found on the other kinds"]
        figure = make_subplots(
            rows=3, cols=n, specs=[[{"colspan": n}, *[None] * (n - 1)], [{}] * n, [{"colspan": n}, *[None] * (n - 1)]],
            row_heights=[0.3, 0.32, 0.3], vertical_spacing=0.13, horizontal_spacing=0.05, subplot_titles=heads,
        )  # fmt: skip
        self._draw_layers(figure)
        self._draw_matrices(figure)
        self._draw_effects(figure)
        lay_out(figure, self._find(), self._describe(), width=1200, height=1280, bottom=120, legend=-0.06)
        return figure

    def _draw_layers(self, figure: go.Figure) -> None:
        for index, one in enumerate(self.transfers):
            label, color, symbol = ESTIMATOR_STYLES[one.estimator]
            aside = 0.15 * (index - (len(self.transfers) - 1) / 2)  # so that the bars do not hide each other
            layers = [layer + aside for layer in range(len(one.accuracy_by_layer))]
            look = {"mode": "lines+markers", "marker": {"symbol": symbol, "size": 7}, "line": {"color": color}}
            bars = {"width": 0, "thickness": 1}
            add_points(figure, 1, 1, layers, one.accuracy_by_layer, label, look, in_legend=True, bars=bars)
        figure.add_hline(y=0.5, line={"dash": "dot", "color": GREY}, row=1, col=1)
        figure.update_xaxes(title_text="layer (zero-based block)", row=1, col=1)
        figure.update_yaxes(title_text="accuracy", tickformat=".0%", row=1, col=1)

    def _draw_matrices(self, figure: go.Figure) -> None:
        for column, one in enumerate(self.transfers, start=1):
            cells = {(cell.trained, cell.tested): cell for cell in one.cells}
            rows = [[cells[trained, tested] for tested in self.kinds] for trained in self.kinds]
            names = [f"{kind} ({row[0].layer})" for kind, row in zip(self.kinds, rows, strict=True)]
            figure.add_trace(
                go.Heatmap(
                    x=list(self.kinds), y=names if column == 1 else [f"({row[0].layer})" + " " * i for i, row in
                    enumerate(rows)], z=[[cell.auroc.estimate for cell in row] for row in rows],
                    zmin=0, zmax=1, colorscale="PuOr", reversescale=True, showscale=column == len(self.transfers),
                    text=[[f"{cell.auroc.estimate:.2f}" for cell in row] for row in rows], texttemplate="%{text}",
                    customdata=[[str(cell.auroc) for cell in row] for row in rows],
                    hovertemplate="%{y} to %{x}: %{customdata}<extra></extra>",
                    colorbar={"title": "AUROC", "len": 0.25, "y": 0.5},
                ),
                row=2, col=column,
            )  # fmt: skip
            figure.update_xaxes(tickangle=40, title_text="tested on", row=2, col=column)
            figure.update_yaxes(autorange="reversed", row=2, col=column)
        figure.update_yaxes(title_text="found on (layer chosen there)", row=2, col=1)

    def _draw_effects(self, figure: go.Figure) -> None:
        names = [*(f"{one.kind}<br>(layer {one.layer}, {one.coefficient:g} ×)" for one in self.judgements)]
        tried = {effect.estimator for one in self.judgements for effect in one.effects}
        shown = [name for name in ESTIMATOR_STYLES if name in tried]
        for index, name in enumerate(shown):
            label, color, symbol = ESTIMATOR_STYLES[name]
            found = [(at, effect) for at, one in enumerate(self.judgements) for effect in one.effects]
            mine = [(at, effect) for at, effect in found if effect.estimator == name]
            x = [at + 0.15 * (index - len(shown) / 2) for at, _ in mine]
            look = {"mode": "markers", "marker": {"symbol": symbol, "size": 10, "color": color}}
            add_points(figure, 3, 1, x, [effect.shift for _, effect in mine], label, look, in_legend=False)
        figure.add_trace(
            go.Scatter(
                x=[at + 0.15 * len(shown) / 2 for at, one in enumerate(self.judgements) for _ in one.random],
                y=[value for one in self.judgements for value in one.random], mode="markers",
                name="random directions of the same length, each a dash",
                marker={"symbol": "line-ew-open", "size": 9, "color": GREY},
            ),
            row=3, col=1,
        )  # fmt: skip
        figure.add_hline(y=0, line={"dash": "dot", "color": GREY}, row=3, col=1)
        figure.update_xaxes(
            tickvals=list(range(len(names))), ticktext=names, title_text="kind that is judged", row=3, col=1
        )
        figure.update_yaxes(title_text="shift the intended way (logits)", row=3, col=1)
        figure.update_layout(font={"color": INK})

    def _find(self) -> str:
        best = max(self.transfers, key=lambda one: one.accuracy.estimate)
        label = ESTIMATOR_STYLES[best.estimator][0]
        can = "tells true from false" if self.auroc_by_kind.low > 0.5 else "does not surely know"
        furthest = max(self.effects, key=lambda one: one.above_random.estimate)
        along = ESTIMATOR_STYLES[furthest.estimator][0]
        moved = f"moves its answer {say(furthest.above_random)} logits beyond random ones"
        surely = any(one.above_random.low > 0 for one in self.effects)
        return (
            f"On kinds that it was not found on, the {label} is right {best.accuracy:.2f} of the time; asked, the "
            f"model {can} (AUROC {say(self.auroc_by_kind)}); "
            + (f"the {along} {moved}" if surely else f"no direction surely moves its answer; the {along} {moved}")
        )

    def _describe(self) -> str:
        return (
            f"{self.model_name}, {sum(self.n_statements)} statements of {len(self.kinds)} kinds, no word of which "
            "tells true from false, read at their full stop. Accuracy by the midpoint of the means of the kind that "
            "the direction was found on; matrix at the layer of the best AUROC on that kind's own held-out groups (in "
            "brackets), on the diagonal those groups. Below: so many mean differences' length, added over false "
            "statements' tokens and taken from true ones'; layer and length chosen on other kinds. Bars: 95 % "
            "bootstrap over groups of statements of the same words; the title's AUROCs: over kinds"
        )


def truth_to_markdown(found: Sequence[Truth]) -> str:
    """Write how each estimator transfers, how each kind is judged and moved, and the figure."""
    lines = []
    for one in found:
        lines += [
            "| estimator | accuracy, other kinds | AUROC, other kinds | shift of the judgement (logits) | "
            "beyond random directions | indirect effect |",
            "|---|---|---|---|---|---|",
        ]
        effects = {effect.estimator: effect for effect in one.effects}
        for transfer in one.transfers:
            effect = effects[transfer.estimator]
            cells = (transfer.accuracy, transfer.auroc, effect.shift, effect.above_random, effect.indirect_effect)
            lines.append(f"| {ESTIMATOR_STYLES[transfer.estimator][0]} | {' | '.join(map(str, cells))} |")
        lines += [
            "",
            "| kind | judged by the model (AUROC) | true less false (logits) | layer, length | "
            "beyond random directions, "
            + " | ".join(ESTIMATOR_STYLES[effect.estimator][0] for effect in one.effects)
            + " |",
            "|---" * (4 + len(one.effects)) + "|",
        ]
        for row in one.judgements:
            beyond = " | ".join(str(effect.above_random) for effect in row.effects)
            lines.append(f"| {row.kind} | {row.auroc} | {row.gap} | {row.layer}, {row.coefficient:g} × | {beyond} |")
        lines += ["", "![Truth](../../figures/truth.png)"]
    return "\n".join(lines)
