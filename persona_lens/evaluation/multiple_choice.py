"""Multiple-choice items, from files, datasets and the bundled list."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError

from persona_lens.checking import checked
from persona_lens.errors import FileFormatError, InvalidArgumentError, describe_violation

_DATA = files("persona_lens") / "data"
_COLUMNS = ("question", "choices", "answer")
_FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@checked
@dataclass(frozen=True)
class MultipleChoiceItem:
    """A question with several answers, one of them right.

    Args:
        question: What the user asks.
        choices: The answers to choose from, as the assistant would say them.
        answer: Index of the right one, from 0.

    Raises:
        InvalidArgumentError: No question, an empty choice, fewer than two different choices, or an answer that is
            none of them.

    Example:
        >>> MultipleChoiceItem("What colour is snow?", ("Blue", "White"), 1).choices[1]
        'White'
    """

    question: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.question.strip():
            raise InvalidArgumentError.of("question", "not be empty", self.question)
        if len(set(self.choices)) < 2 or not all(choice.strip() for choice in self.choices):
            rule = "be at least two different texts, none of them empty"
            raise InvalidArgumentError.of("choices", rule, self.choices)
        if not 0 <= self.answer < len(self.choices):
            raise InvalidArgumentError.of("answer", f"be in [0, {len(self.choices)})", self.answer)


@checked
def load_multiple_choice(
    source: str | Path | datasets.Dataset | None = None,
    *,
    subset: str | None = None,
    split: str = "test",
    n: int | None = None,
    seed: int = 0,
) -> tuple[MultipleChoiceItem, ...]:
    """Read multiple-choice items with columns ``question``, ``choices`` and ``answer``.

    An answer is an index from 0, a letter from A, or the text of a choice; one that could be read in two ways is
    refused. In a CSV file the choices of a row are a JSON list. Other columns are ignored.

    Args:
        source: A file (.jsonl, .json, .csv, .parquet), a ``datasets.Dataset``, or a dataset's name on the Hugging
            Face Hub, e.g. ``"cais/mmlu"``. None reads the bundled items: everyday knowledge for small models.
        subset: Configuration of a Hub dataset, e.g. ``"all"``.
        split: Split of a Hub dataset.
        n: Draw that many at random, kept in the source's order; None takes all.
        seed: Seed of the draw.

    Returns:
        The items.

    Raises:
        FileNotFoundError: No such file.
        FileFormatError: No rows, or a row that is no item; the message has its number, from 1 (in a .jsonl file,
            the line's).
        InvalidArgumentError: No such Hub dataset, subset or split; another type of file; ``n`` out of range.

    Example:
        >>> items = load_multiple_choice(n=3)
        >>> [len(item.choices) for item in items]
        [4, 4, 4]
    """
    if source is None:
        with as_file(_DATA / "capability_items.jsonl") as path:
            return load_multiple_choice(path, n=n, seed=seed)
    items = [_read_item(row, number) for number, row in _read_rows(source, subset, split)]
    if not items:
        raise FileFormatError(f"`source` must hold at least one row. Got none in {source!r}.")
    if n is None:
        return tuple(items)
    if not 1 <= n <= len(items):
        raise InvalidArgumentError.of("n", f"be in [1, {len(items)}], the rows of the source", n)
    chosen = np.random.default_rng(seed).choice(len(items), size=n, replace=False)
    return tuple(items[i] for i in sorted(chosen))


def _read_rows(source: str | Path | datasets.Dataset, subset: str | None, split: str) -> Iterable[tuple[int, Any]]:
    """Yield the rows of a source with their numbers, from 1."""
    if isinstance(source, datasets.Dataset):
        return enumerate(source, start=1)
    path = Path(source)
    if path.suffix in _FILE_TYPES:
        if not path.is_file():
            raise FileNotFoundError(f"`source` must name an existing file. Got {str(source)!r}.")
        return _read_file(path)
    if isinstance(source, Path) or path.exists():
        rule = f"be a file of type {', '.join(_FILE_TYPES)}"
        raise InvalidArgumentError.of("source", rule, str(source))
    try:
        return enumerate(datasets.load_dataset(source, subset, split=split), start=1)
    except (OSError, ValueError) as error:
        rule = f"be a file, or a dataset of the Hub with subset {subset!r} and split {split!r}"
        raise InvalidArgumentError.of("source", rule, source, str(error)) from error


def _read_file(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".parquet":
        # In a cache that goes away again: the library's own would keep a copy of every file ever read.
        with tempfile.TemporaryDirectory() as cache:
            try:
                rows = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
            except (ValueError, OSError, DatasetGenerationError) as error:
                raise FileFormatError(f"`source` must be a whole Parquet file. Got {str(path)!r}: {error}") from error
        yield from enumerate(rows, start=1)
        return
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:  # so that a line break within quotes stays as it is
            for number, row in enumerate(csv.DictReader(file), start=1):
                yield number, {**row, **_parse_choices(row, number)}
        return
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, _parse_json(line, f"Row {number} of `source`")
    else:
        content = _parse_json(text, f"`source` {str(path)!r}")
        if not isinstance(content, list):
            raise FileFormatError(f"`source` {str(path)!r} must be a JSON list of rows. Got {type(content).__name__}.")
        yield from enumerate(content, start=1)


def _parse_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"{name} must be JSON. Got {text[:80]!r}: {error}.") from error


def _parse_choices(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the choices of a CSV row as a list, or nothing if it has no such column."""
    cell = row.get("choices")
    return {} if cell is None else {"choices": _parse_json(cell, f"The choices in row {number} of `source`")}


def _read_item(row: object, number: int) -> MultipleChoiceItem:
    def refuse(what: str) -> FileFormatError:
        return FileFormatError(f"Row {number} of `source` must be a multiple-choice item. {what}")

    if not isinstance(row, Mapping):
        raise refuse(f"Got {row!r}, no mapping of column to value.")
    missing = [column for column in _COLUMNS if column not in row]
    if missing:
        raise refuse(f"Missing columns: {missing}. It has {list(row)}.")
    question, choices = row["question"], row["choices"]
    if not isinstance(question, str):
        raise refuse(describe_violation("question", "be a text", question))
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise refuse(describe_violation("choices", "be a list of texts", choices))
    readings = _read_answer(row["answer"], choices)
    if len(readings) != 1:
        rule = "be the index, the letter or the text of one choice" + (", and not of two" if readings else "")
        raise refuse(describe_violation("answer", rule, row["answer"], f"The choices are {choices!r}."))
    try:
        return MultipleChoiceItem(question, tuple(choices), readings.pop())
    except InvalidArgumentError as error:
        raise refuse(str(error)) from error


def _read_answer(answer: object, choices: Sequence[str]) -> set[int]:
    """Return every choice that an answer may mean: by text, by letter, or by index."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return {answer}
    if not isinstance(answer, str):
        return set()
    readings = {choices.index(answer)} if answer in choices else set()
    if len(answer) == 1 and answer in _LETTERS[: len(choices)]:
        readings.add(_LETTERS.index(answer))
    # In a CSV file, and in some Hub datasets, an index is a text.
    if answer.isdecimal() and int(answer) < len(choices):
        readings.add(int(answer))
    return readings
