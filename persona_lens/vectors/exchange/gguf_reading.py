"""GGUF files from strangers: every length is checked against the file's before anything is read or made of it.

The package ``gguf`` writes ours. Its reader trusts a file's lengths: one that claims an array of 2**60 entries keeps it
busy for ever, so that what strangers send is read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona_lens.errors import FileFormatError
from persona_lens.vectors.exchange.torch_files import MAX_BYTES, refuse

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TENSOR_TYPES: dict[int, Any] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class GGUFFile:
    """What a GGUF file of float tensors holds.

    Args:
        fields: Metadata by key; an array of numbers is a NumPy array.
        tensors: By name, without dimensions of length one.
    """

    fields: dict[str, Any]
    tensors: dict[str, np.ndarray]


class _Cursor:
    """Walks through bytes, never past their end."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > len(self.data) - self.at:
            raise self.fail(
                f"one that ends at byte {len(self.data)}, before {n_bytes} more that byte {self.at} is to have"
            )
        taken = self.data[self.at : self.at + n_bytes]
        self.at += n_bytes
        return taken

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"a text that is no UTF-8, before byte {self.at}") from error

    def fail(self, got: str) -> FileFormatError:
        return refuse(self.path, "be a whole GGUF file", got, "It may have been cut off while it was copied.")


def read_gguf(path: Path) -> GGUFFile:
    """Read a GGUF file of versions 2 and 3 whose tensors are float32 or float16.

    Raises:
        FileNotFoundError: No such file.
        FileFormatError: A truncated, damaged or big-endian file, another version, or a tensor of another type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`path` must name an existing file. Got {str(path)!r}.")
    if path.stat().st_size > MAX_BYTES:
        rule, got = f"be at most {MAX_BYTES // 2**20} MiB long", f"{path.stat().st_size / 2**20:.0f} MiB"
        raise refuse(path, rule, got, "Is it a model's?")
    cursor = _Cursor(path, path.read_bytes())
    if cursor.take(4) != b"GGUF":
        raise cursor.fail("one that does not begin with GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        got = "big-endian" if swapped in (2, 3) else f"version {version}"
        raise refuse(path, "be GGUF of version 2 or 3, little-endian", got)
    n_tensors, n_fields = cursor.number("Q"), cursor.number("Q")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):  # each takes bytes of its own, so that the file's end ends this
        key = cursor.text()
        if key in fields:
            raise cursor.fail(f"the key {key!r:.80} twice")
        fields[key] = _read_value(cursor, cursor.number("I"))
    heads = dict(_read_heads(cursor, n_tensors))
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"alignment {alignment!r:.40}")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, np.ndarray] = {}
    n_bytes = 0
    for name, (at, kind, shape) in heads.items():
        tensors[name] = _read_tensor(cursor, start + at, kind, shape)
        n_bytes += tensors[name].nbytes
        if n_bytes > len(cursor.data):
            raise cursor.fail("tensors that overlap")
    return GGUFFile(fields, tensors)


def _read_value(cursor: _Cursor, kind: int) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind == _ARRAY:
        inner, length = cursor.number("I"), cursor.number("Q")
        if inner == _STRING:
            return [cursor.text() for _ in range(length)]
        if inner in _SCALARS:
            dtype = np.dtype(_SCALARS[inner]).newbyteorder("<")
            return np.frombuffer(cursor.take(length * dtype.itemsize), dtype)
    raise cursor.fail(f"a field of unknown type {kind}")


def _read_heads(cursor: _Cursor, n_tensors: int) -> Iterator[tuple[str, tuple[int, int, tuple[int, ...]]]]:
    seen = set()
    for _ in range(n_tensors):
        name = cursor.text()
        if name in seen:
            raise cursor.fail(f"the tensor {name!r:.80} twice")
        seen.add(name)
        n_dimensions = cursor.number("I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise cursor.fail(f"a tensor of {n_dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(n_dimensions))
        if 0 in shape:
            raise cursor.fail(f"a tensor of shape {shape}")
        kind, offset = cursor.number("I"), cursor.number("Q")
        yield name, (offset, kind, shape)


def _read_tensor(cursor: _Cursor, start: int, kind: int, shape: tuple[int, ...]) -> np.ndarray:
    if kind not in _TENSOR_TYPES:
        rule = "hold float32 or float16 tensors"
        raise refuse(cursor.path, rule, f"one of GGML type {kind}", "Quantised directions are not read.")
    dtype, length = _TENSOR_TYPES[kind], 1
    for size in shape:
        length *= size
    if start > len(cursor.data):
        raise cursor.fail(f"a tensor at byte {start} of {len(cursor.data)}")
    cursor.at = start
    flat = np.frombuffer(cursor.take(length * dtype.itemsize), dtype)
    return flat.reshape([size for size in reversed(shape) if size != 1] or [1])
