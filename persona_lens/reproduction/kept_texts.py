"""The texts of a result's judged responses, in a compressed file beside it: they are half of all, and few read them.

NAME.json says at each place which line of responses/NAME.jsonl.bz2 stands there. bzip2 makes these texts smaller than
gzip and xz do, and keeps no time: the same texts give the same file, so that judging them anew leaves it as it was.
"""

from __future__ import annotations

import bz2
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persona_lens.errors import FileFormatError
from persona_lens.files import write_bytes_atomically

_KEY = "responses"  # what every result calls them
_LINE = "line"


def find_texts(path: Path) -> Path:
    """Return where the texts are of a result that is at a path."""
    return path.parent / "responses" / f"{path.stem}.jsonl.bz2"


def save_apart(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write the responses of a result that goes to a path; return its JSON with ``{"line": n}`` in place of each list.

    A file of texts from before goes if there are none now.
    """
    taken: list[Any] = []
    rest: dict[str, Any] = _take_out(content, taken)
    lines = "".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) + "\n" for one in taken)
    if taken:
        write_bytes_atomically(find_texts(path), bz2.compress(lines.encode()))
    else:
        find_texts(path).unlink(missing_ok=True)
    return rest


def read_together(path: Path, content: Any) -> Any:
    """Return the JSON of a result that was read from a path, with its responses; their file is opened if it has some.

    Raises:
        FileFormatError: The file of the responses is not there, or damaged.
    """
    try:
        return _put_back(content, functools.cache(lambda: _read_lines(find_texts(path))))
    except (OSError, EOFError, ValueError, IndexError, TypeError) as error:
        rule = f"stand beside {find_texts(path).relative_to(path.parent)}, whole, which holds its responses"
        raise FileFormatError.of("path", rule, f"{type(error).__name__}: {error}", "Keep both together.") from error


def _take_out(content: Any, taken: list[Any]) -> Any:
    if isinstance(content, list):
        return [_take_out(one, taken) for one in content] if _has_parts(content) else content
    if not isinstance(content, dict):
        return content
    rest = {}
    for key, value in content.items():
        if key == _KEY and isinstance(value, list) and _holds_texts(value):
            rest[key] = {_LINE: len(taken)}
            taken.append(value)
        else:
            rest[key] = _take_out(value, taken)
    return rest


def _put_back(content: Any, kept: Callable[[], list[Any]]) -> Any:
    if isinstance(content, list):
        return [_put_back(one, kept) for one in content] if _has_parts(content) else content
    if not isinstance(content, dict):
        return content
    return {
        key: kept()[value[_LINE]] if key == _KEY and _is_place(value) else _put_back(value, kept)
        for key, value in content.items()
    }


def _has_parts(values: list[Any]) -> bool:
    """Whether a list holds more than numbers and texts, of which there are too many to go through one by one."""
    return any(isinstance(one, list | dict) for one in values)


def _read_lines(texts: Path) -> list[Any]:
    lines = bz2.decompress(texts.read_bytes()).decode().removesuffix("\n").split("\n")
    return [json.loads(line) for line in lines]


def _holds_texts(value: Any) -> bool:
    """Whether a value is a text or a nested list of texts alone."""
    return all(map(_holds_texts, value)) if isinstance(value, list) else isinstance(value, str)


def _is_place(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {_LINE}
