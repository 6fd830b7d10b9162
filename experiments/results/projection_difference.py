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
    """What became of the model trained on a dataset; ``second`` is the second judge's score, where there is one."""

    shift: Interval
    second: Interval | None = None


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


TARGETS = ("score", "second", "shift")
"""What a dataset is to foretell: both judges' scores after training, and the shift."""

_TARGETS = {"score": "score, first judge", "second": "score, second judge", "shift": "shift"}
_N_COLUMNS = 3
_PREDICTORS = {
    "exact": "projection difference",
    "subset": "… of a random subset",
    "last_prompt": "… from the last prompt token",
    "raw": "raw projection",
}


@dataclass(frozen=True, eq=False)
class ProjectionDifference(Result):
    """What experiments/projection_difference.py finds; correlations by trait, target and predictor."""

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
        """Draw the first judge's score after training against the data's projection difference, one panel a trait.

        Figure 17 of the paper, one point a dataset; bars are 95 % bootstrap intervals over samples (ΔP) and questions.
        """
        shown = [name for name in ("score", "second") if name in self._targets]
        sure = [t for t in self.kits if all(self._is_sure(t, name) for name in shown)]
        whose = "both judges'" if len(shown) > 1 else "its judge's"
        finding = f"ΔP of the data surely goes with {whose} score after training for {_list(sure)}"
        return self._draw("score", "trait score after training (0–100)", finding)

    def plot_shift(self) -> go.Figure:
        """Draw the shift against the data's projection difference, likewise: Figure 8 of the paper."""
        sure = [trait for trait in self.kits if self._is_sure(trait, "shift")]
        return self._draw(
            "shift", "shift (residual-stream units)", f"ΔP of the data surely goes with the shift for {_list(sure)}"
        )

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw projection difference against score, against shift, and its approximations."""
        return {"": self.plot(), "_shift": self.plot_shift(), "_approximations": self.plot_predictors()}

    @property
    def _targets(self) -> list[str]:
        """What was measured of the trained models."""
        return [name for name in TARGETS if name in next(iter(self.correlations.values()))]

    def _is_sure(self, trait: str, target: str) -> bool:
        return self.correlations[trait][target]["exact"].low > 0

    def _panels(self, titles: list[str]) -> tuple[go.Figure, int]:
        """Return a grid of one panel a trait, and how many rows it has."""
        n_rows = -(-len(self.kits) // _N_COLUMNS)
        n_columns = min(_N_COLUMNS, len(self.kits))
        return make_subplots(
            rows=n_rows, cols=n_columns, subplot_titles=titles, horizontal_spacing=0.07, vertical_spacing=0.34 / n_rows
        ), n_rows

    def _draw(self, target: str, label: str, finding: str) -> go.Figure:
        judges = [name for name in self._targets if (name == "shift") == (target == "shift")]
        titles = [
            f"<b>{html.escape(trait)}</b><br>"
            + "<br>".join(
                f"<sup>r with {_TARGETS[name]}: {say(self.correlations[trait][name]['exact'])}</sup>" for name in judges
            )
            for trait in self.kits
        ]
        figure, n_rows = self._panels(titles)
        sets = list(dict.fromkeys(row.dataset for row in self.datasets))
        for place, trait in enumerate(self.kits):
            line, column = place // _N_COLUMNS + 1, place % _N_COLUMNS + 1
            for index, name in enumerate(sets):
                for level, color in LEVEL_COLORS.items():
                    rows = [r for r in self.datasets if (r.dataset, r.level) == (name, level)]
                    opacity = [1.0 if is_coherent(row.outcome, self.min_coherence) else 0.45 for row in rows]
                    marker = {"color": color, "symbol": SYMBOLS[index % len(SYMBOLS)], "opacity": opacity}
                    add_crosses(
                        figure, line, column, [row.predictors[trait].exact for row in rows],
                        [getattr(row.outcome[trait], target) for row in rows], f"{name} {level}", marker,
                        in_legend=place == 0,
                    )  # fmt: skip
            figure.update_xaxes(title_text="ΔP of the data (residual-stream units)", row=line, col=column)
            if column == 1:
                figure.update_yaxes(title_text=label, row=line, col=1)
        drawn = "" if target == "shift" else "drawn: the first judge; "
        subtitle = (
            f"{self.model_name}, {len(self.datasets)} datasets, three levels of each of {len(sets)}, screened with the "
            f"base model before training<br>{drawn}bars: 95 % bootstrap over samples and questions, of r: over datasets"
            f"; pale: coherence after training under {self.min_coherence:g}"
        )
        lay_out(figure, finding, subtitle, width=1250, height=240 + 430 * n_rows, bottom=120, legend=-0.11)
        figure.update_annotations(font_size=14)
        return figure

    def plot_predictors(self) -> go.Figure:
        """Draw how well each way of measuring the data goes with scores and shift, one panel a trait.

        Figures 21 and 23 of the paper; bars are 95 % bootstrap intervals over datasets.
        """
        figure, n_rows = self._panels(list(map(html.escape, self.kits)))
        styles = {
            "score": (COLORS[2], "circle"), "second": (COLORS[3], "diamond"), "shift": (COLORS[4], "square-open"),
        }  # fmt: skip
        names = list(_PREDICTORS)
        for place, trait in enumerate(self.kits):
            line, column = place // _N_COLUMNS + 1, place % _N_COLUMNS + 1
            for index, target in enumerate(self._targets):
                color, symbol = styles[target]
                found = self.correlations[trait][target]
                there = [at for at, name in enumerate(names) if not found[name].is_missing]
                add_intervals(
                    figure, column, [at + 0.2 * (index - 1) for at in there], [found[names[at]] for at in there], color,
                    symbol, f"r with the {_TARGETS[target]}", line=line,
                )  # fmt: skip
            figure.add_vline(x=0, line={"color": INK, "width": 1}, row=line, col=column)
            figure.update_xaxes(title_text="r over datasets", range=[-1.05, 1.05], row=line, col=column)
            ticks = list(_PREDICTORS.values()) if column == 1 else [""] * len(names)
            figure.update_yaxes(
                tickvals=list(range(len(names))), ticktext=ticks, autorange="reversed", row=line, col=column
            )
        figure.update_traces(showlegend=False)
        figure.update_traces(showlegend=True, selector=lambda trace: trace.xaxis in (None, "x"))
        sure = {
            name: [t for t in self.kits if all(self.correlations[t][one][name].low > 0 for one in self._targets)]
            for name in names
        }
        finding = ";<br>".join(f"{_PREDICTORS[name]}: surely for {_list(found)}" for name, found in sure.items())
        subtitle = (
            f"surely: with every score and with the shift; {self.model_name}, {len(self.datasets)} datasets, 95 % "
            f"bootstrap over datasets<br>random subset: {100 * self.subset_fraction:.0f} % of the samples; last prompt "
            "token: in place of the base model's response"
        )
        lay_out(figure, finding, subtitle, width=1250, height=300 + 300 * n_rows, bottom=110, legend=-0.14)
        figure.update_layout(margin={"l": 210}, title={"font": {"size": 15}})
        return figure

    def to_markdown(self) -> str:
        """Write how each measure of the data goes with what training on them did; then the figures."""
        lines = [f"| trait | against | {' | '.join(_PREDICTORS.values())} |", f"|---|---|{'---|' * len(_PREDICTORS)}"]
        for trait in self.kits:
            for target in self._targets:
                found = self.correlations[trait][target]
                lines.append(
                    f"| {trait} | {_TARGETS[target]} | {' | '.join(say(found[name]) for name in _PREDICTORS)} |"
                )
        stem = "../../figures/projection_difference"
        figures = [
            f"![Projection difference]({stem}.png)",
            f"![Projection difference and shift]({stem}_shift.png)",
            f"![Approximations]({stem}_approximations.png)",
        ]
        return "\n".join([*lines, "", *figures])


def _list(traits: list[str]) -> str:
    return ", ".join(map(html.escape, traits)) or "no trait"
