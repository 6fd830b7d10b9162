"""Scripted users: what people of several kinds say, ten turns each, whatever is answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError


@checked
@dataclass(frozen=True)
class UserScript:
    """What a user says in a conversation, turn by turn; it does not depend on the answers.

    Args:
        kind: What kind of user it is, such as ``hostile``.
        turns: What is said; at least one turn, none of them empty.
        topic: What the conversation is about: scripts of two kinds with one topic are compared as a pair, and those of
            one kind are averaged. One without a topic is compared with none.

    Raises:
        InvalidArgumentError: No turn, or an empty one.

    Example:
        >>> UserScript("curt", ("What is yeast?", "Shorter."), topic="bread").turns[-1]
        'Shorter.'
    """

    kind: str
    turns: tuple[str, ...]
    topic: str = ""

    def __post_init__(self) -> None:
        if not self.turns or not all(turn.strip() for turn in self.turns):
            raise InvalidArgumentError.of("turns", "hold at least one text, none of them empty", self.turns)


@checked
def list_user_kinds() -> tuple[str, ...]:
    """Return the kinds of scripted user that are bundled; ``neutral`` asks plain questions and is the others' control.

    Example:
        >>> list_user_kinds()
        ('neutral', 'friendly', 'flattering', 'hostile', 'confused')
    """
    return tuple(dict.fromkeys(script.kind for script in _read()))


@checked
def load_user_scripts(kind: str) -> tuple[UserScript, ...]:
    """Load the scripts of a kind of user: ten turns on each of six topics, which all kinds share.

    They were written for this project. Turn by turn, users of all kinds ask about much the same things.

    Args:
        kind: One of :func:`list_user_kinds`.

    Raises:
        InvalidArgumentError: Another kind.

    Example:
        >>> for script in load_user_scripts("hostile")[:2]:
        ...     print(f"{script.topic}: {script.turns[0]}")
        bread: I doubt that you know anything at all, but go on, how does one begin with bread?
        tomatoes: They say that you are good for nothing. Prove it, what soil do tomatoes need?
    """
    if kind not in list_user_kinds():
        raise InvalidArgumentError.of("kind", f"be one of {', '.join(list_user_kinds())}", kind)
    return tuple(script for script in _read() if script.kind == kind)


@cache
def _read() -> tuple[UserScript, ...]:
    text = (files("persona_lens") / "data" / "scripted_users.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return tuple(UserScript(row["kind"], tuple(row["turns"]), row["topic"]) for row in rows)
