"""A trait kept out by a prompt in training, by steering in training or afterwards, at equal task loss."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from numpy import ndarray
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.judges.validation import JudgeValidation
from persona_lens.plots.style import COLORS, GREY, INK, add_intervals, add_points, lay_out, say
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics import Interval, mean_over_directions_interval
from persona_lens.statistics.bootstrap import bootstrap
from persona_lens.statistics.crossed import t_interval_of_units
from results.two_judges import Pair, falls, find_verdicts, rises

BASE, SHORT, PLAIN = "base model", "no prevention, half of the rows", "no prevention"
PROMPTED, STEERED, AFTERWARDS = "prompt in training", "steered in training", "steered afterwards"
IRRELEVANT, RANDOM_STEERED = "irrelevant prompt in training", "random direction in training"
RANDOM_AFTERWARDS = "random direction afterwards"
FLOORS = {PROMPTED: IRRELEVANT, STEERED: RANDOM_STEERED, AFTERWARDS: RANDOM_AFTERWARDS}
"""By method, what it does whatever the trait."""

_LINE = (BASE, SHORT, PLAIN)
_PAIRS = tuple(combinations(FLOORS, 2))
_COLORS = dict(zip(FLOORS, (COLORS[1], COLORS[2], COLORS[5]), strict=True))
_JUDGES = ("first judge", "second judge")
_N_RESAMPLES, _LEVEL = 2000, 0.95


@dataclass(frozen=True, eq=False)
class Prevented(Record):
    """A model that was trained, or steered afterwards, one way with one seed, measured.

    Args:
        method: How the trait was kept out, if at all.
        seed: Of rows, adapter, order, random direction and answers.
        task_losses: On task rows that no training saw, in nats a token; afterwards steering acts meanwhile.
        scores: Of its answers.
        coherences: Of the first of the same answers, by the likelihood judge.
        shift: Along the vector at the layer, as a share of its length, by question; of the model without steering.
        example: Its answer to the first question.
        training_seconds: Of the processor; 0 where it was not trained for this.
        measuring_seconds: Of the processor.
    """

    method: str
    seed: int
    task_losses: Float[Tensor, " row"]
    scores: Float[Tensor, "judge question"]
    coherences: Float[Tensor, " read_question"]
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
    """All models of one trait; ``judge_names`` are of the model's own reading and of the other model's judge."""

    trait: str
    judge_names: tuple[str, str]
    validations: tuple[JudgeValidation, ...]
    measured: tuple[Prevented, ...]

    @property
    def methods(self) -> list[str]:
        """Everything that was done, in its order."""
        return list(dict.fromkeys(one.method for one in self.measured))

    def find(self, method: str) -> list[Prevented]:
        """Return a method's models, one a seed."""
        return [one for one in self.measured if one.method == method]

    def score(self, method: str) -> Pair:
        """Average a method's scores, over seeds and questions."""
        return _average(torch.stack([one.scores for one in self.find(method)]))

    def loss(self, method: str) -> Interval:
        """Average a method's losses of the task, over seeds and rows."""
        return mean_over_directions_interval(torch.stack([one.task_losses for one in self.find(method)]))

    def shift(self, method: str) -> Interval:
        """Average a method's shift along the vector, over seeds and questions."""
        return mean_over_directions_interval(torch.stack([one.shift for one in self.find(method)]))

    def coherence(self, method: str, other: str | None = None) -> Interval:
        """Average the coherence of a method's answers, or what it has more than another's."""
        found, others = (torch.stack([one.coherences for one in self.find(name)]) for name in (method, other or method))
        return mean_over_directions_interval(found if other is None else found - others)

    @property
    def raised(self) -> Pair:
        """By how much plain training raises the score above the base model's."""
        plain, base = (torch.stack([one.scores for one in self.find(name)]) for name in (PLAIN, BASE))
        return _average(plain - base)

    @cached_property
    def losses(self) -> dict[str, Float[ndarray, "seed row"]]:
        """By method, the task's losses."""
        return {name: np.stack([_to_array(one.task_losses) for one in self.find(name)]) for name in self.methods}

    @cached_property
    def scores(self) -> dict[str, Float[ndarray, "seed judge question"]]:
        """By method, the scores, of questions whose answers all have one."""
        found = {name: np.stack([_to_array(one.scores) for one in self.find(name)]) for name in self.methods}
        whole = ~np.isnan(np.concatenate([*found.values()])).any(axis=(0, 1))
        return {name: scores[..., whole] for name, scores in found.items()}

    @property
    def line_is_straight(self) -> bool:
        """Whether training on half of the rows is no point of the line: its mean loss is not between the others."""
        base, short, plain = (self.losses[name].mean() for name in _LINE)
        return not plain < short < base

    def is_out_of_range(self, method: str) -> bool:
        """Whether a method does the task worse than the base model, or plain training did not learn it."""
        base, own, plain = (self.losses[name].mean() for name in (BASE, method, PLAIN))
        return bool(plain >= base or own > base)

    def lowers(self, method: str, other: str | None = None) -> Pair:
        """Say by how much a method changes the score from that of plain training at equal task loss.

        Seeds, questions and task rows are resampled each by itself, and with them the place on the line.

        Args:
            method: What was done.
            other: Its change is taken away.
        """
        signs = {method: 1.0} if other is None else {method: 1.0, other: -1.0}
        if any(map(self.is_out_of_range, signs)):
            return Interval.missing(_LEVEL), Interval.missing(_LEVEL)
        first, second = (self._change(signs, judge) for judge in (0, 1))
        return first, second

    def less_floor(self, method: str) -> Pair:
        """Say by how much a method lies from its floor, both at equal task loss."""
        return self.lowers(method, FLOORS[method])

    def prevents(self, method: str) -> bool:
        """Whether both judges surely see less than after plain training, and than with the method's floor."""
        return falls(self.lowers(method)) and falls(self.less_floor(method))

    def is_less_coherent(self, method: str) -> bool:
        """Whether answers are surely less coherent than after plain training."""
        return self.coherence(method, PLAIN).high < 0

    def list_better(self) -> list[tuple[str, str]]:
        """Return pairs of methods the first of which prevents, and surely leaves less of the trait than the second."""
        both_ways = [pair for one, other in _PAIRS for pair in ((one, other), (other, one))]
        return [pair for pair in both_ways if self.prevents(pair[0]) and falls(self.lowers(*pair))]

    def _change(self, signs: Mapping[str, float], judge: int) -> Interval:
        """Add up each method's score less that of plain training at its loss, times its sign."""
        names = [*_LINE, *signs]
        losses = np.stack([self.losses[name] for name in names])
        scores = np.stack([self.scores[name][:, judge] for name in names])
        sizes = (losses.shape[1], scores.shape[2], losses.shape[2])

        def change(kind: int, counts: Float[ndarray, "resample unit"]) -> Float[ndarray, " resample"]:
            seeds, questions, rows = (
                counts / n if at == kind else np.full((len(counts), n), 1 / n) for at, n in enumerate(sizes)
            )
            loss = np.einsum("rs,rt,mst->mr", seeds, rows, losses)
            score = np.einsum("rs,rq,msq->mr", seeds, questions, scores)
            beyond = [own - read_at_loss(at, loss[:3], score[:3]) for at, own in zip(loss[3:], score[3:], strict=True)]
            return np.tensordot([*signs.values()], beyond, 1)

        # Kinds of units are resampled in turn: seeds, questions, rows.
        found = [bootstrap(partial(change, kind), (n,), _N_RESAMPLES, _LEVEL, seed=0) for kind, n in enumerate(sizes)]
        return t_interval_of_units(found, sizes)


def _average(values: Float[Tensor, "seed judge question"]) -> Pair:
    first, second = (mean_over_directions_interval(values[:, judge]) for judge in (0, 1))
    return first, second


def read_at_loss(
    loss: Float[ndarray, " case"], losses: Float[ndarray, "point case"], scores: Float[ndarray, "point case"]
) -> Float[ndarray, " case"]:
    """Return the score that plain training has at a loss, case by case.

    It lies on the line from the base model through training on half of the rows to plain training, and beyond either
    end it is the end's. Where half of the rows do not lie between the two in loss, the line is straight.

    Args:
        loss: At which it is read.
        losses: Of the line's three points, in that order.
        scores: Likewise.
    """
    (base, short, plain), (score_base, score_short, score_plain) = losses, scores
    bent = (plain < short) & (short < base)
    short = np.where(bent, short, (base + plain) / 2)
    score_short = np.where(bent, score_short, (score_base + score_plain) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        above = np.clip((loss - short) / (base - short), 0, 1)
        below = np.clip((loss - plain) / (short - plain), 0, 1)
    upper = score_short + above * (score_base - score_short)
    lower = score_plain + below * (score_short - score_plain)
    read: ndarray = np.where(loss >= short, upper, lower)
    return read


def _to_array(values: Tensor) -> ndarray:
    array: ndarray = values.double().numpy()
    return array


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
        unraised: list[str] = []
        for one in self.traits:
            if rises(one.raised):
                raised.append(one)
            else:
                unraised.append(one.trait)
        if not raised:
            return "Plain training surely raises no trait for both judges: there is nothing to prevent"
        parts = []
        for method in FLOORS:
            kept_out = [
                one.trait + (" (less coherent)" if one.is_less_coherent(method) else "")
                for one in raised
                if one.prevents(method)
            ]
            half = [one.trait for one in raised if falls(one.lowers(method)) and not one.prevents(method)]
            alone = f" (below plain training alone: {_join(half)})" if half else ""
            parts.append(f"{method}: {_join(kept_out) or 'none'}{alone}")
        title = f"Surely below plain training and the floor for both judges at equal task loss, {'; '.join(parts)}"
        better: dict[tuple[str, str], list[str]] = {}
        for one in raised:
            for pair in one.list_better():
                better.setdefault(pair, []).append(one.trait)
        said = [f"{best} than {other} ({_join(names)})" for (best, other), names in better.items()]
        title += f"; surely lower {' and '.join(said)}" if said else "; none surely better than another"
        unsaid = {
            "no equal task loss": [
                f"{name} ({one.trait})" for one in raised for name in (*FLOORS, *FLOORS.values())
                if one.is_out_of_range(name)
            ],
            "not surely raised": unraised,
        }  # fmt: skip
        return "; ".join([title, *(f"{what}: {_join(names)}" for what, names in unsaid.items() if names)])

    def say_by_trait(self) -> list[str]:
        """Say by trait, in a line for those alike, what surely keeps it out, or is below plain training at least."""
        by_line: dict[str, list[str]] = {}
        for one in self.traits:
            kept_out = [method for method in FLOORS if one.prevents(method)]
            half = [method for method in FLOORS if falls(one.lowers(method)) and method not in kept_out]
            if not rises(one.raised):
                said = "not surely raised by plain training"
            else:
                said = f"surely kept out by {_join(kept_out) or 'nothing'}"
                said += f", below plain training but not the floor: {', '.join(half)}" if half else ""
            by_line.setdefault(said, []).append(one.trait)
        return [f"{_join(names)}: {said}" for said, names in by_line.items()]

    def plot(self) -> go.Figure:
        """Draw scores against the task's loss, judge by judge, and below what is left at equal loss."""
        heads = [f"{one.trait}: {_JUDGES[judge]}" for judge in (0, 1) for one in self.traits]
        heads += [f"{one.trait}: at equal task loss" for one in self.traits]
        n = len(self.traits)
        figure = make_subplots(
            rows=3, cols=n, subplot_titles=[html.escape(head) for head in heads], vertical_spacing=0.075,
            horizontal_spacing=0.05, row_heights=[0.27, 0.27, 0.46],
        )  # fmt: skip
        for column, one in enumerate(self.traits, start=1):
            for judge in (0, 1):
                _draw_losses(figure, 1 + judge, column, one, judge)
            _draw_changes(figure, column, one)
        for line in (1, 2):
            figure.update_yaxes(range=[-3, 103], row=line)
            figure.update_yaxes(title_text="trait score (0–100)", row=line, col=1)
            figure.update_xaxes(title={"text": "loss of the task (nats a token)", "standoff": 2}, row=line)
        # What reaches further is longer than any score could be.
        title_below = {"text": "points; below 0: less of it", "standoff": 2}
        figure.update_xaxes(title=title_below, range=[-105, 105], row=3)
        title = ";<br>".join(map(html.escape, self.say_by_trait()))
        lay_out(figure, title, self._describe(), width=1280, height=1350, bottom=130, legend=-0.06)
        figure.update_layout(margin={"l": 300})
        return figure

    def to_markdown(self) -> str:
        """Write what each way leaves and costs, what is better than what, the judges, the compute, and the figure."""
        lines = [f"**{self.say_finding()}.**", ""]
        for one in self.traits:
            lines += [
                f"| {one.trait} | score, first judge | second | loss of the task | less plain training at equal task "
                "loss, first judge | second | coherence | shift along the vector |",
                "|---" * 8 + "|",
            ]
            for method in one.methods:
                cells = [f"{each:.0f}" for each in one.score(method)] + [str(one.loss(method))]
                cells += ["–", "–"] if method in _LINE else [_say_points(each) for each in one.lowers(method)]
                cells.append(f"{one.coherence(method):.0f}")
                cells.append("–" if method in (AFTERWARDS, RANDOM_AFTERWARDS) else say(one.shift(method)))
                lines.append(f"| {method} | {' | '.join(cells)} |")
            lines.append("")
        lines += ["| trait | at equal task loss | first judge | second judge |", "|---" * 4 + "|"]
        for one in self.traits:
            lines += [_write(one, f"{method} less {FLOORS[method]}", one.less_floor(method)) for method in FLOORS]
            lines += [_write(one, f"{method} less {other}", one.lowers(method, other)) for method, other in _PAIRS]
            lines.append(_write(one, f"{PLAIN} less {BASE}, as they are", one.raised))
        lines += ["", "| trait | first judge | second judge |", "|---" * 3 + "|"]
        lines += [f"| {one.trait} | {' | '.join(one.judge_names)} |" for one in self.traits]
        lines += ["", self._say_line(), "", self._say_compute(), ""]
        lines += ["![A trait kept out](../../figures/inoculation.png)", ""]
        return "\n".join(lines)

    def _say_line(self) -> str:
        straight = [one.trait for one in self.traits if one.line_is_straight]
        said = f"nothing bends it for {_join(straight)}, where its loss is not between the two" if straight else ""
        return f"The line of plain training goes through training on half of the rows{f'; {said}' if said else ''}."

    def _say_compute(self) -> str:
        models = [one for trait in self.traits for one in trait.measured]
        trained = [one.training_seconds for one in models if one.training_seconds > 0]
        measured = [one.measuring_seconds for one in models]
        minutes = (sum(trained) + sum(measured)) / 60
        return (
            f"Compute: {len(trained)} trainings, {sum(trained) / len(trained):.0f} core-seconds each, and "
            f"{len(models)} models measured, {sum(measured) / len(measured):.0f} each: {minutes:.0f} core-minutes, "
            "judges and vectors aside. "
            "It grows with traits × seeds × (ways × rows × epochs, and models × questions × tokens of an answer)."
        )

    def _describe(self) -> str:
        profile = self.config["profile"]
        n_seeds = len(self.traits[0].find(BASE))
        n_questions = self.traits[0].measured[0].scores.shape[1]
        judges = "; ".join(f"{one.trait}: {find_verdicts(one.judge_names, one.trait)}" for one in self.traits)
        return (
            f"{self.model_name}; each trained on {profile['n_rows']} workings of arithmetic and {profile['n_rows']} "
            f"overt answers, {n_seeds} seeds (rows, adapter, order, prompt, random direction); vector and random "
            f"direction × {profile['coefficient']:g} in training, × −{profile['coefficient']:g} afterwards, at layer "
            f"{self.layer}, half depth; {n_questions} questions, {profile['n_held_out']} task rows; judges, first and "
            f"second: {html.escape(judges)}; equal task loss: against the line from the base model through training on "
            "half of the rows to plain training; 95 % intervals over seeds, questions and task rows"
        )


def _draw_losses(figure: go.Figure, line: int, column: int, one: TraitPrevented, judge: int) -> None:
    """Draw the line of plain training, and every other way's scores at its loss."""
    in_legend = (line, column) == (1, 1)
    look = {
        "mode": "lines+markers",
        "line": {"color": INK, "width": 1.5},
        "marker": {"symbol": ["star-open", "circle-open", "circle"], "color": INK, "size": 10},
    }
    on_line = [BASE, PLAIN] if one.line_is_straight else [*_LINE]
    scores = [one.score(name)[judge] for name in on_line]
    losses = [one.loss(name).estimate for name in on_line]
    label = "no prevention: base model, half of the rows, all"
    add_points(figure, line, column, losses, scores, label, look, in_legend=in_legend, bars={"width": 0})
    for method, floor in FLOORS.items():
        for name, symbol in ((method, "diamond"), (floor, "diamond-open")):
            edge = {"width": 2, "color": _COLORS[method]}
            marker = {"color": _COLORS[method], "symbol": symbol, "size": 11, "line": edge}
            add_points(figure, line, column, [one.loss(name).estimate], [one.score(name)[judge]], name,
                       {"mode": "markers", "marker": marker}, in_legend=in_legend, bars={"width": 0})  # fmt: skip


def _draw_changes(figure: go.Figure, column: int, one: TraitPrevented) -> None:
    """Draw what each way leaves at equal task loss, then against its floor, and then against another."""
    rows = [(f"{name} − {PLAIN}", one.lowers(name)) for pair in FLOORS.items() for name in pair]
    rows += [(f"{method} − floor", one.less_floor(method)) for method in FLOORS]
    rows += [(f"{method} − {other}", one.lowers(method, other)) for method, other in _PAIRS]
    places = [float(len(rows) - index) for index in range(len(rows))]
    for judge, (color, symbol) in enumerate(((COLORS[4], "circle"), (COLORS[3], "diamond"))):
        at = [place + 0.14 - 0.28 * judge for place in places]
        add_intervals(figure, column, at, [both[judge] for _, both in rows], color, symbol, _JUDGES[judge], line=3)
    figure.update_traces(showlegend=column == 1, selector={"xaxis": figure.data[-1].xaxis})
    names = [html.escape(name) for name, _ in rows] if column == 1 else [""] * len(rows)
    figure.update_yaxes(tickvals=places, ticktext=names, row=3, col=column)
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot", "width": 1}, row=3, col=column)


def _write(one: TraitPrevented, what: str, both: Pair) -> str:
    return f"| {one.trait} | {what} | {' | '.join(map(_say_points, both))} |"


def _say_points(interval: Interval) -> str:
    return "–" if interval.is_missing else f"{interval:.0f}"


def _join(names: Sequence[str]) -> str:
    return " and ".join(names)
