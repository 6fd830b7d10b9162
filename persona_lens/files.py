"""Files written whole or not at all, as readable as the umask lets any new file be."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any

from persona_lens.errors import InvalidArgumentError

_NAME_BYTES, _PATH_BYTES = 255, 4000  # what file systems hold, give or take
_LINE = 400  # characters of a file of measurements
_PREFIX_BYTES = 100  # of the final name, in the temporary one: a name that fits must not fail for the other's length


@contextmanager
def leaving_no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove a folder that the work made, if it fails and has put nothing there.

    Args:
        folder: Where the work is to write; kept if it was there before.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "out"
        >>> with leaving_no_empty_folder(folder):
        ...     folder.mkdir()
        ...     raise ValueError("no rows")
        Traceback (most recent call last):
            ...
        ValueError: no rows
        >>> folder.exists()
        False
    """
    was_there = folder.exists()
    try:
        yield
    except BaseException:
        if not was_there:
            with suppress(OSError):  # not made, or not empty
                folder.rmdir()
        raise


@contextmanager
def write_atomically(path: Path, parameter: str = "path") -> Iterator[BufferedWriter]:
    """Open a file for writing so that a reader sees all of it or none, also after a crash or on a full disk.

    A new file gets the permissions that the umask leaves it; one that is replaced keeps its own. A link is written
    through.

    Args:
        path: The file; its folders are made if missing.
        parameter: What the caller calls it, for the error.

    Raises:
        InvalidArgumentError: A folder, a device, or another thing that is there and is no file.
        OSError: The file cannot be written; what was there before is still there, and nothing else is.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with write_atomically(path) as file:
        ...     _ = file.write(b"all of it")
        >>> path.read_text()
        'all of it'
    """
    target = Path(os.path.realpath(path))
    check_file_or_nothing(target, parameter)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{_cut(target.name)}.{secrets.token_hex(8)}")
    # Not with `tempfile`, whose files are private whatever the umask says.
    file = os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "wb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or none, also after a crash."""
    with write_atomically(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text as UTF-8, all of it or nothing."""
    write_bytes_atomically(Path(path), text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, with keys in the order given; NaN is refused."""
    write_bytes_atomically(path, encode_json(content))


def encode_json(content: Any) -> bytes:
    """Return the bytes that :func:`write_json` writes."""
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_dense_json(path: Path, content: Any) -> None:
    """Write JSON atomically, for programs rather than for editing by hand; NaN is refused.

    What fits into a line of 400 characters stands on one, as does any list of numbers: with each number on its own, a
    third of a file of measurements would be blanks.
    """
    plain = json.loads(json.dumps(content, allow_nan=False))  # keys are texts then
    write_bytes_atomically(path, (_lay_out(plain, "\n") + "\n").encode())


def _lay_out(value: Any, margin: str) -> str:
    line = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if len(line) <= _LINE or not any(isinstance(part, str | list | dict) for part in parts):
        return line
    inner = margin + " "
    laid = [_lay_out(part, inner) for part in parts]
    if isinstance(value, dict):
        laid = [f"{json.dumps(key, ensure_ascii=False)}: {part}" for key, part in zip(value, laid, strict=True)]
    return line[0] + inner + ("," + inner).join(laid) + margin + line[-1]


def check_file_or_nothing(path: Path, parameter: str) -> None:
    """Refuse a path at which no file can be written, since another thing is there.

    Raises:
        InvalidArgumentError: A folder, a device or the like; or a file where a folder would have to be.
    """
    # Of `os.path`, which takes what cannot be looked at, such as an over-long name, for what is not there.
    if os.path.exists(path) and not os.path.isfile(path):
        got = f"{str(path)!r}, " + ("a folder" if os.path.isdir(path) else "which is no ordinary file")
        raise InvalidArgumentError(f"`{parameter}` must name a file, or one to be made. Got {got}.")
    longest = max(len(os.fsencode(part)) for part in ("", *path.parts))
    if longest > _NAME_BYTES or len(os.fsencode(path)) > _PATH_BYTES:
        rule = f"be of names of at most {_NAME_BYTES} bytes, together {_PATH_BYTES}"
        raise InvalidArgumentError.of(parameter, rule, str(path))
    check_folder_or_nothing(path.parent, parameter)


def check_folder_or_nothing(path: Path, parameter: str) -> None:
    """Refuse a path at which no folder can be, since it or one above it is a file or may not be written.

    Raises:
        InvalidArgumentError: The path leads through a file, or into a folder that may not be written.
    """
    there = next((one for one in (path, *path.parents) if os.path.exists(one)), None)
    if there is not None and not os.path.isdir(there):
        raise InvalidArgumentError.of(parameter, "lie in folders", str(path), f"{str(there)!r} is a file.")
    if there is not None and not os.access(
        there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids
    ):
        raise InvalidArgumentError.of(parameter, "lie in a folder that may be written", str(path), "Choose another.")


def check_apart(written: Mapping[str, Path | str], read: Mapping[str, Path | str] | None = None) -> None:
    """Refuse to write a file that is also read, or written a second time, however its path is spelled.

    Args:
        written: Paths by the name of the parameter that gives them.
        read: Likewise, of what is read.

    Raises:
        InvalidArgumentError: Two paths lead to one file, by other spellings or by links.

    Example:
        >>> check_apart({"kept": "a.txt", "held": "b.txt"})
    """
    known: dict[str, Path | str] = {}
    for name, path in [*(read or {}).items(), *written.items()]:
        for other, taken in known.items():
            if name in written and is_same_file(path, taken):
                rule = f"be another file than `{other}`"
                raise InvalidArgumentError.of(name, rule, str(path), "Choose another: it would be overwritten.")
        known[name] = path


def is_same_file(first: Path | str, second: Path | str) -> bool:
    """Whether two paths lead to one file, there already or to be made."""
    try:
        return os.path.samefile(first, second)
    except OSError:  # one is not there
        return os.path.realpath(first) == os.path.realpath(second)


def _cut(name: str) -> str:
    return name.encode()[:_PREFIX_BYTES].decode(errors="ignore")
