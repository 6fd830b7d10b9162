"""Whether a projection tells questions about real things from questions about invented ones, before the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, GREY, add_intervals, add_points, lay_out, say
from persona_lens.reproduction.figures import Result
from persona_lens.statistics.interval import Interval
from results.truth import ESTIMATOR_STYLES


@dataclass(frozen=True)
class EstimatorSeparation:
    """AUROC of one estimator on categories held out: at each layer, and at layers chosen on the other categories.

    ``chosen`` is over all categories at once, as one threshold would see them; ``within`` the mean of each category's
    own (``by_category``), which forgives a threshold that does not carry over. ``above_surprise`` is the latter less
    that of the name's mean log-likelihood, ``above_surface`` less that of all that the name's surface says, both paired
    by name.
    """

    estimator: str
    by_layer: tuple[Interval, ...]
    layers: tuple[int, ...]
    chosen: Interval
    within: Interval
    by_category: tuple[float, ...]
    above_surprise: Interval
    above_surface: Interval


@dataclass(frozen=True)
class SurfacePredictor:
    """What the name alone says; ``by_category`` in the record's order."""

    name: str
    auroc: Interval
    within: Interval
    by_category: tuple[float, ...]


@dataclass(frozen=True)
class VectorSeparation:
    """A persona vector as a predictor, nothing fitted: low projections for real things."""

    trait: str
    by_layer: tuple[Interval, ...]
    layer: int
    within: Interval


@dataclass(frozen=True, eq=False)
class KnownEntities(Result):
    """What experiments/known_entities.py finds; ``mean_tokens`` of the names, real and invented."""

    categories: tuple[str, ...]
    n_pairs: int
    mean_tokens: tuple[float, float]
    estimators: tuple[EstimatorSeparation, ...]
    surface: tuple[SurfacePredictor, ...]
    vector: VectorSeparation | None

    def plot(self) -> go.Figure:
        """Draw the AUROC by layer, and the chosen ones beside what the names alone say."""
        figure = make_subplots(
            rows=2, cols=1, row_heights=[0.55, 0.45], vertical_spacing=0.14,
            subplot_titles=("each layer, over all categories at once (one layer's bar, not the best of all)",
                            "layers chosen on the other categories, beside the name alone: mean within categories"),
        )  # fmt: skip
        for index, one in enumerate(self.estimators):
            label, color, symbol = ESTIMATOR_STYLES[one.estimator]
            x = [layer + 0.12 * (index - 2) for layer in range(len(one.by_layer))]
            look = {"mode": "lines+markers", "marker": {"symbol": symbol, "size": 7}, "line": {"color": color}}
            add_points(figure, 1, 1, x, one.by_layer, label, look, in_legend=True, bars={"width": 0, "thickness": 1})
        if self.vector is not None:
            look = {"mode": "lines+markers", "marker": {"symbol": "cross", "size": 7}, "line": {"color": COLORS[4]}}
            x = [layer + 0.24 for layer in range(len(self.vector.by_layer))]
            add_points(
                figure, 1, 1, x, self.vector.by_layer, f"{self.vector.trait} vector, not fitted", look, in_legend=True,
                bars={"width": 0, "thickness": 1},
            )  # fmt: skip
        for name_alone in reversed(self.surface):
            name = name_alone.name
            add_intervals(figure, 1, [name], [name_alone.within], GREY, "line-ns-open", name, line=2)
        if self.vector is not None:
            name = f"{self.vector.trait} vector, layer {self.vector.layer}"
            add_intervals(figure, 1, [name], [self.vector.within], COLORS[4], "cross", name, line=2)
        for found in reversed(self.estimators):
            label, color, symbol = ESTIMATOR_STYLES[found.estimator]
            add_intervals(figure, 1, [label], [found.within], color, symbol, label, line=2)
        for trace in figure.data:
            trace.showlegend = bool(trace.legendgroup)
        figure.add_hline(y=0.5, line={"dash": "dot", "color": GREY}, row=1, col=1)
        figure.add_vline(x=0.5, line={"dash": "dot", "color": GREY}, row=2, col=1)
        figure.update_xaxes(title_text="layer (zero-based block)", row=1, col=1)
        figure.update_yaxes(title_text="AUROC, real above invented", row=1, col=1)
        figure.update_xaxes(title_text="AUROC, real above invented", row=2, col=1)
        subtitle = (
            f"{self.model_name}, {self.n_pairs} pairs of questions in the same words about a real and an invented "
            f"name ({', '.join(self.categories)}), {' and '.join(f'{n:.1f}' for n in self.mean_tokens)} tokens long; "
            "read at the last prompt token; found on four categories, tried on the fifth; "
            "bars: 95 % bootstrap over pairs"
        )
        lay_out(figure, self._find(), subtitle, width=1100, height=980, bottom=120, legend=-0.09)
        figure.update_layout(margin={"l": 240})
        return figure

    def _find(self) -> str:
        best = max(self.estimators, key=lambda one: one.within.estimate)
        label = ESTIMATOR_STYLES[best.estimator][0]
        does = "tells" if best.within.low > 0.5 else "does not surely tell"
        surprise = self.surface[0]
        if best.above_surprise.low > 0:
            verdict = "more than the name's surprise alone"
        elif best.above_surprise.high < 0:
            verdict = "less than the name's surprise alone"
        else:
            verdict = "not surely more or less than the name's surprise alone"
        lines = [
            f"Before the answer, the {label} {does} real names from invented ones in a new category: AUROC "
            f"{say(best.within)};",
            f"that is {verdict} (AUROC {say(surprise.within)}; difference {say(best.above_surprise)})",
        ]
        if self.vector is not None:
            lines[1] += ";"
            lines.append(
                f"the {self.vector.trait} vector, not fitted, layer {self.vector.layer}: "
                f"AUROC {say(self.vector.within)}"
            )
        return "<br>".join(lines)


def entities_to_markdown(found: Sequence[KnownEntities]) -> str:
    """Write the AUROC of each estimator and of the name alone, by category, and the figure."""
    lines = []
    for one in found:
        head = ["predictor", "AUROC within categories", "over all at once", "less the name's surprise"]
        head += ["less all of its surface", *one.categories]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in one.estimators:
            label = f"{ESTIMATOR_STYLES[row.estimator][0]} (layers {', '.join(map(str, row.layers))})"
            intervals = (row.within, row.chosen, row.above_surprise, row.above_surface)
            areas = [f"{value:.2f}" for value in row.by_category]
            lines.append(f"| {' | '.join([label, *map(str, intervals), *areas])} |")
        for predictor in one.surface:
            areas = [f"{value:.2f}" for value in predictor.by_category]
            cells = [predictor.name, str(predictor.within), str(predictor.auroc), "–", "–", *areas]
            lines.append(f"| {' | '.join(cells)} |")
        if one.vector is not None:
            label = f"{one.vector.trait} vector, layer {one.vector.layer}"
            cells = [label, str(one.vector.within), str(one.vector.by_layer[one.vector.layer])]
            lines.append(f"| {' | '.join([*cells, *['–'] * (2 + len(one.categories))])} |")
        lines += ["", "![Known entities](../../figures/known_entities.png)"]
    return "\n".join(lines)
