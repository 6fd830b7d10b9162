"""Texts that people author: whole characters, none empty, none there twice."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lens.errors import TraitFormatError


def normal(text: str) -> str:
    """Return a text without what no reader tells apart: case, and how much white space there is."""
    return " ".join(text.casefold().split())


def check_unicode(key: str, texts: Sequence[str]) -> None:
    """Refuse half of a surrogate pair, which JSON can say and no file, terminal or tokenizer takes."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            got = f"{text[max(0, error.start - 20) : error.start + 1]!r}"
            raise TraitFormatError.of(key, "hold whole characters", got, "It ends in half of one.") from None


def check_texts(key: str, texts: Sequence[str]) -> None:
    """Refuse no text, an empty one, half a character, and the same text twice."""
    if not texts or isinstance(texts, str):  # a text would be taken letter by letter
        raise TraitFormatError.of(key, "hold at least one entry, in a list", texts or [])
    check_unicode(key, texts)
    empty = [index for index, text in enumerate(texts) if not text.strip()]
    if empty:
        raise TraitFormatError.of(key, "hold no empty text", f"empty at {empty}")
    if len({normal(text) for text in texts}) != len(texts):
        repeated = sorted({text for text in texts if [normal(t) for t in texts].count(normal(text)) > 1})
        raise TraitFormatError.of(key, "hold no text twice", repeated)
