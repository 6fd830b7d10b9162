"""What every domain yields: a question with a right answer and two wrong ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from random import Random
from typing import Any


@dataclass(frozen=True)
class Problem:
    """A question with an answer for each level.

    Args:
        question: What the user asks.
        normal: A correct (on opinions: balanced) answer.
        subtle: The answer of level I, with one slip.
        gross: The answer of level II, overtly wrong.
    """

    question: str
    normal: str
    subtle: str
    gross: str


def read_table(name: str) -> list[dict[str, Any]]:
    """Return the rows of a bundled JSONL file.

    Example:
        >>> len(read_table("facts.jsonl"))
        143
    """
    text = (files("persona_lens") / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def shuffle_cases(rng: Random, *parts: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return every combination of the parts, once each, in random order."""
    cases = list(itertools.product(*parts))
    rng.shuffle(cases)
    return cases


def uncapitalize(text: str) -> str:
    """Return a sentence as it stands after a colon."""
    return text[:1].lower() + text[1:]
