"""Numbers from 0 to 100 in the answers of chat completion endpoints: out of token probabilities, or out of text.

The answers come from strangers' servers, so anything may be missing or of another type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from persona_lens.judges.asking import API_DECLINED, RESPONSE_REFUSES

_NUMBER = r"(0|[1-9][0-9]?|100)"  # no "07", "+7", "7_0" or digits of other scripts, which int() would take
_NUMBER_ALONE = re.compile(rf"[\s\"'`*]*{_NUMBER}[\s\"'`*.]*")
_NUMBER_FIRST = re.compile(rf"\s*{_NUMBER}(?![0-9]|[.,][0-9])")
_REFUSAL = "REFUSAL"
_REFUSAL_ALONE = re.compile(rf"[\s\"'`*]*{_REFUSAL}[\s\"'`*.]*", re.IGNORECASE)
_SEVERAL_DIGITS = re.compile(r"[0-9]{2,}")
# Probabilities are rounded on the way; a sum beyond this is of something else.
_MAX_TOTAL = 1.05
# Share of the numbers' mass on what may be a first digit only; read as they stand, they move the score by < 1 point.
_MAX_UNSETTLED = 0.01


@dataclass(frozen=True)
class Reading:
    """What an endpoint's answer says.

    Args:
        number: The number, 0 to 100; None if there is none.
        reason: Why there is none.
        said: What the endpoint said, for the reason to quote: at full length, and a key not yet taken out.
        retryable: Whether asking again may help.
        refused: Whether the endpoint does not take this way of asking.
    """

    number: float | None
    reason: str = ""
    said: str = ""
    retryable: bool = False
    refused: bool = False


NOT_GIVEN = Reading(None, "no log-probabilities", refused=True)
"""The endpoint answers, but without log-probabilities."""
UNSETTLED = Reading(None, "only the first digit of a number")
"""The first token may be a number or only its first digit."""
_NO_CONTENT = Reading(None, "malformed message: no content", retryable=True)


def find_choice(answer: object) -> Mapping[str, Any] | Reading:
    """Return the first choice of an answer, or why it has none to read.

    Args:
        answer: The decoded body of a chat completion.
    """
    choice = _dig(answer, "choices", 0)
    # An endpoint that passes requests on may answer 200 before it knows that the model fails.
    for failure in (_dig(answer, "error"), _dig(choice, "error")):
        if failure:
            return Reading(None, "an error in place of an answer", describe_error_body(failure), retryable=True)
    if not isinstance(choice, dict):
        return Reading(None, "malformed message: no choices", retryable=True)
    if choice.get("finish_reason") == "content_filter" or _dig(choice, "message", "refusal"):
        return Reading(None, API_DECLINED)
    return choice


def read_likeliest(choice: Mapping[str, Any], min_mass: float) -> Reading:
    """Return the expected number under the probabilities of the answer's first token.

    Args:
        choice: A choice with ``logprobs``, in nats.
        min_mass: Least probability of all numbers together, in (0, 1].

    Example:
        >>> tokens = [{"token": "80", "logprob": math.log(0.5)}, {"token": " 90", "logprob": math.log(0.25)}]
        >>> round(read_likeliest({"logprobs": {"content": [{"top_logprobs": tokens}]}}, 0.25).number, 6)
        83.333333
    """
    likeliest = _dig(choice, "logprobs", "content", 0, "top_logprobs")
    if not isinstance(likeliest, list) or not likeliest:
        return NOT_GIVEN
    tokens = [_read_token(one) for one in likeliest]
    known = [token for token in tokens if token is not None]
    if len(known) < len(tokens) or math.fsum(p for _, p in known) > _MAX_TOTAL:
        return Reading(None, "malformed log-probabilities", retryable=True)
    numbers = [(int(text), p) for text, p in known if re.fullmatch(_NUMBER, text)]
    mass = math.fsum(p for _, p in numbers)
    if mass < min_mass:
        first, _ = max(known, key=lambda token: token[1])
        if len(first) > 1 and _REFUSAL.startswith(first):
            return Reading(None, RESPONSE_REFUSES)
        return Reading(None, f"numeric mass {mass:.2f} is below {min_mass:g}", first)
    may_go_on = math.fsum(p for n, p in numbers if n > 0)
    if may_go_on >= _MAX_UNSETTLED * mass and not any(_SEVERAL_DIGITS.fullmatch(text) for text, _ in known):
        return UNSETTLED
    return Reading(min(math.fsum(n * p for n, p in numbers) / mass, 100.0))  # rounding may pass 100


def read_text(choice: Mapping[str, Any]) -> Reading:
    """Return the number that is the whole answer.

    Example:
        >>> read_text({"message": {"content": "87."}}).number
        87.0
        >>> read_text({"message": {"content": "about 87"}}).reason
        'answer is no whole number from 0 to 100'
    """
    text = _find_text(choice)
    if not text:
        return _NO_CONTENT
    if choice.get("finish_reason") == "length":
        return Reading(None, "answer cut off (length)", text)
    if _REFUSAL_ALONE.fullmatch(text):
        return Reading(None, RESPONSE_REFUSES)
    found = _NUMBER_ALONE.fullmatch(text)
    return Reading(float(found[1])) if found else Reading(None, "answer is no whole number from 0 to 100", text)


def read_beginning(choice: Mapping[str, Any]) -> Reading:
    """Return the number that the answer begins with.

    Example:
        >>> read_beginning({"message": {"content": "87, as the"}, "finish_reason": "length"}).number
        87.0
    """
    text = _find_text(choice)
    if not text:
        return _NO_CONTENT
    found = _NUMBER_FIRST.match(text)
    reason = "answer begins with no whole number from 0 to 100"
    return Reading(float(found[1])) if found else Reading(None, reason, text)


def describe_error_body(error: object) -> str:
    """Return what an error in a body says: its message, or the error itself where it is a text."""
    said = error if isinstance(error, str) else _dig(error, "message")
    return said if isinstance(said, str) else ""


def is_moderated(error: object) -> bool:
    """Return whether a 403 is about the text, as OpenRouter's is when a filter flags it, and not about the key."""
    return bool(_dig(error, "metadata", "reasons") or _dig(error, "metadata", "flagged_input"))


def _find_text(choice: Mapping[str, Any]) -> str:
    """Return the text of a choice; empty if it has none, or nothing but spaces."""
    text = _dig(choice, "message", "content")
    return text if isinstance(text, str) and text.strip() else ""


def _read_token(token: object) -> tuple[str, float] | None:
    """Return a token's text without spaces around it, and its probability; None if it has none."""
    text, logprob = _dig(token, "token"), _dig(token, "logprob")
    # bool is a kind of int in Python, but true is no logarithm
    if not isinstance(text, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        return None
    # An impossible token's logarithm may be -inf, and a certain one's be rounded to above 0; NaN fails any comparison.
    return (text.strip(), math.exp(max(logprob, -1e4))) if logprob <= math.log(_MAX_TOTAL) else None


def _dig(value: object, *path: str | int) -> Any:
    """Return what lies along a path of keys and indices; None where the path ends early."""
    for step in path:
        if isinstance(step, str) and isinstance(value, dict):
            value = value.get(step)
        elif isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        else:
            return None
    return value
