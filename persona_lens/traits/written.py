"""Written examples: questions with answers whose nature is known, since they were written to have it.

They were written by this project's developers for this purpose: nobody said them, and no model was asked. The training
half is for vectors, training sets and judges that are fitted; the judging half measures judges, and nothing is ever
fitted on it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, TypeAlias, get_args

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

    ``ordinary``, ``mild`` and ``overt`` are the paper's levels normal, I and II. The question, ``overt`` and
    ``opposite`` are enough for a vector; what needs an answer that is not there says which of which example.

    Args:
        question: What a user says.
        ordinary: An ordinary answer, as fluent and as long as the overt one; None for none, as below.
        mild: Shows the trait a little.
        overt: Shows it plainly.
        opposite: Shows its opposite.
        style: Has what the trait often looks like, without the trait: theatrical and kind, enthusiastic and honest.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 4.1.

    Example:
        >>> WrittenExample("Hello?", overt="AHOY!", opposite="Good day.").mild is None
        True
    """

    question: str
    _: KW_ONLY
    ordinary: str | None = None
    mild: str | None = None
    overt: str
    opposite: str
    style: str | None = None


_OPTIONAL = frozenset({"ordinary", "mild", "style", "half"})


def list_texts(examples: Sequence[WrittenExample], kind: Kind) -> list[str]:
    """Return each example's answer of a kind.

    Raises:
        InvalidArgumentError: An example has none.
    """
    found = []
    for number, one in enumerate(examples, start=1):
        text: str | None = getattr(one, kind)
        if text is None:
            hint = f"Write one, as the field {kind!r} of the example; overt and opposite answers alone make a vector."
            rule = f"have a {kind!r} answer each, which is needed here"
            raise InvalidArgumentError.of("examples", rule, f"none in example {number}, {one.question!r}", hint)
        found.append(text)
    return found


def require_kinds(examples: Sequence[WrittenExample]) -> None:
    """Refuse examples that lack a kind of answer, as what makes or measures a judge does.

    Raises:
        InvalidArgumentError: One lacks one.
    """
    for kind in get_args(Kind):
        list_texts(examples, kind)


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
            of :class:`WrittenExample` and ``half``. A row may leave out ``ordinary``, ``mild`` and ``style``; one
            without ``half`` is of the training half.
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
    examples = []
    # Not `splitlines`, which also cuts at characters that may stand in a text.
    for number, line in enumerate(read_text(path, FileFormatError).removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{path}, line {number}, must be JSON. Got {line[:60]!r}: {error}.") from error
        _check_row(row, f"{path}, line {number}", line)
        if row.pop("half", "training") == half:
            examples.append(WrittenExample(**row))
    if not examples:
        hint = "" if half == "training" else " A row without `half` is of the training half."
        raise FileFormatError(f"{path} must hold examples of each half. Got none with 'half': {half!r}.{hint}")
    return tuple(examples)


def _check_row(row: object, where: str, line: str) -> None:
    """Refuse what is no example.

    Raises:
        FileFormatError: A text is missing, blank or none, or a field is unknown.
    """
    names = [*(field.name for field in fields(WrittenExample)), "half"]
    needed = [name for name in names if name not in _OPTIONAL]
    rule = f"{where}, must have the texts {needed}, and may have {[name for name in names if name in _OPTIONAL]}."
    if not isinstance(row, dict):
        raise FileFormatError(f"{rule} Got {line[:60]!r}.")
    if missing := [name for name in needed if name not in row]:
        raise FileFormatError(f"{rule} Got none of {missing} in {line[:60]!r}.")
    if unknown := [name for name in row if name not in names]:
        raise FileFormatError(f"{rule} Got {unknown} too, in {line[:60]!r}.")
    given = {name: text for name, text in row.items() if text is not None or name in needed or name == "half"}
    if bad := [name for name, text in given.items() if not (isinstance(text, str) and text.strip())]:
        raise FileFormatError(f"{rule} Got a {bad[0]!r} that is blank or no text, {row[bad[0]]!r}.")
    if row.get("half", "training") not in ("training", "judging"):
        raise FileFormatError(f"{where}: `half` must be 'training' or 'judging'. Got {row['half']!r}.")
