"""Does the next answer change if a model is told how its last one read?"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.judges.validation import JudgeValidation
from persona_lens.monitoring import AnswerReading, InWords
from persona_lens.plots.style import COLORS, GREY, SYMBOLS, add_intervals, lay_out
from persona_lens.reproduction.figures import Result
from persona_lens.statistics.correlation import bootstrap_pearson_r_by_group
from persona_lens.statistics.interval import Interval
from persona_lens.statistics.missing import mean_interval

NOTHING, REMINDER = "no message", "plain reminder"
WORDS, NUMBERS = "reading in words", "reading as numbers"
PLACEBO_WORDS, PLACEBO_NUMBERS = "placebo in words", "placebo as numbers"
MESSAGES = (REMINDER, WORDS, NUMBERS, PLACEBO_WORDS, PLACEBO_NUMBERS)
# What is compared, by what it is compared with: the message at all, the reading in it, its being the answer's own.
COMPARISONS = (
    *((one, NOTHING) for one in MESSAGES),
    (WORDS, REMINDER),
    (NUMBERS, REMINDER),
    (WORDS, PLACEBO_WORDS),
    (NUMBERS, PLACEBO_NUMBERS),
)
PROJECTION, LENGTH = "projection of the answer", "length"


@dataclass(frozen=True, eq=False)
class Measured:
    """One thing measured of the answer before which the model was told something; NaN where there is none."""

    name: str
    unit: str
    values: Float[Tensor, "condition question draw"]


@dataclass(frozen=True, eq=False)
class TraitReflected:
    """One trait: what was wished for, what was measured, and an example of what was said.

    ``wished`` is 1 where the wish is for more of the trait, else -1. ``given`` are the quantiles that each message was
    made from. ``example`` are a message, the answer before it and the answer after it, by condition.
    """

    trait: str
    layer: int
    wish: str
    wished: int
    judges: tuple[str, str]
    measured: tuple[Measured, ...]
    given: Float[Tensor, "condition question draw"]
    example: dict[str, tuple[str, str, str]]

    def find(self, name: str) -> Measured:
        """Return what was measured under a name."""
        return next(one for one in self.measured if one.name == name)


@dataclass(frozen=True, eq=False)
class ReflectionResult(Result):
    """What experiments/reflection.py finds. ``validations`` are of the two judges of each trait."""

    conditions: tuple[str, ...]
    traits: tuple[TraitReflected, ...]
    validations: tuple[JudgeValidation, ...]
    n_answers: int
    n_tokens: int

    def compare(self, measured: Measured, condition: str, other: str) -> Interval:
        """Return by how much higher a condition is than another, paired by question and draw, over questions."""
        here, there = (measured.values[self.conditions.index(one)] for one in (condition, other))
        return mean_interval((here - there).nanmean(dim=-1))

    def follow(self, one: TraitReflected, measured: Measured, condition: str) -> Interval:
        """Return r of the quantile told with what the answer has beyond that without a message, over questions."""
        at = self.conditions.index(condition)
        change = (measured.values[at] - measured.values[self.conditions.index(NOTHING)]).flatten()
        told = one.given[at].flatten()
        n_questions, n_draws = one.given.shape[1:]
        groups = torch.arange(n_questions).repeat_interleave(n_draws)
        known = ~(change.isnan() | told.isnan())
        if len(groups[known].unique()) < 4:
            return Interval.missing()
        return bootstrap_pearson_r_by_group(told[known], change[known], groups[known].tolist())

    def list_changes(self) -> list[tuple[str, str, str, str]]:
        """Return trait, condition, what it is compared with, and direction of changes that both judges surely see."""
        found = []
        for one in self.traits:
            for condition, other in COMPARISONS:
                both = [self.compare(one.find(judge), condition, other) for judge in one.judges]
                if all(each.low > 0 for each in both):
                    found.append((one.trait, condition, other, "up"))
                elif all(each.high < 0 for each in both):
                    found.append((one.trait, condition, other, "down"))
        return found

    def plot(self) -> go.Figure:
        """Draw every comparison, a row a trait, a panel each for the projection and the two judges."""
        heads = [html.escape(f"{one.trait}: {_shorten(name, one)}") for one in self.traits for name in _list_names(one)]
        figure = make_subplots(rows=len(self.traits), cols=3, subplot_titles=heads, shared_yaxes=True,
                               horizontal_spacing=0.03, vertical_spacing=0.12)  # fmt: skip
        names = [f"{condition} − {other}" for condition, other in COMPARISONS]
        for line, one in enumerate(self.traits, start=1):
            for column, name in enumerate(_list_names(one), start=1):
                measured = one.find(name)
                for against, color, symbol in zip((NOTHING, REMINDER, ""), (COLORS[2], COLORS[3], COLORS[5]), SYMBOLS,
                                                  strict=False):  # fmt: skip
                    rows = [i for i, (_, other) in enumerate(COMPARISONS) if _find_kind(other) == against]
                    found = [self.compare(measured, *COMPARISONS[i]) for i in rows]
                    add_intervals(figure, column, [names[i] for i in rows], found, color, symbol, "", line=line)
                figure.add_vline(x=0, line={"dash": "dot", "color": GREY, "width": 1}, row=line, col=column)
                figure.update_xaxes(title_text=f"difference ({measured.unit})", title_standoff=4, row=line, col=column)
            figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], row=line)
        figure.update_traces(showlegend=False)
        figure.update_annotations(font_size=12)
        lay_out(figure, self._find(), self._describe(), width=1280, height=260 + 330 * len(self.traits), bottom=70)
        return figure

    def to_markdown(self) -> str:
        """Write the figure, all comparisons, what follows the reading, and the levels."""
        lines = ["![Reflection](../../figures/reflection.png)", ""]
        heads = " | ".join(map(_head, self.traits[0].judges))
        lines += [f"| trait | told | less | projection | {heads} | tokens |"]
        lines += ["|---" * 7 + "|"]
        for one in self.traits:
            for condition, other in COMPARISONS:
                found = [self.compare(one.find(name), condition, other) for name in (*_list_names(one), LENGTH)]
                lines.append(f"| {one.trait} | {condition} | {other} | {' | '.join(map(str, found))} |")
        lines += [
            "",
            "Does the answer follow what it was told? Correlation of the quantile told with the answer's change "
            "against no message; a placebo's quantile has nothing to do with the conversation that it is told in.",
            "",
        ]
        lines += [f"| trait | told | projection | {heads} |"]
        lines += ["|---" * 5 + "|"]
        for one in self.traits:
            for condition in MESSAGES[1:]:
                found = [self.follow(one, one.find(name), condition) for name in _list_names(one)]
                lines.append(f"| {one.trait} | {condition} | {' | '.join(map(str, found))} |")
        lines += ["", "Placebos in words that say what the own reading would have said: " + self._say_same() + "."]
        lines += ["", "| the level without a message | |", "|---|---|"]
        lines += [f"| {name} | {level} |" for name, level in self._list_levels()]
        lines += ["", f"Answers: {self.n_answers}, of {self.n_tokens} tokens together."]
        return "\n".join(lines)

    def _say_same(self) -> str:
        said = []
        for one in self.traits:
            told = torch.stack([one.given[self.conditions.index(name)].flatten() for name in (WORDS, PLACEBO_WORDS)])
            own, dealt = (
                [InWords().write((AnswerReading(one.trait, 0.0, q),)) for q in quantiles]
                for quantiles in told[:, ~told.isnan().any(dim=0)].tolist()
            )
            said.append(f"{one.trait}, {sum(map(str.__eq__, own, dealt))} of {len(own)}")
        return "; ".join(said)

    def _list_levels(self) -> list[tuple[str, Interval]]:
        at = self.conditions.index(NOTHING)
        return [
            (f"{one.trait}, {_shorten(name, one)}", mean_interval(one.find(name).values[at].nanmean(dim=-1)))
            for one in self.traits
            for name in _list_names(one)
        ]

    def _find(self) -> str:
        changes = self.list_changes()
        head = "Told how its last answer read, the model"
        if not changes:
            return (
                f"{head} does not surely answer otherwise for both judges: not against a placebo reading, not against "
                "a plain reminder, not against no message"
            )
        said = []
        for others, what in (
            ((PLACEBO_WORDS, PLACEBO_NUMBERS), "a placebo reading"),
            ((REMINDER,), "a plain reminder"),
            ((NOTHING,), "no message"),
        ):
            found = [one for one in changes if one[2] in others]
            said.append(f"against {what}, {_say(found) if found else 'nothing'}")
        return f"{head} changes for both judges: {'; '.join(said)}"

    def _describe(self) -> str:
        profile = self.config["profile"]
        n_questions, n_draws = self.traits[0].given.shape[1:]
        wishes = "; ".join(f"{one.trait} at layer {one.layer}: “{html.escape(one.wish)}”" for one in self.traits)
        return (
            f"{self.model_name}, {n_questions} questions a trait, {n_draws} draws each, answers of at most "
            f"{profile['max_new_tokens']} tokens at temperature {profile['temperature']:g}. Before the second question "
            f"the model is told how its first answer read, or a placebo: how another conversation's did. Every message "
            f"ends with the wish that the plain reminder is ({wishes}). Paired by question; 95 % bootstrap over "
            "questions; read and judged without the message"
        )


def _list_names(one: TraitReflected) -> tuple[str, str, str]:
    return (PROJECTION, *one.judges)


def _find_kind(other: str) -> str:
    return other if other in (NOTHING, REMINDER) else ""


def _head(judge: str) -> str:
    return judge.partition("), ")[0] + ")" if "), " in judge else judge


def _shorten(name: str, one: TraitReflected) -> str:
    name = name.replace(f" for {one.trait}", "")
    return name.replace("embedding judge ", "").replace("smollm2-135m-instruct", "own model")


def _say(changes: Sequence[tuple[str, str, str, str]]) -> str:
    """Say what changes: by trait and direction, after which messages."""
    said: dict[tuple[str, str], list[str]] = {}
    for trait, condition, _, way in changes:
        said.setdefault((trait, way), []).append(condition)
    return ", ".join(f"{trait} goes {way} with {' and '.join(names)}" for (trait, way), names in said.items())
