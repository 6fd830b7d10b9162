"""Checksums of content, so that what is read is what was written; of JSON, tensors, files and folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["FOLDER_RECORD", "hash_file", "hash_json", "hash_tensors", "is_whole", "list_changed", "seal_folder"]

FOLDER_RECORD = "sha256.json"
"""What :func:`seal_folder` writes into a folder: the SHA-256 of each of its files, by name."""


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(content: Any) -> str:
    """Return the SHA-256 of what JSON keeps of a content, however it is laid out and its keys are ordered.

    Example:
        >>> hash_json({"a": (1, 2), "b": 0.1}) == hash_json({"b": 0.1, "a": [1, 2]})
        True
    """
    # Keys become texts before they are sorted, as 9 and 10 would have another order than "9" and "10".
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, in any memory order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().reshape(-1)
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def seal_folder(folder: Path) -> None:
    """Write the SHA-256 of each of a folder's files into it; done last, it says that the folder is finished."""
    hashes = {path.name: hash_file(path) for path in _list_files(folder)}
    (folder / FOLDER_RECORD).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Whether a folder holds the files that were there when it was sealed, unchanged, and no other."""
    try:
        hashes = json.loads((folder / FOLDER_RECORD).read_text(encoding="utf-8"))
        names = {path.name for path in _list_files(folder)}
    except (OSError, ValueError, RecursionError):  # no record, no text, no JSON, or one nested without end
        return False
    # The names are those that were found, so that a damaged record leads to no file outside of the folder.
    return isinstance(hashes, dict) and hashes.keys() == names != set() and not list_changed(folder, hashes)


def list_changed(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    """Return the names of the files that are not in a folder, or not with their hash."""
    return [name for name, digest in hashes.items() if not _has_hash(folder, name, digest)]


def _has_hash(folder: Path, name: str, digest: str) -> bool:
    path = folder / name
    try:
        return path.parent == folder and path.is_file() and hash_file(path) == digest
    except (OSError, ValueError):  # gone meanwhile, or a name that no file can have
        return False


def _list_files(folder: Path) -> list[Path]:
    """List what is in a folder, but for its record and what the system hides there (.DS_Store and the like)."""
    return sorted(path for path in folder.iterdir() if path.name != FOLDER_RECORD and not path.name.startswith("."))
