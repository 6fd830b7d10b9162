"""What a row says: a conversation, or why it is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from persona_lens.checking import checked
from persona_lens.errors import ArgumentTypeError, InvalidArgumentError
from persona_lens.models.text.chat import Message
from persona_lens.models.text.messages import THOUGHT_KEYS, check_messages

UNREAD = frozenset({"cut off", "damaged file", "compressed too far"})
"""Reasons for which reading ends: what comes after such a row is unread, and nobody knows how much that is."""

_N_SHOWN = 200  # characters of a bad row

# The column of the messages, with the names of a message's role and text, and what each role is to us.
_OPENAI = ("role", "content", {role: role for role in ("system", "user", "assistant")})
FORMATS = {
    "messages": _OPENAI,
    "conversations": ("from", "value", {"system": "system", "human": "user", "gpt": "assistant"}),
    "conversation": _OPENAI,  # LMSYS-Chat-1M and WildChat
}


@checked
@dataclass(frozen=True)
class Conversation:
    """A row that can be trained on: perhaps a system message, then user and assistant in turn, ending with an answer.

    Args:
        place: Where it stands in the source, for a person to look it up: ``"line 12"`` or ``"row 12"``, from 1.
        index: Number of the row in the source, from 0; bad rows count, blank lines do not.
        messages: Its messages, the last one the assistant's and not empty.
        n_cut_turns: User turns that came after the last answer and were cut, as nothing answers them.
    """

    place: str
    index: int
    messages: tuple[Message, ...]
    n_cut_turns: int = 0


@checked
@dataclass(frozen=True)
class BadRow:
    """A row that is no conversation to train on.

    Args:
        place: Where it stands in the source: ``"line 12"`` or ``"row 12"``, from 1.
        index: Number of the row in the source, from 0.
        reason: One of: ``"not UTF-8"`` (or half a surrogate pair), ``"not JSON"``, ``"wrong type"``,
            ``"no messages"``, ``"missing key"``, ``"unknown role"``, ``"system not first"``, ``"no response"``,
            ``"begins with the assistant"``, ``"turns do not alternate"``, ``"empty response"``; beyond
            :class:`ReadLimits`, ``"row too large"`` or ``"nested too deep"``; and, where nothing more can be read,
            one of ``UNREAD``: ``"cut off"``, ``"damaged file"`` or ``"compressed too far"``.
        detail: What came, cut to 200 characters.
    """

    place: str
    index: int
    reason: str
    detail: str


@checked
def count_reasons(bad: Iterable[BadRow]) -> dict[str, int]:
    """Count bad rows by reason, the most frequent first.

    Example:
        >>> reasons = ("not JSON", "no messages", "no messages")
        >>> count_reasons(BadRow(f"row {i + 1}", i, reason, "") for i, reason in enumerate(reasons))
        {'no messages': 2, 'not JSON': 1}
    """
    counts: Counter[str] = Counter()
    for row in bad:
        if not isinstance(row, BadRow):  # out of an iterator, into which nobody has looked before
            raise ArgumentTypeError.of("bad", "hold bad rows alone", row)
        counts[row.reason] += 1
    return dict(counts.most_common())


class Refusal(Exception):
    """A reason and what came: raised or yielded in a row's stead by what reads files; becomes a bad row."""


def read_row(place: str, index: int, row: object) -> Conversation | BadRow:
    """Return the conversation that a row is, or why it is none."""
    try:
        messages = _read_messages(row)
        n_kept = _check_turns(messages)
    except Refusal as refusal:
        reason, got = refusal.args
        return BadRow(place, index, reason, _show(got))
    return Conversation(place, index, tuple(messages[:n_kept]), len(messages) - n_kept)


def _show(got: object) -> str:
    try:
        shown = got if isinstance(got, str) else repr(got)
    except (RecursionError, ValueError):  # nested without end, or an integer of too many digits
        shown = f"a {type(got).__name__} that cannot be shown"
    # Half a surrogate pair would not be written anywhere.
    return shown[:_N_SHOWN].encode("utf-8", errors="backslashreplace").decode("utf-8")[:_N_SHOWN]


def _read_messages(row: object) -> list[Message]:
    if isinstance(row, Refusal):
        raise row
    if not isinstance(row, Mapping):
        raise Refusal("wrong type", row)
    # A table has both columns where rows of both kinds were put together, one of them None.
    column = next((column for column in FORMATS if row.get(column) is not None), None)
    if column is None:
        raise Refusal("no messages", row)
    turns = row[column]
    if not isinstance(turns, (list, tuple)):
        raise Refusal("wrong type", turns)
    if not turns:
        raise Refusal("no messages", row)
    return [_read_turn(turn, *FORMATS[column]) for turn in turns]


def _read_turn(turn: object, role_key: str, text_key: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(turn, Mapping):
        raise Refusal("wrong type", turn)
    if role_key not in turn or text_key not in turn:
        raise Refusal("missing key", turn)
    role, text = turn[role_key], turn[text_key]
    if isinstance(text, (list, tuple)) and all(_is_text_part(part) for part in text):
        text = "".join(part["text"] for part in text)
    if not isinstance(role, str) or not isinstance(text, str):
        raise Refusal("wrong type", turn)
    if role not in roles:
        raise Refusal("unknown role", turn)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can escape half a surrogate pair, which no tokenizer takes
        raise Refusal("not UTF-8", ascii(text)) from None
    thought = next((turn[key] for key in THOUGHT_KEYS if turn.get(key)), None)
    if thought is None or roles[role] != "assistant":
        return {"role": roles[role], "content": text}
    try:
        (checked_turn,) = check_messages([{"role": "assistant", "content": text, "reasoning_content": thought}])
    except InvalidArgumentError:
        raise Refusal("wrong type", turn) from None
    return {"role": "assistant", "content": text, "reasoning_content": checked_turn.thought or ""}


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_turns(messages: Sequence[Message]) -> int:
    """Return how many messages to keep, which is up to the last answer."""
    roles = [message["role"] for message in messages]
    first = int(roles[0] == "system")
    if "system" in roles[first:]:
        raise Refusal("system not first", messages)
    if "assistant" not in roles:
        raise Refusal("no response", messages)
    if roles[first] == "assistant":
        raise Refusal("begins with the assistant", messages)
    n_kept = len(roles) - roles[::-1].index("assistant")
    if "assistant" in roles[first:n_kept:2] or "user" in roles[first + 1 : n_kept : 2]:
        raise Refusal("turns do not alternate", messages)
    if not messages[n_kept - 1]["content"].strip():
        raise Refusal("empty response", messages)
    return n_kept
