"""Where conversations come from: files, datasets, the Hub, iterables."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from persona_lens.checking import checked
from persona_lens.conversations.chunks import COMPRESSIONS, N_BYTES, read_chunks
from persona_lens.conversations.json_rows import parse_row, split_lines, split_list
from persona_lens.conversations.limits import ReadLimits
from persona_lens.conversations.parquet import check_parquet, read_parquet
from persona_lens.conversations.rows import FORMATS, BadRow, Conversation, Refusal, read_row
from persona_lens.errors import FileFormatError, InvalidArgumentError

_FILE_TYPES = (".jsonl", ".ndjson", ".json", ".parquet")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@checked
def read_conversations(
    source: str | Path | datasets.Dataset | datasets.IterableDataset | Iterable[Any],
    *,
    split: str = "train",
    subset: str | None = None,
    limits: ReadLimits = ReadLimits(),
) -> Iterator[Conversation | BadRow]:
    """Read conversations one after another; every row comes out, as a conversation or as a bad row.

    A row has ``messages`` or ``conversation`` (a list of ``role`` and ``content``) or ShareGPT's ``conversations`` (a
    list of ``from`` and ``value``); its other columns are ignored. A file that breaks off gives the rows before, then
    one bad row whose reason is in ``UNREAD``. Of a JSON list the rows after a bad one are read as long as it is certain
    where a row ends; a plain file of lines that was cut off between two of them cannot be told from a whole one.

    Args:
        source: Path of a ``.jsonl`` or ``.ndjson`` file (also ``.gz`` or ``.zst``), a ``.json`` list or a Parquet
            file; a dataset of the library `datasets`; an iterable of rows; or the name of a dataset of the Hub, which
            is streamed.
        split: Split of a dataset of the Hub.
        subset: Subset (configuration) of a dataset of the Hub.
        limits: What a file may ask of this machine.

    Returns:
        An iterator that reads as it goes.

    Raises:
        FileNotFoundError: No such file. Like the next two, it is raised at once, not at the first row.
        InvalidArgumentError: A file of unknown type, several splits, or a dataset that the Hub does not give.
        FileFormatError: A Parquet file without a readable footer, or a ``.json`` file that is no list.

    Example:
        >>> answered = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
        >>> asked = {"conversations": [{"from": "human", "value": "Hi"}]}
        >>> for row in read_conversations([answered, asked]):
        ...     print(type(row).__name__, row.place, getattr(row, "reason", ""))
        Conversation row 1
        BadRow row 2 no response
    """
    places = _open_source(source, split, subset, limits)
    return (read_row(place, index, row) for index, (place, row) in enumerate(places))


@checked
def resolve_source(
    source: str | Path, *, split: str = "train", subset: str | None = None
) -> str | Path | datasets.IterableDataset:
    """Return a file's path as it is, and a dataset of the Hub as a stream that can be read more than once.

    The arguments are those of :func:`read_conversations`.

    Raises:
        InvalidArgumentError: A dataset that the Hub does not give.

    Example:
        >>> resolve_source("rows.jsonl")
        'rows.jsonl'
    """
    path = Path(source)
    if path.exists() or isinstance(source, Path) or _file_type(path) or not _HUB_NAME.fullmatch(source):
        return source
    try:
        return datasets.load_dataset(source, subset, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # no network or no such name; split or subset; a script
        rule = f"be a file, or a dataset of the Hub with subset {subset!r} and split {split!r}"
        hint = f"Check the name and the network, or pass a file. {error}"
        raise InvalidArgumentError.of("source", rule, source, hint) from error


def _open_source(source: Any, split: str, subset: str | None, limits: ReadLimits) -> Iterator[tuple[str, Any]]:
    if isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        return _number_rows(source.with_format(None))
    if isinstance(source, Mapping):
        hint = "Pass one split, such as source['train']."
        raise InvalidArgumentError.of("source", "be rows of one split", list(source), hint)
    if not isinstance(source, (str, Path)):
        return _number_rows(source)
    found = resolve_source(source, split=split, subset=subset)
    return _open_file(Path(found), limits) if isinstance(found, (str, Path)) else _number_rows(found)


def _open_file(path: Path, limits: ReadLimits) -> Iterator[tuple[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(f"`source` must name an existing file. Got {str(path)!r}.")
    kind = _file_type(path)
    if not path.is_file() or not kind:
        rule = f"be a file of type {', '.join(_FILE_TYPES)}, or lines of JSON with {' or '.join(COMPRESSIONS)}"
        hint = "Load a saved dataset with datasets.load_from_disk."
        raise InvalidArgumentError.of("source", rule, str(path), hint)
    if kind == ".parquet":
        check_parquet(path)
        return _number_rows(_until_damage(read_parquet(path, tuple(FORMATS), limits)))
    if kind == ".json":
        _check_list(path)
        return _number_rows(_until_damage(_read_list(path, limits)))
    return _read_lines(path, limits)


def _file_type(path: Path) -> str:
    """Return the file type without compression; empty if we do not read it."""
    packed = path.suffix in COMPRESSIONS
    kind = path.with_suffix("").suffix if packed else path.suffix
    return kind if kind in (_FILE_TYPES[:2] if packed else _FILE_TYPES) else ""


def _number_rows(rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _read_lines(path: Path, limits: ReadLimits) -> Iterator[tuple[str, Any]]:
    lines = split_lines(read_chunks(path, limits), limits)
    for number, line in enumerate(_until_damage(lines), start=1):
        if isinstance(line, Refusal):
            yield f"line {number}", line
            continue
        line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line  # some editors begin UTF-8 with a mark
        if not line.strip():
            continue
        row = parse_row(line, limits)
        if isinstance(row, Refusal) and not line.endswith(b"\n"):
            row = Refusal("cut off", f"in a last line without end, {row.args[0]}: {row.args[1]}")
        yield f"line {number}", row


def _read_list(path: Path, limits: ReadLimits) -> Iterator[Any]:
    chunks = read_chunks(path, limits)
    first = next(chunks, b"").removeprefix(_BYTE_ORDER_MARK)
    for row in split_list(itertools.chain([first], chunks), limits):
        yield row if isinstance(row, Refusal) else parse_row(row.strip(), limits)


def _check_list(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(N_BYTES).removeprefix(_BYTE_ORDER_MARK).lstrip()[:20]
    if not begin.startswith(b"["):
        hint = "Name a file with one row a line .jsonl."
        raise FileFormatError(
            f"`source` must be a JSON list of rows. Got {str(path)!r}, which begins {begin!r}. {hint}"
        )


def _until_damage(rows: Iterable[Any]) -> Iterator[Any]:
    """Yield rows; where the file is cut off or damaged, a refusal and no more."""
    try:
        yield from rows
    except Refusal as refusal:
        yield refusal
    except (EOFError, zlib.error, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's or the network's, not the file's
        is_cut = isinstance(error, EOFError) or "Truncated" in str(error)
        yield Refusal("cut off" if is_cut else "damaged file", str(error))
