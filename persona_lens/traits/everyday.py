"""Everyday questions, which touch no trait."""

from __future__ import annotations

import json
from importlib.resources import files

from persona_lens.checking import checked


@checked
def load_ordinary_questions() -> tuple[str, ...]:
    """Return the bundled everyday questions, which touch no trait.

    Example:
        >>> len(load_ordinary_questions())
        40
    """
    text = (files("persona_lens") / "data" / "ordinary_questions.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))
