"""Claude over Anthropic's API, for those who ask it: the key, the client, and what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from persona_lens.errors import PersonaLensError
from persona_lens.traits.keys import (
    describe_failure,
    failed_request,
    hide_key,
    keep_out_of_logs,
    missing_key,
    read_key,
    refused_key,
)

if TYPE_CHECKING:  # slow to import, and few sessions ask Claude
    import anthropic

CUT_OFF = ("max_tokens", "model_context_window_exceeded")
"""The API's reasons for an answer that ends too early."""
_KEY = "ANTHROPIC_API_KEY"
_MAX_WORD = 200

T = TypeVar("T")


def ask_claude(work: Callable[[anthropic.Anthropic], T], otherwise: str, max_retries: int = 2) -> T:
    """Call a function with a client that has the environment's key, kept nowhere else.

    The SDK's errors hold the request, whose headers hold the key, and what the server said, which may repeat it: they
    become errors of ours, made where no other is being handled, so that they carry nothing with them.

    Args:
        work: Takes the client. What the server said, it passes through :func:`read_said` before it keeps any of it.
        otherwise: What to do without a key, for the error.
        max_retries: Attempts after the first, on rate limits, overload and lost connections.

    Returns:
        What ``work`` returns.

    Raises:
        InvalidArgumentError: A key that is missing, refused, or more than one word of ASCII.
        ApiError: What else the API or the network reports.
    """
    hint = f"Set {_KEY} in the environment, or {otherwise}"
    if not read_key(_KEY, hint):
        raise missing_key(_KEY, hint)
    found = _attempt(work, hint, max_retries)
    if isinstance(found, _Failure):
        raise found.error
    return found


@dataclass(frozen=True)
class _Failure:
    error: PersonaLensError


def _attempt(work: Callable[[anthropic.Anthropic], T], hint: str, max_retries: int) -> T | _Failure:
    import anthropic

    key = read_key(_KEY, hint)
    try:
        with keep_out_of_logs(key), anthropic.Anthropic(api_key=key, max_retries=max_retries) as client:
            return work(client)
    except (anthropic.AuthenticationError, anthropic.PermissionDeniedError) as error:
        return _Failure(refused_key(_KEY, describe_error(error, key), hint))
    except anthropic.APIError as error:
        return _Failure(failed_request(describe_error(error, key)))
    except PersonaLensError:
        raise
    except (ValueError, RecursionError) as error:  # the client decodes a body that claims to be JSON without a net
        return _Failure(failed_request(f"a malformed HTTP body ({type(error).__name__})"))


def describe_error(error: anthropic.APIError, key: str) -> str:
    """Return the error's class, status and the start of what the API said, without the key should it be quoted."""
    return describe_failure(error, getattr(error, "api_message", None) or "", key)


def read_said(message: object, client: anthropic.Anthropic) -> str | None:
    """Return the text of a message, without the key should it be quoted; None for a message without content.

    The client checks no types, so a stranger's answer may be anything.
    """
    content = getattr(message, "content", None)
    if not isinstance(content, list):
        return None
    texts = [getattr(block, "text", None) for block in content if getattr(block, "type", None) == "text"]
    return hide_key("".join(text for text in texts if isinstance(text, str)), client.api_key or "")


def read_word(value: object, client: anthropic.Anthropic) -> str:
    """Return what the API gives in a field for one word, such as an id: as text, without the key."""
    return hide_key(str(value), client.api_key or "")[:_MAX_WORD]


def describe_object(**properties: Any) -> dict[str, Any]:
    """Return the JSON schema of an object that has all of these properties and no other."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
