"""Keys of APIs: read from the environment, named in errors, quoted nowhere."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from persona_lens.errors import ApiError, InvalidArgumentError

_MAX_QUOTED = 80  # characters of what an API said that an error repeats
_TELLTALE = 12  # so many characters of a key in a row are taken for a piece of it
_CLIENT_LOGS = ("anthropic", "openai", "httpx", "httpcore")  # and httpx2, httpcore2
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

    Raise it where the API's own error is no longer being handled: that holds the request, whose headers hold the key,
    and would else stay with this one as its context.
    """
    return InvalidArgumentError(f"`{variable}` must be a key that works. Got {got}. {hint}")


def failed_request(got: str) -> ApiError:
    """Return the error for a request that the API did not answer as it should; raise it as one of a refused key."""
    return ApiError(f"The API must answer the request. Got {got}. What was kept is kept; try again.")


def describe_failure(error: Exception, said: str, key: str) -> str:
    """Return an error's class, its HTTP status if it has one, and the start of what the API said, without the key.

    Example:
        >>> describe_failure(ConnectionError(), "no sk-1 here", "sk-1")
        'ConnectionError: no [key] here'
    """
    status = f" {error.status_code}" if hasattr(error, "status_code") else ""
    return f"{type(error).__name__}{status}" + (f": {quote(said, key)}" if said else "")


def hide_key(said: str, key: str) -> str:
    """Return what an API said without the key, and without any piece of it that is long enough to tell.

    Example:
        >>> hide_key("no sk-1234567890abcdef, and not 1234567890abcdef", "sk-1234567890abcdef")
        'no [key], and not [key]'
    """
    if not key:
        return said
    length = min(_TELLTALE, len(key))
    pieces = {key[at : at + length] for at in range(len(key) - length + 1)}
    shown: list[str] = []
    at = copied = 0
    while at <= len(said) - length:
        if said[at : at + length] not in pieces:
            at += 1
            continue
        shown += [said[copied:at], "[key]"]
        while said[at : at + length] in pieces:
            at += 1
        at = copied = at + length - 1
    return "".join([*shown, said[copied:]])


def quote(said: str, key: str) -> str:
    """Return the start of what an API said, in one line, with neither the key nor a masked form of it."""
    # All that is looked at, however long a page came back. The key goes first, or a cut might leave half of it.
    start = hide_key(said[: 100 * _MAX_QUOTED], key)[: 10 * _MAX_QUOTED]
    return " ".join(_MASKED.sub("[key]", start).split())[:_MAX_QUOTED]


@contextmanager
def keep_out_of_logs(key: str) -> Iterator[None]:
    """Take a key out of what the clients' libraries log meanwhile: at DEBUG they show all that a server sends back."""
    known = logging.getLogger().manager.loggerDict  # a filter does not reach a logger's children
    loggers = [logging.getLogger(name) for name in list(known) if name.startswith(_CLIENT_LOGS)]
    hiding = _KeyFilter(key)
    for logger in loggers:
        logger.addFilter(hiding)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(hiding)


class _KeyFilter(logging.Filter):
    """Rewrites records; lets each of them pass."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        """Put the finished text in the place of all that it is made of."""
        record.msg, record.args = hide_key(record.getMessage(), self._key), None
        if record.exc_info:  # the exception holds the request, and that the key
            record.exc_text = hide_key(logging.Formatter().formatException(record.exc_info), self._key)
            record.exc_info = None
        return True
