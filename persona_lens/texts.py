"""Lists of texts, told from one text."""

from __future__ import annotations

from typing import Any

from persona_lens.errors import InvalidArgumentError


def check_texts(parameter: str, texts: Any, least: int = 1) -> tuple[str, ...]:
    """Return texts as a tuple; refuse one text, which Python would take letter by letter, and what is no text.

    Args:
        parameter: What the caller calls them, for the error.
        texts: Whatever came in their place.
        least: How many there must be.

    Raises:
        InvalidArgumentError: One text in place of a list, too few, or an entry that is no text.

    Example:
        >>> check_texts("questions", ["How are you?"])
        ('How are you?',)
    """
    rule = f"be a list of at least {least} text{'s' if least != 1 else ''}"
    if isinstance(texts, str | bytes):
        raise InvalidArgumentError.of(parameter, rule, texts, f"For one text: {parameter}=[...].")
    found = tuple(texts)
    if len(found) < least:
        raise InvalidArgumentError.of(parameter, rule, list(found))
    wrong = [one for one in found if not isinstance(one, str)]
    if wrong:
        raise InvalidArgumentError.of(parameter, "hold texts alone", wrong[0])
    return found
