"""What a model is told between turns: whose reading, and how it is put."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np

from persona_lens.checking import checked
from persona_lens.checksums import hash_json
from persona_lens.errors import InvalidArgumentError
from persona_lens.monitoring.answers import AnswerReading, check_knows_answers
from persona_lens.monitoring.monitor import PersonaMonitor
from persona_lens.records import Record

Readings: TypeAlias = tuple[AnswerReading, ...]
"""An answer's readings, one a trait."""

Reader: TypeAlias = Callable[[PersonaMonitor], Sequence[Readings]]
"""Reads some conversations' last answers by a monitor."""

# How an answer leaned, by the share of ordinary answers that read lower: up to each of these.
_LEANINGS = (
    (0.05, "leaned strongly away from"),
    (0.25, "leaned away from"),
    (0.75, "leaned neither towards nor away from"),
    (0.95, "leaned towards"),
    (1.0, "leaned strongly towards"),
)


@runtime_checkable
class Wording(Protocol):
    """How a reading is put: :class:`InWords` and its like, or a frozen dataclass of one's own."""

    def write(self, readings: Readings) -> str:
        """Return what the model is told; nothing is told where it is empty."""
        ...


@runtime_checkable
class ReadingSource(Protocol):
    """Whose reading is told: :class:`OwnAnswer` and its like, or a frozen dataclass of one's own."""

    least_conversations: ClassVar[int]

    def choose(self, readings: Sequence[Readings], read: Reader, seed: tuple[int, ...]) -> Sequence[Readings | None]:
        """Return what each conversation is told, None for nothing.

        Args:
            readings: Of the last answer of each conversation that goes on.
            read: Reads these answers by another monitor.
            seed: Of whatever is drawn.
        """
        ...


@checked
@dataclass(frozen=True)
class SayNothing:
    """The model is told nothing: how the conversation goes on by itself."""

    def write(self, readings: Readings) -> str:
        """Return nothing."""
        return ""


@checked
@dataclass(frozen=True)
class Remind:
    """The model is told the same thing each time, whatever it answered.

    Args:
        text: What it is told.
    """

    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InvalidArgumentError.of("text", "hold what the model is told", self.text, "Or take SayNothing().")

    def write(self, readings: Readings) -> str:
        """Return the text."""
        return self.text


@checked
@dataclass(frozen=True)
class InWords:
    """The model is told which way its answer leaned, against the middle half of its ordinary answers.

    Args:
        closing: Follows it, such as what is wished for.

    Example:
        >>> InWords("Please be kind.").write((AnswerReading("evil", 1.5, 0.93),))
        'Your last answer leaned towards evil. Please be kind.'
    """

    closing: str = ""

    def write(self, readings: Readings) -> str:
        """Write a sentence a trait."""
        said = [
            f"{'It' if index else 'Your last answer'} {_find_leaning(one.quantile)} {_name(one)}."
            for index, one in enumerate(readings)
        ]
        return " ".join([*said, self.closing]).strip()


@checked
@dataclass(frozen=True)
class InNumbers:
    """The model is told its answer's projection, and how many of a hundred ordinary answers read lower.

    Args:
        closing: Follows it, such as what is wished for.

    Example:
        >>> InNumbers().write((AnswerReading("evil", 1.5, 0.93),))
        'Your last answer measured 1.50 on evil, higher than 93 of 100 ordinary answers.'
    """

    closing: str = ""

    def write(self, readings: Readings) -> str:
        """Write a sentence a trait."""
        said = [
            f"{'It' if index else 'Your last answer'} measured {one.projection:.2f} on {_name(one)}, higher than "
            f"{round(100 * one.quantile)} of 100 ordinary answers."
            for index, one in enumerate(readings)
        ]
        return " ".join([*said, self.closing]).strip()


@checked
@dataclass(frozen=True)
class OwnAnswer:
    """Each conversation is told its own answer's reading."""

    least_conversations: ClassVar[int] = 1

    def choose(self, readings: Sequence[Readings], read: Reader, seed: tuple[int, ...]) -> Sequence[Readings | None]:
        """Return the readings as they are."""
        return readings


@checked
@dataclass(frozen=True)
class AnotherAnswer:
    """A placebo: each conversation is told another one's reading, drawn anew at each turn.

    Over all conversations of a rollout that go on, the readings that are told are the same, each once; they are only
    dealt to others. A conversation that goes on alone is told nothing.
    """

    least_conversations: ClassVar[int] = 2

    def choose(self, readings: Sequence[Readings], read: Reader, seed: tuple[int, ...]) -> Sequence[Readings | None]:
        """Deal the readings along a circle of random order, so that nobody has their own."""
        if len(readings) < self.least_conversations:
            return [None] * len(readings)
        order = np.random.default_rng(seed).permutation(len(readings)).tolist()
        giver = dict(zip(order, [*order[1:], order[0]], strict=True))
        return [readings[giver[index]] for index in range(len(readings))]


@checked
@dataclass(frozen=True, eq=False)
class OtherMonitor:
    """Each conversation is told how its own answer reads to another monitor: a placebo, if that has random directions.

    Args:
        monitor: Calibrated on the same model, with ``responses``; its traits' names are those that are told.

    Raises:
        InvalidArgumentError: A monitor that does not know how ordinary answers read.
    """

    monitor: PersonaMonitor
    least_conversations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_knows_answers("monitor", self.monitor)

    def choose(self, readings: Sequence[Readings], read: Reader, seed: tuple[int, ...]) -> Sequence[Readings | None]:
        """Read the answers by the other monitor."""
        return read(self.monitor)


@checked
@dataclass(frozen=True, eq=False)
class Reflection:
    """What a model is told between turns: a condition of :func:`reflect`.

    Args:
        wording: How it is put: :class:`SayNothing`, :class:`Remind`, :class:`InWords`, :class:`InNumbers`, or one's
            own.
        source: Whose reading: :class:`OwnAnswer`, :class:`AnotherAnswer`, :class:`OtherMonitor`, or one's own.
        name: For results and figures.

    Raises:
        InvalidArgumentError: A wording or a source that is no frozen dataclass of JSON-able values and records, so
            that kept work could not be told apart.

    Example:
        >>> Reflection(InWords(), AnotherAnswer(), "placebo").source
        AnotherAnswer()
    """

    wording: Wording = InWords()
    source: ReadingSource = OwnAnswer()
    name: str = ""

    def __post_init__(self) -> None:
        for name, given in (("wording", self.wording), ("source", self.source)):
            if isinstance(given, type) or not is_dataclass(given) or not _is_frozen(given):
                raise InvalidArgumentError.of(name, "be an instance of a frozen dataclass", given)
            try:
                hash_json(_describe(given))
            except (TypeError, ValueError) as error:
                rule = "hold nothing but JSON-able values and records"
                raise InvalidArgumentError.of(name, rule, given, f"{error}.") from error

    def describe(self) -> dict[str, Any]:
        """Return all that what is told depends on, beside the answers, as JSON-able values."""
        return {"wording": _describe(self.wording), "source": _describe(self.source)}


def _is_frozen(part: Any) -> bool:
    return bool(type(part).__dataclass_params__.frozen)


def _describe(part: Any) -> dict[str, Any]:
    values = {one.name: getattr(part, one.name) for one in fields(part)}
    told = {name: hash_json(one.to_json()) if isinstance(one, Record) else one for name, one in values.items()}
    return {"kind": f"{type(part).__module__}.{type(part).__qualname__}", **told}


def _name(reading: AnswerReading) -> str:
    return reading.trait.replace("_", " ")


def _find_leaning(quantile: float) -> str:
    return next(leaning for limit, leaning in _LEANINGS if quantile <= limit)
