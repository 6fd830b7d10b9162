"""A file's bytes, decompressed, some at a time."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from persona_lens.conversations.limits import ReadLimits
from persona_lens.conversations.rows import Refusal

COMPRESSIONS = (".gz", ".zst")
N_BYTES = 1 << 16  # read at a time
_N_HARMLESS = 1 << 26  # bytes that no one need fear, however small the file was


def read_chunks(path: Path, limits: ReadLimits) -> Iterator[bytes]:
    """Yield a file's bytes, decompressed as its name says.

    Raises:
        Refusal: It holds more than its size allows.
        EOFError, OSError, zlib.error: A compressed file is cut off or damaged.
    """
    if path.suffix not in COMPRESSIONS:
        with path.open("rb") as file:
            while chunk := file.read(N_BYTES):
                yield chunk
        return
    most = max(_N_HARMLESS, limits.max_ratio * path.stat().st_size)
    n_read = 0
    for chunk in _read_zstd(path) if path.suffix == ".zst" else _read_gzip(path):
        n_read += len(chunk)
        if n_read > most:
            raise Refusal("compressed too far", f"more than {most} bytes, {limits.max_ratio} times the file's size")
        yield chunk


def _read_gzip(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as file:
        while chunk := file.read1(N_BYTES):
            yield chunk


def _read_zstd(path: Path) -> Iterator[bytes]:
    n_chunks = 0
    try:
        with pa.input_stream(str(path), compression="zstd") as file:
            while chunk := file.read(N_BYTES):
                yield chunk
                n_chunks += 1
    except OSError:
        # Arrow drops what it had decompressed in the call that failed. Get that far again, then byte by byte.
        rest = bytearray()
        with pa.input_stream(str(path), compression="zstd") as file:
            for _ in range(n_chunks):
                file.read(N_BYTES)
            try:
                while byte := file.read(1):
                    rest += byte
            except OSError:
                yield bytes(rest)
        raise
