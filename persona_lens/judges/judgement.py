"""What every judge returns, and what every judge is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.records import Record
from persona_lens.texts import check_texts

LONGER_THAN_CONTEXT = "longer than the judging model's context"
"""A local judge's reason for a response that it cannot read whole."""


@checked
@dataclass(frozen=True)
class Judgement(Record):
    """A judge's opinion of one response.

    Args:
        score: How strongly the trait shows, 0 to 100; None if the judge gives none.
        coherence: How coherent the response is, 0 to 100; None if the judge gives none.
        reason: Why there is no score; empty where there is one.
        retryable: Whether asking again may give a score: after a failed connection, not after a refusal. Caches do
            not keep such a judgement.
    """

    score: float | None
    coherence: float | None
    reason: str = ""
    retryable: bool = False


EMPTY = Judgement(None, None, "empty response")
"""What is said of a response without text, which no judge is asked about."""


@runtime_checkable
class Judge(Protocol):
    """Scores responses for one trait."""

    @property
    def name(self) -> str:
        """What the judge is, for results and figures."""
        ...

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """Judge each response to its question, in the order given; each gets a score or a reason for none."""
        ...


@runtime_checkable
class IdentifiedJudge(Judge, Protocol):
    """A judge that can say when its answers may differ, so that they can be kept."""

    @property
    def identity(self) -> str:
        """A text that changes whenever the same response could get another score: kind, model, rubric, calibration."""
        ...


def check_pairs(questions: Sequence[str], responses: Sequence[str]) -> None:
    """Refuse lists of unequal length, and one text in place of a list.

    Raises:
        InvalidArgumentError: The lengths differ, or a list is none.
    """
    for name, texts in (("questions", questions), ("responses", responses)):
        check_texts(name, texts, least=0)
    if len(questions) != len(responses):
        rule = f"be as many as `questions`, {len(questions)}"
        raise InvalidArgumentError.of("responses", rule, len(responses))


def identify_judge(judge: Judge) -> str:
    """Return a judge's identity, or its name where it has none."""
    return judge.identity if isinstance(judge, IdentifiedJudge) else judge.name
