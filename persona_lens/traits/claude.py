"""Claude over Anthropic's API, for those who ask it: the key, the client, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from persona_lens.traits.keys import describe_failure, missing_key, read_key, refused_key

if TYPE_CHECKING:  # slow to import, and few sessions ask Claude
    import anthropic

CUT_OFF = ("max_tokens", "model_context_window_exceeded")
"""The API's reasons for an answer that ends too early."""
_KEY = "ANTHROPIC_API_KEY"


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

    hint = f"Set {_KEY} in the environment, or {otherwise}"
    key = read_key(_KEY, hint)
    if not key:
        raise missing_key(_KEY, hint)
    try:
        with anthropic.Anthropic(api_key=key, max_retries=max_retries) as client:
            yield client
    except (anthropic.AuthenticationError, anthropic.PermissionDeniedError) as error:
        raise refused_key(_KEY, describe_error(error, key), hint) from None


def describe_error(error: anthropic.APIError, key: str) -> str:
    """Return the error's class, status and the start of what the API said, without the key should it be quoted."""
    return describe_failure(error, getattr(error, "api_message", None) or "", key)


def describe_object(**properties: Any) -> dict[str, Any]:
    """Return the JSON schema of an object that has all of these properties and no other."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
