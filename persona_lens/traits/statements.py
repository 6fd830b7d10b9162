"""True and false statements of six kinds, and questions about real and invented names.

They were written for this project: a few dozen facts a kind, which :func:`load_statements` crosses. Of two facts,
"Paris is in France" and "Tokyo is in Japan", the false statements are those with the values swapped, so that every word
stands in as many true statements as false ones, and no word tells which is which.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError

_FOLDER = files("persona_lens.traits") / "statements"
_Row = dict[str, Any]


@checked
@dataclass(frozen=True)
class Statement:
    """A statement that is true or false.

    Args:
        text: The statement, with its full stop.
        is_true: Whether it is true.
        kind: One of :func:`list_statement_kinds`.
        group: Number of the facts that it is made of, within its kind: statements of one group share their words, so
            they are held out together.

    Reference:
        The Geometry of Truth (arXiv 2310.06824), section 2.
    """

    text: str
    is_true: bool
    kind: str
    group: int


@checked
@dataclass(frozen=True)
class EntityQuestion:
    """A question about something real or invented.

    Args:
        question: The question.
        name: What it asks about.
        is_real: Whether there is such a thing.
        category: Country, city, person, animal or book.
        pair: Number of the pair of a real and an invented name that are asked about in the same words.
    """

    question: str
    name: str
    is_real: bool
    category: str
    pair: int


@checked
def list_statement_kinds() -> tuple[str, ...]:
    """Return the kinds of statement that are bundled.

    Example:
        >>> list_statement_kinds()
        ('cities', 'arithmetic', 'comparisons', 'translations', 'negations', 'conjunctions')
    """
    return tuple(_KINDS)


@checked
def load_statements(kind: str) -> tuple[Statement, ...]:
    """Load the statements of a kind: in each group two true ones and two false ones of the same words.

    Each true one is followed by a false one about the same thing.

    Args:
        kind: One of :func:`list_statement_kinds`. Negations are made of every third group of cities, translations and
            comparisons; the other kinds share no fact.

    Returns:
        True and false ones in turn, group by group.

    Raises:
        InvalidArgumentError: Another kind.

    Reference:
        The Geometry of Truth (arXiv 2310.06824), section 2.

    Example:
        >>> for statement in load_statements("cities")[:4]:
        ...     print(statement.is_true, statement.text)
        True The city of Paris is in France.
        False The city of Paris is in Japan.
        True The city of Tokyo is in Japan.
        False The city of Tokyo is in France.
    """
    if kind not in _KINDS:
        raise InvalidArgumentError.of("kind", f"be one of {', '.join(_KINDS)}", kind)
    return tuple(
        Statement(text[0].upper() + text[1:], is_true, kind, group)
        for group, texts in enumerate(_KINDS[kind]())
        for text, is_true in zip(texts, (True, False, True, False), strict=True)
    )


@checked
def load_entity_questions() -> tuple[EntityQuestion, ...]:
    """Load questions about real things that a small model has read of, and the same questions about invented ones.

    Returns:
        A question about something real and one about something invented in turn, pair by pair.

    Example:
        >>> for one in load_entity_questions()[:2]:
        ...     print(one.is_real, one.question)
        True What is the capital of New Zealand?
        False What is the capital of New Orion?
    """
    return tuple(
        EntityQuestion(row["question"].format(row[name]), row[name], name == "real", row["category"], pair)
        for pair, row in enumerate(_read("entities"))
        for name in ("real", "invented")
    )


def _read(name: str) -> list[_Row]:
    return [json.loads(line) for line in (_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _cross(row: _Row) -> tuple[str, ...]:
    """Return true, false, true and false: each of two things with its own value, then with the other's."""
    (one, its), (other, others) = row["facts"]
    return tuple(row["form"].format(*parts) for parts in ((one, its), (one, others), (other, others), (other, its)))


def _compare(row: _Row) -> tuple[str, ...]:
    larger, smaller = row["larger"], row["smaller"]
    return tuple(
        f"{first} is {how} than {second}."
        for how, first, second in (
            ("larger", larger, smaller), ("larger", smaller, larger),
            ("smaller", smaller, larger), ("smaller", larger, smaller),
        )
    )  # fmt: skip


def _conjoin(row: _Row, group: int) -> tuple[str, ...]:
    """Join facts two by two; the false ones have their first half wrong in even groups, their second in odd ones."""
    (one, its), (other, others) = row["first"]
    a, b = row["second"]
    wrong_first = ((one, others, *a), (other, its, *b))
    wrong_second = ((one, its, a[0], b[1]), (other, others, b[0], a[1]))
    false = wrong_second if group % 2 else wrong_first
    return tuple(row["form"].format(*parts) for parts in ((one, its, *a), false[0], (other, others, *b), false[1]))


def _negate(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Deny each statement at its last "is", and put the true ones first again."""
    denied = [" is not ".join(text.rsplit(" is ", 1)) for text in texts]
    return tuple(denied[i] for i in (1, 0, 3, 2))


_PLAIN: dict[str, Callable[[], list[tuple[str, ...]]]] = {
    "cities": lambda: [_cross(row) for row in _read("cities")],
    "arithmetic": lambda: [_cross(row) for row in _read("arithmetic")],
    "comparisons": lambda: [_compare(row) for row in _read("comparisons")],
    "translations": lambda: [_cross(row) for row in _read("translations")],
}
_KINDS = _PLAIN | {
    "negations": lambda: [
        _negate(texts) for kind in ("cities", "translations", "comparisons") for texts in _PLAIN[kind]()[::3]
    ],
    "conjunctions": lambda: [_conjoin(row, group) for group, row in enumerate(_read("conjunctions"))],
}
