"""Single samples: how far trait-eliciting ones lie from normal ones, and what filters hold back of each."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, error_bars, lay_out, say
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.layer_sweep import JudgeNote
from persona_lens.statistics.interval import Interval


@dataclass(frozen=True)
class FilterComparison:
    """By filter: the threshold of each measure that it looks at, and the share that it holds back of each kind."""

    thresholds: dict[str, dict[str, float]]
    held_back: dict[str, dict[str, Interval]]


_MEASURES = {
    "delta": "ΔP",
    "raw": "raw projection",
    "last_prompt": "ΔP from the last prompt token",
    "judge": "judge's score (0–100)",
}
_FILTERS = {**_MEASURES, "judge": "judge", "delta or judge": "ΔP or judge"}
_KINDS = {"eliciting": ("trait-eliciting", COLORS[3]), "normal": ("normal", COLORS[0])}


@dataclass(frozen=True, eq=False)
class SampleSeparation(Result):
    """What experiments/sample_separation.py finds: by measure and by kind, eliciting or normal."""

    trait: str
    judge: JudgeNote
    norm: float
    n_samples: dict[str, int]
    n_left_out: int
    values: dict[str, dict[str, tuple[float, ...]]]
    auroc: dict[str, Interval]
    filters: FilterComparison

    @property
    def judges(self) -> dict[str, str]:
        """The trait's judge."""
        return {self.trait: self.judge.name}

    def plot(self) -> go.Figure:
        """Draw samples' distributions by each measure with its AUROC, and what filters hold back.

        Figures 9 and 32 of the paper; intervals are 95 % bootstrap over questions.
        """
        titles = [f"{label}<br><sup>AUROC {say(self.auroc[name])}</sup>" for name, label in _MEASURES.items()]
        figure = make_subplots(
            rows=2, cols=4, specs=[[{}] * 4, [{"colspan": 4}, None, None, None]], vertical_spacing=0.2,
            horizontal_spacing=0.05, row_heights=[0.5, 0.5],
            subplot_titles=[*titles, "held back by filters that are set to let 95 % of other normal samples through"],
        )  # fmt: skip
        for column, name in enumerate(_MEASURES, start=1):
            for kind, (label, color) in _KINDS.items():
                figure.add_trace(
                    go.Histogram(
                        x=self.values[name][kind], nbinsx=25, histnorm="percent", name=label, legendgroup=kind,
                        showlegend=column == 1, marker={"color": color}, opacity=0.65, bingroup=name,
                    ),
                    row=1,
                    col=column,
                )  # fmt: skip
            threshold = self.filters.thresholds[name][name]
            figure.add_vline(x=threshold, line={"color": INK, "dash": "dash", "width": 1.5}, row=1, col=column)
            unit = "score" if name == "judge" else "residual-stream units"
            figure.update_xaxes(title_text=unit, row=1, col=column)
        figure.update_yaxes(title_text="share of the samples (%)", row=1, col=1)
        held = self.filters.held_back
        for side, (kind, (label, color)) in enumerate(_KINDS.items()):
            intervals = [_to_percent(held[name][kind]) for name in _FILTERS]
            figure.add_trace(
                go.Bar(
                    x=list(_FILTERS.values()), y=[one.estimate for one in intervals], error_y=error_bars(intervals),
                    marker={"color": color, "line": {"color": INK, "width": 1}}, name=label, legendgroup=kind,
                    showlegend=False, width=0.36, offset=(-0.37, 0.01)[side],
                ),
                row=2,
                col=1,
            )  # fmt: skip
        figure.update_yaxes(title_text="held back (%)", range=[0, 103], row=2, col=1)
        figure.update_layout(barmode="overlay")  # of the histograms; the bars stand side by side by their offsets
        best = max(("delta", "raw", "last_prompt"), key=lambda name: self.auroc[name].estimate)
        sure = "surely tells" if self.auroc[best].low > 0.5 else "does not surely tell"
        either, judge = (held[name]["eliciting"].estimate for name in ("delta or judge", "judge"))
        finding = (
            f"{html.escape(self.trait)}: the best projection ({_MEASURES[best]}) {sure} single samples apart;"
            f"<br>with ΔP beside the judge {100 * either:.0f} % of eliciting samples are held back, by the judge alone "
            f"{100 * judge:.0f} %"
        )
        counts = self.n_samples
        subtitle = (
            f"{self.model_name}, layer {self.config['layer']}, answers to held-out questions: "
            f"{counts['eliciting']} under eliciting prompts, {counts['normal']} under none<br>{self.judge.name}<br>"
            "dashed: threshold, 95th percentile of normal answers to other questions ('or': 97.5th of each); 95 % "
            "bootstrap over questions"
        )
        lay_out(figure, finding, subtitle, width=1400, height=960)
        return figure


def _to_percent(interval: Interval) -> Interval:
    return Interval(100 * interval.estimate, 100 * interval.low, 100 * interval.high, interval.level)


def separations_to_markdown(results: Sequence[SampleSeparation]) -> str:
    """Write each measure's AUROC and what filters hold back, a row a trait; then the figures."""
    lines = [
        "| trait | judge | AUROC: ΔP | raw projection | last prompt token | judge | "
        "held back, eliciting / normal: ΔP | judge | ΔP or judge |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        aurocs = [say(one.auroc[name]) for name in ("delta", "raw", "last_prompt", "judge")]
        held = one.filters.held_back
        shares = [
            f"{100 * held[name]['eliciting'].estimate:.0f} % / {100 * held[name]['normal'].estimate:.0f} %"
            for name in ("delta", "judge", "delta or judge")
        ]
        lines.append(f"| {one.trait} | {one.judge.name} | {' | '.join([*aurocs, *shares])} |")
    figures = [f"![Samples of {one.trait}](../../figures/sample_separation_{one.trait}.png)" for one in results]
    return "\n".join([*lines, "", *figures])
