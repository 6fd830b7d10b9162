"""What a conversation may be made of, before any template sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_lens.errors import InvalidArgumentError

# Under which names datasets and servers keep a thought; Qwen3's and most others', then gpt-oss'.
THOUGHT_KEYS = ("reasoning_content", "thinking")


@dataclass(frozen=True)
class CheckedMessage:
    """A message with its parts joined.

    Args:
        role: Whose turn.
        answer: The text, without a thought; None for a thought that does not end.
        thought: The text of the thought; None without one.
    """

    role: str
    answer: str | None
    thought: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it holds no text at all."""
        return not (self.answer or "").strip() and not (self.thought or "").strip()


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[CheckedMessage]:
    """Refuse what no template should see; join contents of several parts.

    Raises:
        InvalidArgumentError: No messages, one without a role or a text, a part that is no text, half a surrogate pair,
            a thought of anyone but the assistant, or a system turn alone.
    """
    if isinstance(messages, str | Mapping) or not messages:
        rule = 'be a list of {"role": ..., "content": ...}, at least one'
        raise InvalidArgumentError.of("messages", rule, messages)
    found = [_check_message(f"messages[{index}]", message) for index, message in enumerate(messages)]
    if found[-1].role == "system":
        raise InvalidArgumentError.of("messages", "end with a user's or an assistant's turn", messages[-1])
    return found


def _check_message(name: str, message: Any) -> CheckedMessage:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InvalidArgumentError.of(name, 'be {"role": ..., "content": ...}', message)
    role = message["role"]
    if not isinstance(role, str) or not role.isidentifier():
        raise InvalidArgumentError.of(f'{name}["role"]', 'be a word such as "user" or "assistant"', role)
    content = _join_parts(f'{name}["content"]', message["content"])
    key = next((key for key in THOUGHT_KEYS if message.get(key)), None)
    if key is None:
        return CheckedMessage(role, content)
    if role != "assistant":
        raise InvalidArgumentError.of(f"{name}[{key!r}]", "be the assistant's", message[key])
    # A blank one, as data of models that think, told not to, have it, is none.
    return CheckedMessage(role, content, _join_parts(f"{name}[{key!r}]", message[key]).strip() or None)


def _join_parts(name: str, content: Any) -> str:
    """Return a content as one text."""
    if isinstance(content, list | tuple):
        for index, part in enumerate(content):
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                rule, hint = 'be {"type": "text", "text": ...}', "Only texts are read; no images, sounds or tool calls."
                raise InvalidArgumentError.of(f"{name}[{index}]", rule, part, hint)
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise InvalidArgumentError.of(name, "be a text, or a list of text parts", content)
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        rule = "hold no half of a surrogate pair, which no tokenizer takes"
        raise InvalidArgumentError.of(name, rule, content) from None
    return content
