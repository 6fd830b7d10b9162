"""Drift over turns: how a model's projections and judged traits change while a conversation goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, check_index
from persona_lens.evaluation.conversing import Conversations
from persona_lens.records import Record, format_table
from persona_lens.statistics import Interval
from persona_lens.statistics.missing import difference_interval, mean_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LAST_PROMPT, RESPONSE = "projection, last prompt token", "projection, response"
# What drifts in a small model whatever the user says, and so has to be looked at beside.
LENGTH, REPETITION, SURPRISE, COHERENCE = "length", "repetition", "surprise", "coherence"
# With fewer turns there is no slope to speak of.
_LEAST_TURNS = 3


@checked
@dataclass(frozen=True, eq=False)
class Course(Record):
    """One thing measured at every turn.

    Args:
        name: What it is: a projection, a judge, or a confound.
        trait: The trait; empty for what is no trait's.
        unit: Its unit.
        values: Averaged over rollouts; NaN where there is none.
    """

    name: str
    trait: str
    unit: str
    values: Float[Tensor, "condition script turn"]

    @property
    def slopes(self) -> Float[Tensor, "condition script"]:
        """Least-squares slope a turn of each script, over the turns that are there; NaN where they are under three."""
        turns = torch.arange(self.values.shape[-1], dtype=torch.float64).expand(self.values.shape)
        present = ~self.values.isnan()
        n = present.sum(dim=-1, keepdim=True)
        y = self.values.double().nan_to_num()
        x = (turns - (turns * present).sum(dim=-1, keepdim=True) / n) * present
        slopes = (x * y).sum(dim=-1) / (x * x).sum(dim=-1)
        return torch.where(n[..., 0] >= _LEAST_TURNS, slopes, torch.nan).float()

    @property
    def means(self) -> Float[Tensor, "condition script"]:
        """Mean over each script's turns."""
        return self.values.nanmean(dim=-1)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Drift(Record):
    """How a model changes over the turns of conversations, for each kind of user and condition.

    Intervals are bootstrapped over topics, as scripts on one topic are not independent of each other: what a kind, or
    all kinds, have on a topic is averaged first. A script without a topic stands for itself. Against the control they
    are paired by topic, between conditions by script.

    Args:
        conversations: What was said.
        control: The kind of user that the others are compared with.
        layers: By trait, the zero-based block index at which projections were read.
        courses: All that was measured, turn by turn.
    """

    conversations: Conversations
    control: str
    layers: dict[str, int]
    courses: tuple[Course, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of user."""
        return tuple(dict.fromkeys(script.kind for script in self.conversations.scripts))

    def find(self, name: str, trait: str = "") -> Course:
        """Return what was measured under a name, such as ``projection, response`` or a judge's.

        Raises:
            InvalidArgumentError: Nothing of that name.
        """
        found = [one for one in self.courses if (one.name, one.trait) == (name, trait)]
        if not found:
            known = sorted({f"{one.name!r} of {one.trait!r}" for one in self.courses})
            raise InvalidArgumentError.of("name", f"be one of {', '.join(known)}", (name, trait))
        return found[0]

    def by_turn(self, course: Course, kind: str | None, condition: int = 0) -> tuple[Interval, ...]:
        """Return the mean over a kind's topics at each turn; None takes all kinds, averaged topic by topic."""
        values = self._average(self._take(course, condition).values[condition], kind)
        return tuple(map(mean_interval, torch.stack(list(values.values())).unbind(dim=-1)))

    def slope(self, course: Course, kind: str | None, condition: int = 0) -> Interval:
        """Return the mean slope a turn over a kind's topics; None takes all kinds, averaged topic by topic."""
        return self._summarize(self._take(course, condition).slopes[condition], kind)

    def against_control(self, course: Course, kind: str, condition: int = 0) -> Interval:
        """Return by how much steeper a kind's slope is than the control's, paired by topic; missing for the control.

        Scripts whose topic the control lacks are left out.

        Raises:
            InvalidArgumentError: A kind without any topic of the control's, such as one whose scripts name none.
        """
        return self._pair(self._take(course, condition).slopes[condition], kind)

    def level_against_control(self, course: Course, kind: str, condition: int = 0) -> Interval:
        """Return by how much higher a kind's mean over all turns is than the control's, paired likewise.

        Raises:
            InvalidArgumentError: As :meth:`against_control`.
        """
        return self._pair(self._take(course, condition).means[condition], kind)

    def change(self, course: Course, kind: str | None, condition: int) -> Interval:
        """Return by how much steeper a kind's slope is under a condition than under the first, paired by script.

        Differences are averaged topic by topic; None takes all kinds.
        """
        slopes = self._take(course, condition).slopes
        return self._summarize(slopes[condition] - slopes[0], kind)

    def level(self, course: Course, kind: str | None, condition: int) -> Interval:
        """Return by how much higher the mean over all turns is under a condition than under the first, likewise."""
        means = self._take(course, condition).means
        return self._summarize(means[condition] - means[0], kind)

    def plot(self, condition: int = 0) -> Figure:
        """Draw every course turn by turn under one condition: a panel a course, a line a kind of user."""
        from persona_lens.plots.drift import plot_drift  # plotly is imported only when drawing

        return plot_drift(self, condition)

    def __repr__(self) -> str:
        return f"Drift({self.conversations!r}; {len(self.courses)} courses; control {self.control!r})"

    def _repr_html_(self) -> str:
        beside = {kind: kind == self.control or bool(self._list_shared(kind)) for kind in self.kinds}
        rows = [
            (
                f"{one.trait} {one.name}".strip(),
                kind,
                self.slope(one, kind),
                self.against_control(one, kind) if beside[kind] else "no topic shared",
            )
            for one in self.courses
            for kind in self.kinds
        ]
        head = ("measured", "user", "slope a turn", f"less {self.control}")
        return format_table(f"Drift, {self.conversations.conditions[0] or 'condition 0'}", rows, head)

    def _list_scripts(self, kind: str | None) -> list[int]:
        rows = [index for index, one in enumerate(self.conversations.scripts) if kind in (None, one.kind)]
        if not rows:
            raise InvalidArgumentError.of("kind", f"be one of {', '.join(self.kinds)}", kind)
        return rows

    def _list_topics(self, kind: str | None) -> dict[str | int, list[int]]:
        """Return the scripts of each topic; one without a topic is under its own number."""
        topics: dict[str | int, list[int]] = {}
        for row in self._list_scripts(kind):
            topics.setdefault(self.conversations.scripts[row].topic or row, []).append(row)
        return topics

    def _list_shared(self, kind: str) -> list[str | int]:
        """Return a kind's topics that the control has too."""
        return [topic for topic in self._list_topics(kind) if topic in self._list_topics(self.control)]

    def _average(self, values: Float[Tensor, "script *turn"], kind: str | None) -> dict[str | int, Tensor]:
        """Average what is there over the scripts of each topic."""
        return {topic: values[rows].nanmean(dim=0) for topic, rows in self._list_topics(kind).items()}

    def _summarize(self, values: Float[Tensor, " script"], kind: str | None) -> Interval:
        return mean_interval(torch.stack(list(self._average(values, kind).values())))

    def _pair(self, values: Float[Tensor, " script"], kind: str) -> Interval:
        if kind == self.control:
            return Interval.missing()
        shared = self._list_shared(kind)
        if not shared:
            rule = f"have a topic that {self.control!r}, the control, has too"
            raise InvalidArgumentError.of("kind", rule, kind, "Give each UserScript its `topic`: they are the pairs.")
        first, second = (self._average(values, one) for one in (kind, self.control))
        return difference_interval(*(torch.stack([one[topic] for topic in shared]) for one in (first, second)))

    def _take(self, course: Course, condition: int) -> Course:
        """Return a course that is of these conversations and has that condition."""
        n, n_scripts = len(self.conversations.conditions), len(self.conversations.scripts)
        if tuple(course.values.shape[:2]) != (n, n_scripts):
            rule = f"be of these {n} conditions and {n_scripts} scripts"
            raise InvalidArgumentError.of("course", rule, tuple(course.values.shape[:2]), "Take it from `find`.")
        check_index("condition", condition, n)
        return course
