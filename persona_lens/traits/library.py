"""The traits that come with the package."""

from __future__ import annotations

import difflib
from importlib.resources import as_file, files

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.traits.trait import Trait

_FOLDER = files("persona_lens.traits") / "library"


@checked
def list_traits() -> tuple[str, ...]:
    """Return the names of the bundled traits.

    Example:
        >>> "evil" in list_traits()
        True
    """
    return tuple(sorted(file.name.removesuffix(".json") for file in _FOLDER.iterdir() if file.name.endswith(".json")))


@checked
def load_trait(name: str) -> Trait:
    """Load a bundled trait.

    Args:
        name: One of :func:`list_traits`.

    Raises:
        InvalidArgumentError: No such trait; the message names the nearest.

    Example:
        >>> load_trait("evil").name
        'evil'
    """
    names = list_traits()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        hint += "Trait.from_json(path) reads a file of your own."
        raise InvalidArgumentError.of("name", f"be one of {', '.join(names)}", name, hint)
    with as_file(_FOLDER / f"{name}.json") as path:
        return Trait.from_json(path)
