"""Results on disk: safetensors with JSON metadata and a checksum, written atomically; never pickle.

A :class:`ShardStore` makes long work resumable. The work is cut into shards whose rows are fixed beforehand; each
finished shard is one file, put in place by a rename. Killed at any point, the next run reads the finished shards
and computes the others exactly as an uninterrupted run would.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json, hash_tensors
from persona_lens.errors import ArgumentTypeError, FileFormatError, InvalidArgumentError
from persona_lens.files import encode_json, write_bytes_atomically, write_json

__all__ = ["Shard", "ShardStore", "collect_versions"]

# The header's one entry (safetensors keeps several in no order): a checksum, a blank, and the records as JSON.
_SEALED = "persona_lens_sealed"
_UNSEALED = "persona_lens"  # the records alone, as earlier versions wrote them


@checked
@dataclass(frozen=True, eq=False)
class Shard:
    """Tensors and JSON-able records that belong together.

    Args:
        tensors: By name.
        records: Anything that JSON holds.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    records: Any = None


def save_shard(path: Path, shard: Shard) -> None:
    """Write a shard as one safetensors file, its records as JSON in the header, with a checksum of both."""
    records = json.dumps(shard.records, ensure_ascii=False)
    # Copies: tensors that share their memory are refused, as one vector for several positions may be.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in shard.tensors.items()}
    header = {_SEALED: f"{_hash_shard(records, tensors)} {records}"}
    write_bytes_atomically(path, save(tensors, metadata=header))


def load_shard(path: Path) -> Shard:
    """Read what :func:`save_shard` wrote; a file that an earlier version wrote without a checksum is read as it is.

    Raises:
        FileNotFoundError: No such file.
        FileFormatError: A truncated, damaged or foreign file.
    """
    return _read_shard(Path(path), needs_checksum=False)


def _read_shard(path: Path, *, needs_checksum: bool) -> Shard:
    if not path.is_file():
        raise FileNotFoundError(f"`path` must name an existing file. Got {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # Copies: what was checked stays as it is, whatever becomes of the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(
            f"`path` must name a whole safetensors file. Got {str(path)!r}, which cannot be read: {error}. "
            "It may have been cut off while it was copied; get it again."
        ) from error
    if _SEALED in header:
        expected, _, records = header[_SEALED].partition(" ")
        found = _hash_shard(records, tensors)
        if found != expected:
            rule, got = f"name a file with the content that was written, checksum {expected}", f"{path} with {found}"
            raise FileFormatError.of("path", rule, got, "It is damaged; get it again.")
    elif _UNSEALED in header and not needs_checksum:
        records = header[_UNSEALED]
    else:
        rule = f"name a file that persona_lens wrote, with the entry {_SEALED!r} in its header"
        raise FileFormatError.of("path", rule, str(path))
    try:
        return Shard(tensors, json.loads(records))
    except (ValueError, RecursionError) as error:
        rule = "name a file whose records are JSON"
        raise FileFormatError.of("path", rule, str(path), f"It is damaged: {error}.") from error


def _hash_shard(records: str, tensors: Mapping[str, Tensor]) -> str:
    return hash_json([records, hash_tensors(tensors)])


@checked
class ShardStore:
    """A folder of shards of one run, named after what the run computes.

    Args:
        folder: Where runs are kept; made if missing.
        config: Everything that the results depend on. Another config is another run in another sub-folder, so
            results are never mixed.

    Example:
        >>> import tempfile
        >>> store = ShardStore(Path(tempfile.mkdtemp()), {"seed": 0})
        >>> store.load_or_compute("part-0", lambda: Shard(records=[1, 2])).records
        [1, 2]
        >>> store.load_or_compute("part-0", lambda: Shard(records="never computed again")).records
        [1, 2]
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        text = json.dumps(config, sort_keys=True, ensure_ascii=False)
        # Absolute, as another process may look for it from elsewhere.
        self.folder = Path(folder).absolute() / hashlib.sha256(text.encode()).hexdigest()[:16]
        path = self.folder / "config.json"  # for readers; the folder's name says what is in it
        if not path.is_file() or path.read_bytes() != encode_json(dict(config)):
            write_json(path, dict(config))

    def part(self, config: Mapping[str, Any]) -> ShardStore:
        """Return a store within this one, for work that depends on ``config`` too, such as one of several traits."""
        return ShardStore(self.folder, config)

    def load_or_compute(self, name: str, compute: Callable[[], Shard]) -> Shard:
        """Return the shard of that name, computing and keeping it if it is not there.

        The shard is read back even when it was just computed, so that a resumed run and an uninterrupted one go on
        from the same bytes. A file that is damaged, or has no checksum, is computed again.

        Raises:
            InvalidArgumentError: A name that would lead out of the folder, or that no file can have.
        """
        _check_name(name)
        path = self.folder / f"{name}.safetensors"
        try:
            return _read_shard(path, needs_checksum=True)
        except (FileNotFoundError, FileFormatError):
            save_shard(path, _check_shard(compute()))
        return _read_shard(path, needs_checksum=True)


def _check_shard(shard: Any) -> Shard:
    if not isinstance(shard, Shard):
        raise ArgumentTypeError.of("compute", "return a Shard", shard)
    return shard


def _check_name(name: str) -> None:
    """Refuse a shard's name that is no plain file name: ``../x`` and ``/x`` would be written outside the store."""
    if not re.fullmatch(r'[^/\\:*?"<>|\x00-\x1f\ud800-\udfff.~][^/\\:*?"<>|\x00-\x1f\ud800-\udfff]{0,99}', name):
        rule = "be a file name of at most 100 characters, without / \\ : * ? \" < > | and no '.' or '~' first"
        raise InvalidArgumentError.of("name", rule, name)


@checked
def collect_versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    names = ("persona-lens", "torch", "transformers", "transformer-lens", "numpy")
    return {name: version(name) for name in names}
