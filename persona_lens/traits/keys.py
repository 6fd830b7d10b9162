"""Keys of APIs: read from the environment, named in errors, quoted nowhere."""

from __future__ import annotations

import os
import re

from persona_lens.errors import InvalidArgumentError

_MAX_QUOTED = 80  # characters of what an API said that an error repeats
_MASKED = re.compile(r"\S*\*{3}\S*")  # an API that quotes a key masks its middle; its ends are left out too


def read_key(variable: str, hint: str) -> str:
    """Return the key that an environment variable holds, without spaces around it; empty if there is none.

    Args:
        variable: The variable's name.
        hint: What to do without a key, for the error.

    Raises:
        InvalidArgumentError: The key is more than one word of ASCII.
    """
    key = os.environ.get(variable, "").strip()
    # Any other character makes the HTTP library raise and log an error that quotes the whole key.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidArgumentError(f"`{variable}` must be one word of ASCII. Got other characters. {hint}")
    return key


def missing_key(variable: str, hint: str) -> InvalidArgumentError:
    """Return the error for a key that is not there."""
    return InvalidArgumentError(f"`{variable}` must be set. Got none. {hint}")


def refused_key(variable: str, got: str, hint: str) -> InvalidArgumentError:
    """Return the error for a key that the API refuses.

    Raise it ``from None``: the API's own error holds the request, whose headers hold the key.
    """
    return InvalidArgumentError(f"`{variable}` must be a key that works. Got {got}. {hint}")


def describe_failure(error: Exception, said: str, key: str) -> str:
    """Return an error's class, its HTTP status if it has one, and the start of what the API said, without the key.

    Example:
        >>> describe_failure(ConnectionError(), "no sk-1 here", "sk-1")
        'ConnectionError: no [key] here'
    """
    status = f" {error.status_code}" if hasattr(error, "status_code") else ""
    return f"{type(error).__name__}{status}" + (f": {quote(said, key)}" if said else "")


def quote(said: str, key: str) -> str:
    """Return the start of what an API said, in one line, with neither the key nor a masked form of it."""
    without_key = said.replace(key, "[key]") if key else said
    start = without_key[: 10 * _MAX_QUOTED]  # all that is looked at, however long a page came back
    return " ".join(_MASKED.sub("[key]", start).split())[:_MAX_QUOTED]
