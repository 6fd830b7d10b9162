"""A persona vector that is read again while the model trains, and prevention that follows it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, GREY, INK, add_intervals, add_points, lay_out, say
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics.interval import Interval
from persona_lens.statistics.missing import mean_interval

NO_PREVENTION, FIRST, FRESH = "no prevention", "first vector", "fresh vector"
_ARMS = {NO_PREVENTION: (COLORS[3], "circle"), FIRST: (COLORS[1], "square"), FRESH: (COLORS[2], "diamond")}
_COSINES = {
    "with_first": ("with the first, same answers", COLORS[2], "solid", "circle"),
    "crossed": ("with the first, other half of the answers", COLORS[3], "dash", "diamond"),
    "ceiling": ("ceiling: between halves of one reading, geometric mean", GREY, "dot", "square"),
}

Readings = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Trained(Record):
    """One training, or the model before it: cosines by reading and layer, scores by judge and question.

    ``training_seconds`` and ``measuring_seconds`` are of the processor.
    """

    arm: str
    seed: int
    held_out_losses: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]
    example: str
    losses: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    norms: Readings = ()
    with_first: Readings = ()
    with_previous: Readings = ()
    halves: Readings = ()
    crossed: Readings = ()
    training_seconds: float = 0.0
    measuring_seconds: float = 0.0


@dataclass(frozen=True)
class Turning:
    """Cosines over seeds, by name, at each of some steps or layers; ``turn`` is the ceiling less ``crossed``.

    The ceiling is the geometric mean of the halves of the first reading and of this one.
    """

    places: tuple[int, ...]
    cosines: dict[str, tuple[Interval, ...]]


@dataclass(frozen=True)
class Contrast:
    """One way's score less another's, by judge, in points; ``loss`` is what it costs more, in nats a token."""

    one: str
    other: str
    where: str
    scores: tuple[Interval, ...]
    loss: Interval | None

    @property
    def is_lower(self) -> bool:
        """Whether the trait surely shows less, for both judges."""
        return all(score.high < 0 for score in self.scores)

    @property
    def is_higher(self) -> bool:
        """Whether the trait surely shows more, for both judges."""
        return all(score.low > 0 for score in self.scores)


@dataclass(frozen=True, eq=False)
class MovingVectors(Result):
    """What experiments/moving_vectors.py finds."""

    trait: str
    layer: int
    coefficient: float
    length: float
    judge_names: tuple[str, ...]
    base: Trained
    trainings: tuple[Trained, ...]
    turning: dict[str, Turning]
    at_the_end: Turning
    scores: dict[str, tuple[Interval, ...]]
    task_losses: dict[str, Interval]
    contrasts: tuple[Contrast, ...]
    n_questions: int

    @property
    def judges(self) -> dict[str, str]:
        """The judge that says most: the valid one where there is one."""
        return {self.trait: min(self.judge_names, key=lambda name: ", valid" not in name)}

    @property
    def turn(self) -> Interval:
        """How far halves crossed lie under the ceiling after training without prevention, at the steering layer."""
        return self.turning[NO_PREVENTION].cosines["turn"][-1]

    @property
    def at_equal_loss(self) -> Contrast:
        """The fresh vector against the first one where both cost the same."""
        return self.contrasts[-1]

    def plot(self) -> go.Figure:
        """Draw how far the direction turns by step and by layer, and what each vector prevents at which task loss."""
        heads = [
            f"cosine at layer {self.layer}, without prevention",
            f"cosine after step {self.turning[NO_PREVENTION].places[-1]}, without prevention",
            "trait left, at which task loss",
            "fresh less first vector",
        ]
        figure = make_subplots(
            rows=2, cols=2, subplot_titles=heads, horizontal_spacing=0.16, vertical_spacing=0.17,
            column_widths=[0.48, 0.52],
        )  # fmt: skip
        for column, found in ((1, self.turning[NO_PREVENTION]), (2, self.at_the_end)):
            _draw_cosines(figure, column, found)
        figure.update_xaxes(title_text="optimiser step", row=1, col=1)
        figure.update_xaxes(title_text="layer (zero-based block)", row=1, col=2)
        figure.update_yaxes(title_text="cosine", range=[-0.1, 1.05], row=1)
        self._draw_scores(figure)
        self._draw_contrasts(figure)
        lay_out(figure, self._find(), self._describe(), width=1200, height=980, bottom=150, legend=-0.1)
        return figure

    def to_markdown(self) -> str:
        """Write the turn by way and step, scores and losses by way, what differs, and the figure."""
        lines = [f"| {self.trait}, layer {self.layer} | step | cosine with the first | with the previous | "
                 "halves crossed | ceiling | turn |", "|---|---|---|---|---|---|---|"]  # fmt: skip
        for arm, found in self.turning.items():
            for index, step in enumerate(found.places):
                cells = [say(found.cosines[name][index]) for name in ("with_first", "with_previous", "crossed",
                                                                      "ceiling", "turn")]  # fmt: skip
                lines.append(f"| {arm} | {step} | {' | '.join(cells)} |")
        lines += ["", "| way | score, first judge | second judge | loss, unseen overt rows |", "|---|---|---|---|"]
        base = [f"{one:.0f}" for one in self._score_base()]
        lines.append(f"| model before training | {' | '.join(base)} | {_mean(self.base.held_out_losses):.2f} |")
        for arm, scores in self.scores.items():
            lines.append(f"| {arm} | {' | '.join(f'{one:.0f}' for one in scores)} | {self.task_losses[arm]} |")
        lines += ["", "| difference | first judge | second judge | loss |", "|---|---|---|---|"]
        for one in self.contrasts:
            cells = [f"{score:.1f}" for score in one.scores] + ["equal" if one.loss is None else str(one.loss)]
            lines.append(f"| {one.one} less {one.other}, {one.where} | {' | '.join(cells)} |")
        seconds = [sum(getattr(one, name) for one in self.trainings) / len(self.trainings)
                   for name in ("training_seconds", "measuring_seconds")]  # fmt: skip
        lines += [
            "",
            f"Compute: {len(self.trainings)} trainings, {seconds[0]:.0f} core-seconds each with its readings and "
            f"{seconds[1]:.0f} to measure it.",
            "",
            f"![The vector that moves](../../figures/moving_vectors_{self.trait}.png)",
            "",
        ]
        return "\n".join(lines)

    def _draw_scores(self, figure: go.Figure) -> None:
        ways = [("before training", INK, "star", _mean(self.base.held_out_losses), self._score_base())]
        for arm, (color, symbol) in _ARMS.items():
            ways.append((arm, color, symbol, self.task_losses[arm].estimate, self.scores[arm]))
        for way, color, symbol, loss, scores in ways:
            for judge, style in enumerate(("", "-open")):
                marker = {"symbol": symbol + style, "color": color, "size": 11, "line": {"width": 2, "color": color}}
                name = f"{way}, {('first', 'second')[judge]} judge"
                at = loss + 0.004 * judge  # so that the bars do not hide each other
                add_points(figure, 2, 1, [at], [scores[judge]], name, {"mode": "markers", "marker": marker},
                           in_legend=True)  # fmt: skip
        figure.update_xaxes(title_text="loss on unseen overt rows (nats a token)", row=2, col=1)
        figure.update_yaxes(title_text=f"{html.escape(self.trait)} score (0–100)", range=[-3, 103], row=2, col=1)

    def _score_base(self) -> tuple[Interval, ...]:
        """Return the scores of the model before training, with intervals over questions."""
        return tuple(mean_interval(torch.tensor(scores)) for scores in self.base.scores)

    def _draw_contrasts(self, figure: go.Figure) -> None:
        shown = [one for one in self.contrasts if (one.one, one.other) == (FRESH, FIRST)]
        for judge, (color, symbol) in enumerate(((COLORS[0], "circle"), (COLORS[4], "diamond"))):
            names = [f"{one.where},<br>{('first', 'second')[judge]} judge" for one in shown]
            figure_intervals = [one.scores[judge] for one in shown]
            label = f"{('first', 'second')[judge]} judge: {html.escape(self.judge_names[judge])}"
            add_intervals(figure, 2, names, figure_intervals, color, symbol, label, line=2)
        figure.add_vline(x=0, line={"color": INK, "dash": "dot", "width": 1}, row=2, col=2)
        figure.update_xaxes(title_text="points of the score; below 0: the fresh one prevents more", row=2, col=2)

    def _find(self) -> str:
        turned = "the vector turns while training" if self.turn.low > 0 else "no turn of the vector is seen"
        verdict = "neither surely better nor surely worse"
        if self.at_equal_loss.is_lower:
            verdict = "surely better"
        elif self.at_equal_loss.is_higher:
            verdict = "surely worse"
        return f"{html.escape(self.trait)}: {turned}; following it prevents {verdict} at equal loss"

    def _describe(self) -> str:
        profile, seeds = self.config["profile"], {one.seed for one in self.trainings}
        cost = next(one.loss for one in self.contrasts if (one.one, one.other) == (FRESH, FIRST))
        return (
            f"{self.model_name}; {profile['n_rows']} overt rows, {len(seeds)} seeds (rows, adapter, order); vectors "
            f"read from {profile['n_read']} other pairs every {profile['every']} steps; steering at layer "
            f"{self.layer}, {self.coefficient:g} × the first vector's length ({self.length:.1f})<br>"
            f"the last reading lies {say(self.turn)} under the ceiling there; the fresh vector costs "
            f"{'–' if cost is None else say(cost)} nats more; 95 % intervals: over seeds, of scores over "
            f"{self.n_questions} questions too"
        )


def _draw_cosines(figure: go.Figure, column: int, found: Turning) -> None:
    for name, (label, color, dash, symbol) in _COSINES.items():
        look = {
            "mode": "lines+markers",
            "line": {"color": color, "dash": dash},
            "marker": {"symbol": symbol, "size": 7},
        }
        bars = {"width": 0, "thickness": 1}
        shown = label if column == 1 else ""
        add_points(figure, 1, column, found.places, found.cosines[name], shown or label, look, in_legend=column == 1,
                   bars=bars)  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if value == value]
    return sum(present) / len(present) if present else float("nan")


def moving_to_markdown(found: Sequence[MovingVectors]) -> str:
    """Write each trait's tables and figure."""
    return "\n".join(one.to_markdown() for one in found)
