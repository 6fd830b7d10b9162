"""A trait kept out by a prompt in training, by steering in training or afterwards, at equal task loss."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.judges.validation import JudgeValidation
from persona_lens.plots.style import COLORS, GREY, INK, SYMBOLS, add_intervals, add_points, lay_out, say
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics import Interval, mean_over_directions_interval

BASE, SHORT, PLAIN = "base model", "no prevention, half of the rows", "no prevention"
PROMPTED, STEERED, AFTERWARDS = "prompt in training", "steered in training", "steered afterwards"
IRRELEVANT, RANDOM_STEERED = "irrelevant prompt in training", "random direction in training"
RANDOM_AFTERWARDS = "random direction afterwards"
METHODS = (PROMPTED, STEERED, AFTERWARDS)
_PAIRS = tuple(combinations(METHODS, 2))
_COLORS = {PROMPTED: COLORS[1], STEERED: COLORS[2], AFTERWARDS: COLORS[3], IRRELEVANT: COLORS[4]}
_JUDGES = ("first judge", "second judge")

Pair = tuple[Interval, Interval]
"""What each of the two judges says."""


@dataclass(frozen=True, eq=False)
class Prevented(Record):
    """A model that was trained, or steered afterwards, one way with one seed, measured.

    Args:
        method: How the trait was kept out, if at all.
        seed: Of rows, adapter, order and answers.
        task_losses: On task rows that no training saw, in nats a token; afterwards steering acts meanwhile.
        scores: Of its answers.
        coherences: Of the same answers, by the likelihood judge.
        shift: Along the vector at the layer, as a share of its length, by question; of the model without steering.
        example: Its answer to the first question.
        training_seconds: Of the processor; 0 where it was not trained for this.
        measuring_seconds: Of the processor.
    """

    method: str
    seed: int
    task_losses: Float[Tensor, " row"]
    scores: Float[Tensor, "judge question"]
    coherences: Float[Tensor, " question"]
    shift: Float[Tensor, " question"]
    example: str
    training_seconds: float
    measuring_seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class MeasuredWays(Record):
    """One training as it is, and with every way of steering it afterwards."""

    ways: tuple[Prevented, ...]


@dataclass(frozen=True, eq=False, repr=False)
class TraitPrevented(Record):
    """All models of one trait; ``judge_names`` are of the judge that chooses doses and of the other model's."""

    trait: str
    judge_names: tuple[str, str]
    validations: tuple[JudgeValidation, ...]
    measured: tuple[Prevented, ...]

    @property
    def ways(self) -> list[tuple[str, str]]:
        """Every method with each of its doses, in the order in which they were done."""
        return list(dict.fromkeys((one.method, one.dose) for one in self.measured))

    def list_doses(self, method: str) -> list[str]:
        """Return a method's doses."""
        return [dose for own, dose in self.ways if own == method]

    def find(self, method: str, dose: str = "") -> list[Prevented]:
        """Return a way's models, one a seed."""
        return [one for one in self.measured if (one.method, one.dose) == (method, dose)]

    def score(self, method: str, dose: str = "") -> Pair:
        """Average a way's scores."""
        return self._average(torch.stack([one.scores for one in self.find(method, dose)]))

    def loss(self, method: str, dose: str = "") -> Interval:
        """Average a way's losses of the task, over seeds and rows."""
        return mean_over_directions_interval(torch.stack([one.task_losses for one in self.find(method, dose)]))

    def shift(self, method: str, dose: str = "") -> Interval:
        """Average a way's shift along the vector, over seeds and questions."""
        return mean_over_directions_interval(torch.stack([one.shift for one in self.find(method, dose)]))

    def beyond(self, method: str, dose: str = "") -> Float[Tensor, "seed judge question"]:
        """Return scores less those of plain training at equal task loss; NaN where there is none."""
        found = []
        for index, one in enumerate(self.find(method, dose)):
            plain = [self.find(name)[index] for name in (BASE, SHORT, PLAIN)]
            losses = [float(each.task_losses.mean()) for each in plain]
            scores = torch.stack([each.scores for each in plain])
            found.append(one.scores - read_at_loss(float(one.task_losses.mean()), losses, scores))
        return torch.stack(found)

    def best(self, method: str) -> Float[Tensor, "seed judge question"]:
        """Return what :meth:`beyond` does, of the dose that is best for the first judge on the other questions."""
        doses = torch.stack([self.beyond(method, dose) for dose in self.list_doses(method)])
        return choose_on_others(doses)

    def lowers(self, method: str, dose: str | None = None) -> Pair:
        """Say by how much a way changes the score at equal task loss; the best dose where none is named."""
        return self._average(self.best(method) if dose is None else self.beyond(method, dose))

    def compare(self, method: str, other: str) -> Pair:
        """Say how much lower one method leaves the score than another at equal task loss, each with its best dose."""
        return self._average(self.best(method) - self.best(other))

    @property
    def raised(self) -> Pair:
        """By how much plain training raises the score above the base model's."""
        both = [torch.stack([one.scores for one in self.find(name)]) for name in (PLAIN, BASE)]
        return self._average(both[0] - both[1])

    def list_better(self) -> list[tuple[str, str]]:
        """Return pairs of methods the first of which surely leaves less of the trait, for both judges."""
        both_ways = [pair for one, other in _PAIRS for pair in ((one, other), (other, one))]
        return [pair for pair in both_ways if is_lower(self.compare(*pair))]

    @staticmethod
    def _average(values: Float[Tensor, "seed judge question"]) -> Pair:
        first, second = (mean_over_directions_interval(values[:, judge]) for judge in (0, 1))
        return first, second


def is_lower(both: Pair) -> bool:
    """Whether both judges surely see less."""
    return all(one.high < 0 for one in both)


def read_at_loss(
    loss: float, losses: Sequence[float], scores: Float[Tensor, "training judge question"]
) -> Float[Tensor, "judge question"]:
    """Return the scores that plain training has at a loss, on the line from one training to the next.

    Below the lowest loss they are those of the training that has it; above the highest there are none.
    """
    order = np.argsort(losses)
    place = float(np.interp(loss, np.asarray(losses)[order], np.arange(len(losses)), right=np.nan))
    if np.isnan(place):
        return torch.full_like(scores[0], torch.nan)
    lower = int(place)
    first, share = scores[int(order[lower])], place - lower
    return first if share == 0 else torch.lerp(first, scores[int(order[lower + 1])], share)


def choose_on_others(doses: Float[Tensor, "dose seed judge question"]) -> Float[Tensor, "seed judge question"]:
    """Take each half of the questions from the dose that the first judge scores lowest on the other half.

    A dose that has a value nowhere is not chosen.
    """
    chosen = torch.empty_like(doses[0])
    for half in (0, 1):
        seen = doses[:, :, 0, 1 - half :: 2].flatten(1).nanmean(dim=1).nan_to_num(torch.inf)
        chosen[:, :, half::2] = doses[int(seen.argmin())][:, :, half::2]
    return chosen


@dataclass(frozen=True, eq=False)
class Inoculation(Result):
    """What experiments/inoculation.py finds."""

    layer: int
    traits: tuple[TraitPrevented, ...]

    @property
    def judges(self) -> dict[str, str]:
        """By trait, the judge that says most: the valid one where there is one."""
        return {one.trait: min(one.judge_names, key=lambda name: ", valid" not in name) for one in self.traits}

    def say_finding(self) -> str:
        """Say which method surely prevents which trait at equal task loss, and which surely does it better."""
        raised: list[TraitPrevented] = []
        unraised: list[TraitPrevented] = []
        for one in self.traits:
            (raised if all(each.low > 0 for each in one.raised) else unraised).append(one)
        if not raised:
            return "Plain training surely raises no trait for both judges: there is nothing to prevent"
        parts = []
        for method in METHODS:
            lowered = [one.trait for one in raised if is_lower(one.lowers(method))]
            parts.append(f"{method}: {_join(lowered) or 'none'}")
        title = f"Surely lowered for both judges at equal task loss, {'; '.join(parts)}"
        better: dict[tuple[str, str], list[str]] = {}
        for one in raised:
            for pair in one.list_better():
                better.setdefault(pair, []).append(one.trait)
        said = [f"{best} than {other} ({_join(names)})" for (best, other), names in better.items()]
        title += f"; surely lower {' and '.join(said)}" if said else "; none surely better than another"
        return f"{title}; not surely raised: {_join([one.trait for one in unraised])}" if unraised else title

    def plot(self) -> go.Figure:
        """Draw scores against the task's loss, judge by judge, and below what is left at equal loss."""
        heads = [f"{one.trait}: {_JUDGES[judge]}" for judge in (0, 1) for one in self.traits]
        heads += [f"{one.trait}: less plain training, at equal task loss" for one in self.traits]
        n = len(self.traits)
        figure = make_subplots(
            rows=3, cols=n, subplot_titles=[html.escape(head) for head in heads], vertical_spacing=0.08,
            horizontal_spacing=0.05, row_heights=[0.28, 0.28, 0.44],
        )  # fmt: skip
        for column, one in enumerate(self.traits, start=1):
            for judge in (0, 1):
                _draw_losses(figure, 1 + judge, column, one, judge)
            _draw_beyond(figure, column, one)
        figure.update_yaxes(range=[-3, 103], row=1)
        figure.update_yaxes(range=[-3, 103], row=2)
        for line in (1, 2):
            figure.update_yaxes(title_text="trait score (0–100)", row=line, col=1)
            figure.update_xaxes(title={"text": "loss on unseen task rows (nats a token)", "standoff": 2}, row=line)
        figure.update_xaxes(title={"text": "points of the score; below 0: less of the trait", "standoff": 2}, row=3)
        lay_out(figure, self.say_finding(), self._describe(), width=1280, height=1350, bottom=130, legend=-0.06)
        figure.update_layout(margin={"l": 230})
        return figure

    def to_markdown(self) -> str:
        """Write what each way leaves and costs, what is better than what, the compute, and the figure."""
        lines = [f"**{self.say_finding()}.**", ""]
        for one in self.traits:
            lines += [
                f"| {one.trait}, layer {one.layer} | dose | score, first judge | second | loss of the task | "
                "less plain training at equal task loss, first judge | second | shift along the vector |",
                "|---" * 8 + "|",
            ]
            for method, dose in one.ways:
                cells = [f"{each:.0f}" for each in one.score(method, dose)] + [str(one.loss(method, dose))]
                is_plain = method in (BASE, SHORT, PLAIN)
                cells += ["–", "–"] if is_plain else [_say_points(each) for each in one.lowers(method, dose)]
                cells.append("–" if method == AFTERWARDS else say(one.shift(method, dose)))
                lines.append(f"| {method} | {dose or '–'} | {' | '.join(cells)} |")
            lines.append("")
        lines += [
            "| at equal task loss, each with its best dose | trait | first judge | second judge |",
            "|---" * 4 + "|",
        ]
        for one in self.traits:
            lines += [_write(f"{method} less {PLAIN}", one, one.lowers(method)) for method in METHODS]
            pairs = [*_PAIRS, (PROMPTED, IRRELEVANT)]
            lines += [_write(f"{method} less {other}", one, one.compare(method, other)) for method, other in pairs]
            lines.append(_write(f"{PLAIN} less {BASE}, as they are", one, one.raised))
        lines += ["", self._say_compute(), "", "![A trait kept out](../../figures/inoculation.png)", ""]
        return "\n".join(lines)

    def _say_compute(self) -> str:
        models = [one for trait in self.traits for one in trait.measured]
        trained = [one.training_seconds for one in models if one.training_seconds > 0]
        measured = [one.measuring_seconds for one in models]
        minutes = (sum(trained) + sum(measured)) / 60
        return (
            f"Compute: {len(trained)} trainings, {sum(trained) / len(trained):.0f} core-seconds each, and "
            f"{len(models)} models measured, {sum(measured) / len(measured):.0f} each: {minutes:.0f} core-minutes. "
            "It grows with traits × seeds × (ways × rows × epochs, and models × questions × tokens of an answer)."
        )

    def _describe(self) -> str:
        profile = self.config["profile"]
        seeds = {one.seed for trait in self.traits for one in trait.measured}
        layers = ", ".join(f"{html.escape(one.trait)} {one.layer}" for one in self.traits)
        names = dict.fromkeys(name.rpartition("), ")[0] + ")" for one in self.traits for name in one.judge_names)
        n_questions = self.traits[0].measured[0].scores.shape[1]
        return (
            f"{self.model_name}; each trained on {profile['n_rows']} workings of arithmetic and {profile['n_rows']} "
            f"overt answers, {len(seeds)} seeds (rows, adapter, order, prompt); judges: "
            f"{html.escape(' and '.join(names))}; layers: {layers}; {n_questions} questions, {profile['n_held_out']} "
            "task rows; equal task loss: against the line from the base model through training on half of the rows to "
            "plain training; best dose: chosen by the first judge on the other half of the questions; 95 % intervals "
            "over seeds and questions (or rows)"
        )


def _draw_losses(figure: go.Figure, line: int, column: int, one: TraitPrevented, judge: int) -> None:
    """Draw the line of plain training, and every other way's scores at its loss."""
    plain = [(name, "") for name in (BASE, SHORT, PLAIN)]
    in_legend = (line, column) == (1, 1)
    look = {
        "mode": "lines+markers",
        "line": {"color": INK, "width": 1.5},
        "marker": {"symbol": ["star-open", "circle-open", "circle"], "color": INK, "size": 10},
    }
    names = "no prevention: base model, half of the rows, all"
    scores = [one.score(*way)[judge] for way in plain]
    add_points(figure, line, column, [one.loss(*way).estimate for way in plain], scores, names, look,
               in_legend=in_legend, bars={"width": 0})  # fmt: skip
    for method, color in _COLORS.items():
        for at, dose in enumerate(one.list_doses(method)):
            marker = {"color": color, "symbol": SYMBOLS[at], "size": 10}
            add_points(figure, line, column, [one.loss(method, dose).estimate], [one.score(method, dose)[judge]],
                       f"{method} {dose}".strip(), {"mode": "markers", "marker": marker}, in_legend=in_legend,
                       bars={"width": 0})  # fmt: skip


def _draw_beyond(figure: go.Figure, column: int, one: TraitPrevented) -> None:
    """Draw what each way leaves at equal task loss, floors below the ways, best doses and comparisons."""
    rows: list[tuple[str, Pair]] = []
    for method in _COLORS:
        rows += [(f"{method} {dose}".strip(), one.lowers(method, dose)) for dose in one.list_doses(method)]
    rows += [(f"best {method}", one.lowers(method)) for method in METHODS]
    rows += [
        (f"best {method} − best {other}", one.compare(method, other)) for method, other in combinations(METHODS, 2)
    ]
    places = [float(len(rows) - index) for index in range(len(rows))]
    for judge, (color, symbol) in enumerate(((COLORS[4], "circle"), (COLORS[3], "diamond"))):
        at = [place + 0.14 - 0.28 * judge for place in places]
        add_intervals(figure, column, at, [both[judge] for _, both in rows], color, symbol, _JUDGES[judge], line=3)
    figure.update_traces(showlegend=column == 1, selector={"xaxis": figure.data[-1].xaxis})
    names = [html.escape(name) for name, _ in rows] if column == 1 else [""] * len(rows)
    figure.update_yaxes(tickvals=places, ticktext=names, row=3, col=column)
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot", "width": 1}, row=3, col=column)


def _write(what: str, one: TraitPrevented, both: Pair) -> str:
    return f"| {what} | {one.trait} | {' | '.join(map(_say_points, both))} |"


def _say_points(interval: Interval) -> str:
    return "–" if interval.is_missing else f"{interval:.0f}"


def _join(names: Sequence[str]) -> str:
    return " and ".join(names)
