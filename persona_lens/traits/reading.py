"""Files that people write or get from strangers: read as bounded UTF-8, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persona_lens.errors import PersonaLensError

MAX_BYTES = 16 * 2**20
"""The largest file of a trait, of an answer or of written examples that is read; those that come with the package are
under a hundredth of it."""


def read_text(path: Path, failure: type[PersonaLensError]) -> str:
    """Read a whole file as UTF-8, with or without a mark at its start.

    Args:
        path: The file.
        failure: The error to raise for what is no such text.

    Raises:
        FileNotFoundError: No such file.
        PersonaLensError: Of the kind asked for: too large a file, or another encoding.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`path` must name an existing file. Got {str(path)!r}.")
    if path.stat().st_size > MAX_BYTES:
        got = f"{path.stat().st_size / 2**20:.0f} MiB"
        raise failure(f"{path} must be at most {MAX_BYTES // 2**20} MiB long. Got {got}. Is it the file you mean?")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise failure(f"{path} must be UTF-8. Byte {error.start} is not; save it again as UTF-8.") from error


def read_json_object(path: Path, failure: type[PersonaLensError]) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        FileNotFoundError: No such file.
        PersonaLensError: Of the kind asked for: as for :func:`read_text`, no JSON, or another value than an object.
    """
    text = read_text(path, failure)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise failure(f"{path} must be JSON. Line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists without end
        raise failure(f"{path} must be JSON of ordinary depth. Got another: {error}.") from error
    if not isinstance(content, dict):
        raise failure(f"{path} must hold a JSON object. Got {type(content).__name__}.")
    return content
