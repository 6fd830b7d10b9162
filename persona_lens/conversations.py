"""Conversations to train on or to screen, read row by row: a bad row is named and counted, never lost in silence.

Whatever the source, no more than a few hundred rows are in memory at a time.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.models.text.chat import Message

__all__ = ["BadRow", "Conversation", "read_conversations", "resolve_source"]

_FILE_TYPES = (".jsonl", ".ndjson", ".json", ".parquet")
_COMPRESSIONS = (".gz", ".zst")  # of files with one row a line
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_N_BYTES = 1 << 16  # read at a time
_N_ROWS = 256  # of a Parquet file, at a time
_N_SHOWN = 200  # characters of a bad row

# The column of the messages, with the names of a message's role and text, and what each role is to us.
_OPENAI = ("role", "content", {role: role for role in ("system", "user", "assistant")})
_FORMATS = {
    "messages": _OPENAI,
    "conversations": ("from", "value", {"system": "system", "human": "user", "gpt": "assistant"}),
    "conversation": _OPENAI,  # LMSYS-Chat-1M and WildChat
}


@dataclass(frozen=True)
class Conversation:
    """A row that can be trained on: perhaps a system message, then user and assistant in turn, ending with an answer.

    Args:
        place: Where it stands in the source, for a person to look it up: ``"line 12"`` or ``"row 12"``, from 1.
        index: Number of the row in the source, from 0; bad rows count, blank lines do not.
        messages: Its messages, the last one the assistant's and not empty.
        n_cut_turns: User turns that came after the last answer and were cut, as nothing answers them.
    """

    place: str
    index: int
    messages: tuple[Message, ...]
    n_cut_turns: int = 0


@dataclass(frozen=True)
class BadRow:
    """A row that is no conversation to train on.

    Args:
        place: Where it stands in the source: ``"line 12"`` or ``"row 12"``, from 1.
        index: Number of the row in the source, from 0.
        reason: One of: ``"not UTF-8"`` (or half a surrogate pair), ``"not JSON"``, ``"wrong type"``,
            ``"no messages"``, ``"missing key"``, ``"unknown role"``, ``"system not first"``, ``"no response"``,
            ``"begins with the assistant"``, ``"turns do not alternate"``, ``"empty response"``; and, where nothing
            more can be read, ``"cut off"`` or ``"damaged file"``.
        detail: What came, cut to 200 characters.
    """

    place: str
    index: int
    reason: str
    detail: str


def read_conversations(
    source: str | Path | datasets.Dataset | datasets.IterableDataset | Iterable[Any],
    *,
    split: str = "train",
    subset: str | None = None,
) -> Iterator[Conversation | BadRow]:
    """Read conversations one after another; every row comes out, as a conversation or as a bad row.

    A row has ``messages`` or ``conversation`` (a list of ``role`` and ``content``) or ShareGPT's ``conversations`` (a
    list of ``from`` and ``value``); its other columns are ignored. A file that breaks off gives the rows before, then
    one bad row.

    Args:
        source: Path of a ``.jsonl`` or ``.ndjson`` file (also ``.gz`` or ``.zst``), a ``.json`` list or a Parquet
            file; a dataset of the library `datasets`; an iterable of rows; or the name of a dataset of the Hub, which
            is streamed.
        split: Split of a dataset of the Hub.
        subset: Subset (configuration) of a dataset of the Hub.

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
    places = _open_source(source, split, subset)
    return (_read_row(place, index, row) for index, (place, row) in enumerate(places))


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


def count_reasons(bad: Iterable[BadRow]) -> dict[str, int]:
    """Count bad rows by reason, the most frequent first.

    Example:
        >>> rows = read_conversations([{"text": "Hi"}, 5, {"messages": []}])
        >>> count_reasons(row for row in rows if isinstance(row, BadRow))
        {'no messages': 2, 'wrong type': 1}
    """
    return dict(Counter(row.reason for row in bad).most_common())


class _Refusal(Exception):
    """A reason and what came; never leaves this module, where it becomes a bad row."""


# Sources: each gives places and rows, or a refusal in a row's stead ---------------------------------------------


def _open_source(source: Any, split: str, subset: str | None) -> Iterator[tuple[str, Any]]:
    if isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        return _number_rows(source.with_format(None))
    if isinstance(source, Mapping):
        hint = "Pass one split, such as source['train']."
        raise InvalidArgumentError.of("source", "be rows of one split", list(source), hint)
    if not isinstance(source, (str, Path)):
        return _number_rows(source)
    found = resolve_source(source, split=split, subset=subset)
    return _open_file(Path(found)) if isinstance(found, (str, Path)) else _number_rows(found)


def _open_file(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(f"`source` must name an existing file. Got {str(path)!r}.")
    kind = _file_type(path)
    if not path.is_file() or not kind:
        rule = f"be a file of type {', '.join(_FILE_TYPES)}, or lines of JSON with {' or '.join(_COMPRESSIONS)}"
        hint = "Load a saved dataset with datasets.load_from_disk."
        raise InvalidArgumentError.of("source", rule, str(path), hint)
    if kind == ".parquet":
        try:
            pq.read_metadata(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise FileFormatError(f"`source` must be a whole Parquet file. Got {str(path)!r}: {error}") from error
        return _number_rows(_until_damage(_read_parquet(path)))
    if kind == ".json":
        _check_list(path)
        return _number_rows(_until_damage(_read_list(path)))
    return _read_lines(path)


def _file_type(path: Path) -> str:
    """Return the file type without compression; empty if we do not read it."""
    packed = path.suffix in _COMPRESSIONS
    kind = path.with_suffix("").suffix if packed else path.suffix
    return kind if kind in (_FILE_TYPES[:2] if packed else _FILE_TYPES) else ""


def _number_rows(rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_until_damage(_split_lines(_read_chunks(path))), start=1):
        if isinstance(line, _Refusal):
            yield f"line {number}", line
            continue
        line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line  # some editors begin UTF-8 with a mark
        if line.strip():
            yield f"line {number}", _parse_line(line)


def _parse_line(line: bytes) -> Any:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return _Refusal("not UTF-8", line.decode("utf-8", errors="backslashreplace"))
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of too many digits, and brackets too deep
        return _Refusal("not JSON", text)


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split at newlines alone: `str.splitlines` would also split at U+2028 and others, which JSON allows in texts."""
    parts: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        if rest:
            yield b"".join(parts)
            yield from rest[:-1]
            parts = [rest[-1]]
    yield b"".join(parts)


def _read_chunks(path: Path) -> Iterator[bytes]:
    if path.suffix == ".zst":
        yield from _read_zstd(path)
        return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while chunk := file.read1(_N_BYTES):
            yield chunk


def _read_zstd(path: Path) -> Iterator[bytes]:
    n_chunks = 0
    try:
        with pa.input_stream(str(path), compression="zstd") as file:
            while chunk := file.read(_N_BYTES):
                yield chunk
                n_chunks += 1
    except OSError:
        # Arrow drops what it had decompressed in the call that failed. Get that far again, then byte by byte.
        rest = bytearray()
        with pa.input_stream(str(path), compression="zstd") as file:
            for _ in range(n_chunks):
                file.read(_N_BYTES)
            try:
                while byte := file.read(1):
                    rest += byte
            except OSError:
                yield bytes(rest)
        raise


def _read_list(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        n_mark = len(_BYTE_ORDER_MARK) if file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK else 0
        file.seek(n_mark)
        yield from ijson.items(file, "item", use_float=True)


def _check_list(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(_N_BYTES).removeprefix(_BYTE_ORDER_MARK).lstrip()[:20]
    if not begin.startswith(b"["):
        hint = "Name a file with one row a line .jsonl."
        raise FileFormatError(
            f"`source` must be a JSON list of rows. Got {str(path)!r}, which begins {begin!r}. {hint}"
        )


def _read_parquet(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        columns = [column for column in _FORMATS if column in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=_N_ROWS, columns=columns or None):
            yield from _to_rows(batch)


def _to_rows(batch: pa.RecordBatch) -> list[Any]:
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [_Refusal("not UTF-8", error.object.decode("utf-8", errors="backslashreplace"))]
        return [row for i in range(batch.num_rows) for row in _to_rows(batch.slice(i, 1))]


def _until_damage(rows: Iterable[Any]) -> Iterator[Any]:
    """Yield rows; where the file is cut off or damaged, a refusal and no more."""
    try:
        yield from rows
    except (EOFError, zlib.error, pa.ArrowInvalid, ijson.JSONError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's or the network's, not the file's
        is_cut = isinstance(error, EOFError) or any(sign in str(error) for sign in ("Truncated", "premature EOF"))
        yield _Refusal("cut off" if is_cut else "damaged file", str(error))


# Rows -----------------------------------------------------------------------------------------------------------


def _read_row(place: str, index: int, row: object) -> Conversation | BadRow:
    try:
        messages = _read_messages(row)
        n_kept = _check_turns(messages)
    except _Refusal as refusal:
        reason, got = refusal.args
        detail = got if isinstance(got, str) else repr(got)
        # Half a surrogate pair would not be written anywhere.
        shown = detail[:_N_SHOWN].encode("utf-8", errors="backslashreplace").decode("utf-8")
        return BadRow(place, index, reason, shown)
    return Conversation(place, index, tuple(messages[:n_kept]), len(messages) - n_kept)


def _read_messages(row: object) -> list[Message]:
    if isinstance(row, _Refusal):
        raise row
    if not isinstance(row, Mapping):
        raise _Refusal("wrong type", row)
    # A table has both columns where rows of both kinds were put together, one of them None.
    column = next((column for column in _FORMATS if row.get(column) is not None), None)
    if column is None:
        raise _Refusal("no messages", row)
    turns = row[column]
    if not isinstance(turns, (list, tuple)):
        raise _Refusal("wrong type", turns)
    if not turns:
        raise _Refusal("no messages", row)
    return [_read_turn(turn, *_FORMATS[column]) for turn in turns]


def _read_turn(turn: object, role_key: str, text_key: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(turn, Mapping):
        raise _Refusal("wrong type", turn)
    if role_key not in turn or text_key not in turn:
        raise _Refusal("missing key", turn)
    role, text = turn[role_key], turn[text_key]
    if isinstance(text, (list, tuple)) and all(_is_text_part(part) for part in text):
        text = "".join(part["text"] for part in text)
    if not isinstance(role, str) or not isinstance(text, str):
        raise _Refusal("wrong type", turn)
    if role not in roles:
        raise _Refusal("unknown role", turn)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can escape half a surrogate pair, which no tokenizer takes
        raise _Refusal("not UTF-8", ascii(turn)) from None
    return {"role": roles[role], "content": text}


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_turns(messages: Sequence[Message]) -> int:
    """Return how many messages to keep, which is up to the last answer."""
    roles = [message["role"] for message in messages]
    first = int(roles[0] == "system")
    if "system" in roles[first:]:
        raise _Refusal("system not first", messages)
    if "assistant" not in roles:
        raise _Refusal("no response", messages)
    if roles[first] == "assistant":
        raise _Refusal("begins with the assistant", messages)
    n_kept = len(roles) - roles[::-1].index("assistant")
    if "assistant" in roles[first:n_kept:2] or "user" in roles[first + 1 : n_kept : 2]:
        raise _Refusal("turns do not alternate", messages)
    if not messages[n_kept - 1]["content"].strip():
        raise _Refusal("empty response", messages)
    return n_kept
