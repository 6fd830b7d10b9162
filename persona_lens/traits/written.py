"""Written examples: questions with answers whose nature is known, since they were written to have it.

They were written by this project's developers for this purpose: nobody said them, and no model was asked. The training
half is for vectors, training sets and judges that are fitted; the judging half measures judges, and nothing is ever
fitted on it.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, TypeAlias

from persona_lens.checking import checked
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.traits.reading import read_text

Half: TypeAlias = Literal["training", "judging"]
Kind: TypeAlias = Literal["ordinary", "mild", "overt", "opposite", "style"]

_FOLDER = files("persona_lens.traits") / "examples"


@checked
@dataclass(frozen=True)
class WrittenExample:
    """A question with answers that show a trait not at all, a little, plainly, and the other way round.

    ``ordinary``, ``mild`` and ``overt`` are the paper's levels normal, I and II.

    Args:
        question: What a user says.
        ordinary: An ordinary answer, as fluent and as long as the overt one.
        mild: Shows the trait a little.
        overt: Shows it plainly.
        opposite: Shows its opposite.
        style: Has what the trait often looks like, without the trait: theatrical and kind, enthusiastic and honest.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 4.1.
    """

    question: str
    ordinary: str
    mild: str
    overt: str
    opposite: str
    style: str


@checked
def list_written_traits() -> tuple[str, ...]:
    """Return the traits that written examples are bundled for.

    Example:
        >>> "evil" in list_written_traits()
        True
    """
    return tuple(sorted(file.name.removesuffix(".jsonl") for file in _FOLDER.iterdir()))


@checked
def load_written_examples(trait: str | Path, half: Half) -> tuple[WrittenExample, ...]:
    """Load one half of a trait's written examples.

    Args:
        trait: One of :func:`list_written_traits`, or the path of a JSONL file of one's own whose rows have the fields
            of :class:`WrittenExample` and ``half``.
        half: ``training`` for whatever is fitted, ``judging`` for what measures judges. They share no question.

    Returns:
        The examples, in the file's order.

    Raises:
        InvalidArgumentError: No such trait, or another half.
        FileNotFoundError: No such file.
        FileFormatError: A row that is no example (the message names its line), or no row of that half.

    Example:
        >>> examples = load_written_examples("evil", "judging")
        >>> len(examples)
        40
    """
    if half not in ("training", "judging"):
        raise InvalidArgumentError.of("half", "be 'training' or 'judging'", half)
    if isinstance(trait, Path) or trait.endswith(".jsonl"):
        if not Path(trait).is_file():
            raise FileNotFoundError(f"`trait` must name an existing file. Got {str(trait)!r}.")
        return _read(Path(trait), half)
    if trait not in list_written_traits():
        near = difflib.get_close_matches(trait, list_written_traits(), n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        hint += "The path of a .jsonl file reads one of your own."
        raise InvalidArgumentError.of("trait", f"be one of {', '.join(list_written_traits())}", trait, hint)
    with as_file(_FOLDER / f"{trait}.jsonl") as path:
        return _read(path, half)


def _read(path: Path, half: Half) -> tuple[WrittenExample, ...]:
    names = [field.name for field in fields(WrittenExample)]
    examples = []
    # Not `splitlines`, which also cuts at characters that may stand in a text.
    for number, line in enumerate(read_text(path, FileFormatError).removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{path}, line {number}, must be JSON. Got {line[:60]!r}: {error}.") from error
        is_whole = isinstance(row, dict) and set(row) == {*names, "half"}
        if not is_whole or not all(isinstance(text, str) and text.strip() for text in row.values()):
            raise FileFormatError(f"{path}, line {number}, must have the texts {[*names, 'half']}. Got {line[:60]!r}.")
        if row["half"] not in ("training", "judging"):
            raise FileFormatError(
                f"{path}, line {number}: `half` must be 'training' or 'judging'. Got {row['half']!r}."
            )
        if row.pop("half") == half:
            examples.append(WrittenExample(**row))
    if not examples:
        raise FileFormatError(f"{path} must hold examples of each half. Got none with 'half': {half!r}.")
    return tuple(examples)
