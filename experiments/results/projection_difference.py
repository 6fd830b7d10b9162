"""What a dataset's projection difference says of the model that will be trained on it."""

from __future__ import annotations

import html
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, LEVEL_COLORS, SYMBOLS, add_crosses, add_intervals, lay_out, say
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.layer_sweep import ScoreAndCoherence
from persona_lens.reproduction.trained_models import Correlation, Kit, is_coherent
from persona_lens.statistics.interval import Interval


@dataclass(frozen=True)
class Predictors:
    """What each way of measuring says of a dataset, and how the cheaper ones agree with ΔP by sample (``r_…``)."""

    exact: Interval
    subset: Interval
    last_prompt: Interval
    raw: Interval
    r_last_prompt: Interval
    r_raw: Interval


@dataclass(frozen=True)
class Outcome(ScoreAndCoherence):
    """What became of the model trained on a dataset."""

    shift: Interval


@dataclass(frozen=True)
class ScreenedDataset:
    """A dataset at one level: what screening said of it before training, and what training did, by trait."""

    dataset: str
    level: str
    kind: str
    counts: dict[str, int]
    n_cut: int
    predictors: dict[str, Predictors]
    outcome: dict[str, Outcome]


_TARGETS = {"score": "trait score after training (0–100)", "shift": "shift (residual-stream units)"}
_PREDICTORS = {
    "exact": "projection difference",
    "subset": "… of a random subset",
    "last_prompt": "… from the last prompt token",
    "raw": "raw projection",
}


@dataclass(frozen=True, eq=False)
class ProjectionDifference(Result):
    """What experiments/projection_difference.py finds; correlations by trait, target (score, shift) and predictor."""

    kits: dict[str, Kit]
    datasets: tuple[ScreenedDataset, ...]
    correlations: dict[str, dict[str, dict[str, Correlation]]]
    correlations_coherent: dict[str, dict[str, dict[str, Correlation]]]
    min_coherence: float
    subset_fraction: float
    paper: dict[str, tuple[float, float]]

    @property
    def judges(self) -> dict[str, str]:
        """Each trait's judge."""
        return {name: kit.judge.name for name, kit in self.kits.items()}

    def plot(self) -> go.Figure:
        """Draw score and shift after training against the data's projection difference, one column a trait.

        Figures 8 and 17 of the paper, one point a dataset; bars are 95 % bootstrap intervals over samples (ΔP) and
        questions.
        """
        traits = list(self.kits)
        sets = list(dict.fromkeys(row.dataset for row in self.datasets))
        titles = [
            f"<b>{html.escape(trait)}</b>, {target}: r {_r(self, trait, target)}"
            f"<br><sup>coherent models only: {_r(self, trait, target, among_coherent=True)}</sup>"
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
                        rows = [r for r in self.datasets if (r.dataset, r.level) == (name, level)]
                        opacity = [1.0 if is_coherent(row.outcome, self.min_coherence) else 0.3 for row in rows]
                        marker = {"color": color, "symbol": SYMBOLS[index % len(SYMBOLS)], "opacity": opacity}
                        add_crosses(
                            figure, line, column, [row.predictors[trait].exact for row in rows],
                            [getattr(row.outcome[trait], target) for row in rows], f"{name} {level}", marker,
                            in_legend=line == column == 1,
                        )  # fmt: skip
                figure.update_xaxes(title_text="ΔP of the data (residual-stream units)", row=line, col=column)
            figure.update_yaxes(title_text=label, row=line, col=1)
        sure = {target: [t for t in traits if _is_sure(self, t, target)] for target in _TARGETS}
        finding = "; ".join(
            f"ΔP goes with the {target} for {', '.join(map(html.escape, names)) or 'no trait'}"
            for target, names in sure.items()
        )
        low, high = self.paper["score"]
        subtitle = (
            f"{self.model_name}, {len(self.datasets)} datasets, three levels of each of {len(sets)}, screened "
            "with the base model before training; r: 95 % bootstrap over datasets (paper, score, other traits: "
            f"{low}–{high})<br>"
            "bars: 95 % bootstrap over samples and questions; first judge; pale: coherence after training "
            f"under {self.min_coherence:g}, where the score means little"
        )
        lay_out(figure, finding, subtitle, width=440 * len(traits) + 80, height=1080, top=170, bottom=120, legend=-0.09)
        figure.update_annotations(font_size=13)
        return figure

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw projection difference against shift, and its approximations."""
        return {"": self.plot(), "_approximations": self.plot_predictors()}

    def plot_predictors(self) -> go.Figure:
        """Draw how well each way of measuring the data goes with score and shift, one panel a trait.

        Figures 21 and 23 of the paper; bars are 95 % bootstrap intervals over datasets.
        """
        traits = list(self.kits)
        figure = make_subplots(
            rows=1, cols=len(traits), shared_yaxes=True, subplot_titles=list(map(html.escape, traits))
        )
        styles = {"score": (COLORS[3], "circle"), "shift": (COLORS[2], "square-open")}
        for column, trait in enumerate(traits, start=1):
            for target, (color, symbol) in styles.items():
                found = self.correlations[trait][target]
                there = [name for name in _PREDICTORS if not found[name].is_missing]
                add_intervals(
                    figure, column, [_PREDICTORS[name] for name in there], [found[name] for name in there], color,
                    symbol, f"against the {target} after training",
                )  # fmt: skip
            figure.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
            figure.update_xaxes(title_text="r over datasets", range=[-1.05, 1.05], row=1, col=column)
        figure.update_yaxes(autorange="reversed")
        figure.update_traces(showlegend=False)
        figure.update_traces(showlegend=True, selector=lambda trace: trace.xaxis in (None, "x"))
        n_subset = f"{100 * self.subset_fraction:.0f} %"
        finding = "<br>".join(f"{html.escape(trait)}: {_name_sure(self, trait)}" for trait in traits)
        subtitle = (
            f"{self.model_name}, {len(self.datasets)} datasets, 95 % bootstrap over datasets; first judge"
            f"<br>random subset: {n_subset} of the samples; last prompt token: in place of the base model's "
            "response"
        )
        lay_out(figure, f"surely goes with the score after training<br>{finding}", subtitle, width=1350, height=600)
        figure.update_layout(margin={"t": 180, "b": 120, "l": 210}, legend={"y": -0.3}, title={"font": {"size": 15}})
        return figure

    def to_markdown(self) -> str:
        """Write how each measure of the data goes with what training on them did; then the figures."""
        lines = [f"| trait | against | {' | '.join(_PREDICTORS.values())} |", f"|---|---|{'---|' * len(_PREDICTORS)}"]
        for trait in self.kits:
            for target in _TARGETS:
                found = self.correlations[trait][target]
                lines.append(f"| {trait} | {target} | {' | '.join(say(found[name]) for name in _PREDICTORS)} |")
        stem = "../../figures/projection_difference"
        figures = [f"![Projection difference]({stem}.png)", f"![Approximations]({stem}_approximations.png)"]
        return "\n".join([*lines, "", *figures])


def _name_sure(result: ProjectionDifference, trait: str) -> str:
    found = result.correlations[trait]["score"]
    sure = [_PREDICTORS[name].replace("… ", "ΔP ") for name in _PREDICTORS if found[name].low > 0]
    return ", ".join(sure) or "none"


def _r(result: ProjectionDifference, trait: str, target: str, *, among_coherent: bool = False) -> str:
    found = (result.correlations_coherent if among_coherent else result.correlations)[trait][target]["exact"]
    return f"{say(found)}, n = {found.n}"


def _is_sure(result: ProjectionDifference, trait: str, target: str) -> bool:
    return result.correlations[trait][target]["exact"].low > 0
