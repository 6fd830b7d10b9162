"""A screening's files, each with a checksum of its content: what is damaged is never taken for scores.

A shard is a stream of Arrow with the checksum behind its end, which Arrow does not read, so that it can still be mapped
into memory. It is checked before Arrow sees it: of a damaged one, Arrow may read other numbers or end the process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from persona_lens.checksums import hash_json
from persona_lens.files import write_bytes_atomically, write_json

RECORD = "screening.json"
SCORED = "scored"
"""Status of a row that was scored."""
_SHARDS = "shards"
_CHECKSUM = "sha256"
_N_END = len("sha256:") + 64  # bytes behind a shard's stream


def shard_path(folder: Path, index: int) -> Path:
    """Return where a shard of a screening lies."""
    return folder / _SHARDS / f"{index:08d}.arrow"


def list_shards(folder: Path) -> list[Path]:
    """Return a screening's shards in order; not the caches that `datasets` puts beside them."""
    return sorted((folder / _SHARDS).glob(f"{'[0-9]' * 8}.arrow"))


def write_shard(path: Path, table: pa.Table, mark: str) -> None:
    """Write a shard so that a reader sees all of it or none, with the mark of its rows and a checksum."""
    sink = pa.BufferOutputStream()
    marked = table.replace_schema_metadata({"rows": mark})
    with pa.ipc.new_stream(sink, marked.schema) as writer:  # the stream form, which datasets maps into memory
        writer.write_table(marked)
    stream = sink.getvalue().to_pybytes()
    write_bytes_atomically(path, stream + _seal(stream))


def read_shard(path: Path, mark: str) -> pa.Table | None:
    """Return a finished shard; None if it is missing, damaged or of other rows."""
    stream = _read_stream(path)
    if stream is None or _read_mark(stream) != mark:
        return None
    return pa.ipc.open_stream(stream).read_all()


def read_mark(path: Path) -> str | None:
    """Return the mark of a shard's rows; None if the shard is missing or damaged."""
    stream = _read_stream(path)
    return None if stream is None else _read_mark(stream)


def find_checksum(path: Path) -> str | None:
    """Return a shard's checksum; None if the shard is missing or damaged."""
    stream = _read_stream(path)
    return None if stream is None else hashlib.sha256(stream).hexdigest()


def _read_stream(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    content = path.read_bytes()
    stream, end = content[:-_N_END], content[-_N_END:]
    return stream if end == _seal(stream) else None


def _read_mark(stream: bytes) -> str:
    metadata: dict[bytes, bytes] = pa.ipc.open_stream(stream).schema.metadata or {}
    return metadata.get(b"rows", b"").decode()


def _seal(stream: bytes) -> bytes:
    return b"sha256:" + hashlib.sha256(stream).hexdigest().encode()


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Write what a screening is, with a checksum."""
    write_json(folder / RECORD, {**content, _CHECKSUM: hash_json(content)})


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what :func:`write_record` wrote; None if it is damaged."""
    try:
        content: dict[str, Any] = json.loads((folder / RECORD).read_bytes())
        return content if content.pop(_CHECKSUM) == hash_json(content) else None
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
