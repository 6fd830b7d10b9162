"""``.pt`` files from strangers: tensors and plain values alone, bounded, or refused by name."""

from __future__ import annotations

import re
import threading
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_lens.checksums import hash_file
from persona_lens.errors import FileFormatError
from persona_lens.files import write_bytes_atomically

MAX_BYTES = 2**30
"""The largest file that is read: a vector of 126 layers of width 16384 has 8 MiB in float32."""
# Which classes a file may hold is told to all of the process: a thread that reads another file meanwhile waits.
_READING = threading.Lock()
MAX_ROWS, _MAX_WIDTH = 1024, 2**17


def load_torch_file(path: Path, stand_ins: Sequence[tuple[type, str]] = ()) -> Any:
    """Read a file that ``torch.save`` wrote, of tensors and plain values.

    Args:
        path: The file.
        stand_ins: Classes that take the place of others' in it, with the names of those; they only hold what is there.

    Raises:
        FileNotFoundError: No such file.
        FileFormatError: A truncated, damaged or compressed file, or one that holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`path` must name an existing file. Got {str(path)!r}.")
    if path.stat().st_size > MAX_BYTES:
        raise refuse(path, f"be at most {MAX_BYTES // 2**20} MiB long", f"{path.stat().st_size / 2**20:.0f} MiB")
    data = path.read_bytes()
    _check_entries(path, data)
    try:
        # A stand-in is known to this call alone; nothing of the other program is imported.
        with _READING, torch.serialization.safe_globals(list(stand_ins)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old files' storages
            return torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes made of the reader; it runs none of them
        held = re.search(r"GLOBAL (\S+)", str(error))
        got = f"one that holds {held[1]}" if held else f"one that cannot be read ({type(error).__name__})"
        hint = "Pickled objects can run code when they are read, and are never read here." if held else ""
        raise refuse(path, "hold tensors and plain values alone, saved whole by torch.save", got, hint) from error


def _check_entries(path: Path, data: bytes) -> None:
    """Refuse compressed entries, which torch never writes: a few bytes of them can fill the memory."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
            length = sum(one.file_size for one in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        if data[:4] == b"PK\x03\x04":  # which torch might still unpack
            raise refuse(path, "be as torch.save writes it", f"a damaged archive ({type(error).__name__})") from error
        return  # torch says what is wrong with it; files of before 2020 are none
    if packed or length > len(data):
        raise refuse(path, "be as torch.save writes it", f"compressed or overlapping entries {packed[:3]}")


def read_rows(path: Path, value: Any, what: str) -> Tensor:
    """Return a matrix of one row a layer as float32, finite.

    Raises:
        FileFormatError: No floating-point matrix, one out of all proportion, or one with NaN or infinity.
    """
    if not isinstance(value, Tensor) or value.ndim != 2 or not value.is_floating_point():
        raise refuse(path, f"hold {what}, a floating-point matrix [layer, d_model]", describe(value))
    return _check(path, value, what)


def read_row(path: Path, value: Any, what: str) -> Tensor:
    """Return one direction as float32, finite; errors as for :func:`read_rows`."""
    if isinstance(value, Tensor) and value.ndim == 2 and 1 in value.shape and value.shape != (1, 1):
        value = value.reshape(-1)  # as [1, d_model]
    if not isinstance(value, Tensor) or value.ndim != 1 or not value.is_floating_point():
        raise refuse(path, f"hold {what}, a floating-point vector [d_model]", describe(value))
    return _check(path, value, what)


def _check(path: Path, value: Tensor, what: str) -> Tensor:
    # Before anything is copied: a tensor of few bytes can claim any shape by its strides.
    if value.layout is not torch.strided or value.device.type != "cpu" or 0 in value.shape:
        raise refuse(path, f"hold {what}, an ordinary tensor", describe(value))
    if value.shape[-1] > _MAX_WIDTH or value.numel() > MAX_ROWS * _MAX_WIDTH or len(value) > _MAX_WIDTH:
        raise refuse(path, f"hold {what} of at most {MAX_ROWS} layers of width {_MAX_WIDTH}", describe(value))
    found = value.detach().float().contiguous().clone()
    if not bool(torch.isfinite(found).all()):
        raise refuse(path, f"hold {what} of finite numbers", "NaN or infinity in it", "Make it again, in float32.")
    return found


def split_rows(rows: Tensor) -> dict[int, Tensor]:
    """Return a matrix's rows by index; a row of zeros says that there is no direction, and is left out."""
    return {layer: row.clone() for layer, row in enumerate(rows) if bool(row.any())}


def save_torch_file(path: Path, content: Any) -> None:
    """Write tensors and plain values as ``torch.save`` does, all of it or nothing."""
    buffer = BytesIO()
    torch.save(content, buffer)
    write_bytes_atomically(path, buffer.getvalue())


def name_origin(program: str, path: Path) -> dict[str, Any]:
    """Return what a vector's provenance says of the file that it was read from."""
    return {"read_from": {"format": program, "file": path.name, "sha256": hash_file(path)}}


def refuse(path: Path, rule: str, got: str, hint: str = "") -> FileFormatError:
    """Return the one error that every file which is not what it should be becomes."""
    return FileFormatError(f"`{path}` must {rule}. Got {got}.{' ' + hint if hint else ''}")


def describe(value: Any) -> str:
    """Return what a value is, in few words."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {[str(key)[:40] for key in list(value)[:6]]}"
    return f"{type(value).__name__}"
