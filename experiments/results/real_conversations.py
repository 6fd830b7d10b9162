"""Training on the highest, random and lowest samples of real conversations."""

from __future__ import annotations

import html
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, add_points, lay_out
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.trained_models import Kit, ScoredModel
from persona_lens.statistics.interval import Interval

from .projection_difference import Predictors


@dataclass(frozen=True)
class Speed(Record):
    """How long screening took."""

    seconds: float
    rows: int


@dataclass(frozen=True)
class Approximations(Predictors):
    """The ways of measuring; ``n_subset`` samples make the random subset."""

    n_subset: int


@dataclass(frozen=True)
class MeasuredModel(ScoredModel):
    """A model's score and coherence with its shift along the trait's vector."""

    shift: Interval


@dataclass(frozen=True)
class SubsetModel(MeasuredModel):
    """A model trained on a subset of a pool; ``delta`` is ΔP of its samples."""

    pool: str
    subset: str
    n_rows: int
    left_out: dict[str, int]
    delta: Interval
    losses: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class RealConversations(Result):
    """What experiments/real_conversations.py finds, without any text of the conversations."""

    trait: str
    kits: dict[str, Kit]
    whole_file: dict[str, int] | None
    counts: dict[str, int]
    n_cut: int
    speed: Speed
    max_answer_tokens: int
    mean_tokens: dict[str, float]
    bytes: int
    dataset_delta: dict[str, Interval]
    approximations: dict[str, Approximations]
    n_pool: dict[str, int]
    judge_scores: Interval
    base: MeasuredModel
    models: tuple[SubsetModel, ...]
    n_questions: int

    @property
    def judges(self) -> dict[str, str]:
        """Each trait's judge."""
        return {name: kit.judge.name for name, kit in self.kits.items()}

    def say_finding(self) -> str:
        """Say whether a high ΔP surely leaves more of the trait than a low one, of each pool."""
        findings = []
        for pool in self.n_pool:
            high, low = (
                next(row for row in self.models if (row.pool, row.subset) == (pool, subset))
                for subset in ("high ΔP", "low ΔP")
            )
            seen = [
                name
                for name, one, other in (("score", high.score, low.score), ("shift", high.shift, low.shift))
                if one.low > other.high
            ]
            findings.append(f"{html.escape(pool)}: {' and '.join(seen) or 'neither score nor shift'}")
        return f"a high ΔP surely leaves more than a low one of {'; '.join(findings)}"

    def plot(self) -> go.Figure:
        """Draw what training on the highest, random and lowest samples does, before and after a judge's filter.

        Figure 10 of the paper; bars are 95 % bootstrap over questions (ΔP: over samples), lines the base model.
        """
        measures = {
            "delta": "ΔP of the subset (residual-stream units)",
            "score": "trait score after training (0–100)",
            "coherence": "coherence after training (0–100)",
            "shift": "shift (residual-stream units)",
        }
        pools = list(self.n_pool)
        figure = make_subplots(rows=1, cols=len(measures), horizontal_spacing=0.06)
        for column, (measure, label) in enumerate(measures.items(), start=1):
            for index, pool in enumerate(pools):
                rows = [row for row in self.models if row.pool == pool]
                look = {
                    "mode": "markers+lines",
                    "line": {"color": (COLORS[3], COLORS[2])[index % 2], "dash": ("solid", "dash")[index % 2]},
                    "marker": {"size": 11, "symbol": ("circle", "square-open")[index % 2]},
                }
                x, y = [row.subset for row in rows], [getattr(row, measure) for row in rows]
                add_points(figure, 1, column, x, y, pool, look, in_legend=column == 1)
            level = getattr(self.base, measure).estimate if measure in ("score", "coherence") else 0.0
            figure.add_hline(y=level, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=column)
            figure.update_yaxes(title_text=label, row=1, col=column)
            if measure in ("score", "coherence"):
                figure.update_yaxes(range=[0, 103], row=1, col=column)
        speed = self.speed
        share = self.counts["scored"] / sum(self.counts.values())
        rate = f" at {share * speed.rows / speed.seconds:.1f} a second" if speed.seconds else ""
        data = html.escape(self.config["data"])
        fewest = min(row.n_rows for row in self.models)
        subtitle = (
            f"{self.model_name}; {self.counts['scored']} conversations of {data} "
            f"screened for {len(self.kits)} traits{rate}; {fewest} or more rows for each of "
            f"{len(self.models)} trainings<br>"
            f"{html.escape(self.kits[self.trait].judge.name)}; its filter removes the half it scores highest; dotted: "
            "base model; 95 % bootstrap over questions (ΔP: over samples), which leaves the chance of training out"
        )
        title = f"{html.escape(self.trait)}, real conversations: {self.say_finding()}"
        lay_out(figure, title, subtitle, width=1450, height=640, bottom=110, legend=-0.16)
        figure.update_layout(title={"font": {"size": 15}})
        return figure
