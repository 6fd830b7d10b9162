"""Claude over Anthropic's API, for those who ask it: the key, the client, and what went wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from persona_lens.errors import InvalidArgumentError

if TYPE_CHECKING:  # slow to import, and few sessions ask Claude
    import anthropic

CUT_OFF = ("max_tokens", "model_context_window_exceeded")
"""The API's reasons for an answer that ends too early."""
_MAX_QUOTED = 80  # characters of what the API said that an error repeats


@contextmanager
def open_client(otherwise: str, max_retries: int = 2) -> Iterator[anthropic.Anthropic]:
    """Make a client with the environment's key, kept nowhere else, and turn a refused key into an error of ours.

    Args:
        otherwise: What to do without a key, for the error.
        max_retries: Attempts after the first, on rate limits, overload and lost connections.

    Raises:
        InvalidArgumentError: A key that is missing, refused, or more than one word of ASCII.
    """
    import anthropic

    hint = f"Set ANTHROPIC_API_KEY in the environment, or {otherwise}"
    key = os.environ.get("ANTHROPIC_API_KEY", "").strip()
    if not key:
        raise InvalidArgumentError(f"`ANTHROPIC_API_KEY` must be set. Got none. {hint}")
    # Any other character makes the HTTP library raise and log an error that quotes the whole key.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidArgumentError(f"`ANTHROPIC_API_KEY` must be one word of ASCII. Got other characters. {hint}")
    try:
        with anthropic.Anthropic(api_key=key, max_retries=max_retries) as client:
            yield client
    except (anthropic.AuthenticationError, anthropic.PermissionDeniedError) as error:
        # `from None`, since the API's error holds the request, whose headers hold the key.
        got = describe_error(error, key)
        raise InvalidArgumentError(f"`ANTHROPIC_API_KEY` must be a key that works. Got {got}. {hint}") from None


def describe_error(error: anthropic.APIError, key: str) -> str:
    """Return the error's class, status and the start of what the API said, without the key should it be quoted."""
    status = f" {error.status_code}" if hasattr(error, "status_code") else ""
    said = getattr(error, "api_message", None)
    return f"{type(error).__name__}{status}" + (f": {said.replace(key, '[key]')[:_MAX_QUOTED]}" if said else "")


def describe_object(**properties: Any) -> dict[str, Any]:
    """Return the JSON schema of an object that has all of these properties and no other."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
