"""Roles: characters that a model is asked to play, authored like traits."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, TraitFormatError
from persona_lens.files import write_json
from persona_lens.traits.authored import check_texts
from persona_lens.traits.reading import read_json_object

RoleKind: TypeAlias = Literal["assistant", "service", "human", "non-human", "trait"]
"""The assistant itself; one that serves as it does; another person; what is no person; an assistant with a trait."""
ASSISTANT = "assistant"
"""The name of the role that all others are measured from: what the model is when it plays no other."""

_FORMAT, _VERSION = "persona-lens-role", 1
_TRAITS = files("persona_lens.traits")


@checked
@dataclass(frozen=True)
class Role:
    """A character, ready to be played.

    Args:
        name: Lower-case word, used in file names: letters, digits, ``-`` and ``_``.
        kind: How far it is from an assistant, as its author sees it.
        description: One sentence; no model is given it.
        system_prompts: Each alone makes a model play the role.

    Raises:
        TraitFormatError: Names the field that is empty, repeated or malformed.

    Reference:
        The Assistant Axis (arXiv 2601.10387), section 2: roles with five system prompts each.

    Example:
        >>> Role("clown", "human", "Falls over.", ("You are a clown.",)).name
        'clown'
    """

    name: str
    kind: RoleKind
    description: str
    system_prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", self.name):
            raise TraitFormatError.of("name", "be a lower-case word of letters, digits, '-' and '_'", self.name)
        check_texts("description", [self.description])
        check_texts("system_prompts", self.system_prompts)

    @property
    def fingerprint(self) -> str:
        """A hash of all that the role says."""
        content = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, path: str | Path) -> Role:
        """Read a role's file.

        Raises:
            FileNotFoundError: No such file.
            TraitFormatError: Not JSON, not UTF-8, or a key is missing, unknown or of the wrong type.
        """
        content = read_json_object(Path(path), TraitFormatError)
        head = {"format": _FORMAT, "version": _VERSION}
        names = set(cls.__dataclass_fields__)
        missing, unknown = sorted(names - content.keys()), sorted(content.keys() - names - head.keys())
        if missing or unknown:
            raise TraitFormatError(f"{path}: missing keys {missing}, unknown keys {unknown}. See Role.to_json.")
        for key, expected in head.items():
            if content.get(key, expected) != expected:
                got = reprlib.repr(content[key])
                raise TraitFormatError(f"{path}: `{key}` must be {expected!r}, or left out. Got {got}.")
        _check_types(content, str(path))
        prompts = tuple(content["system_prompts"])
        return cls(content["name"], content["kind"], content["description"], prompts)

    def to_json(self, path: str | Path) -> None:
        """Write the role as UTF-8 JSON."""
        write_json(Path(path), self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the role as JSON-able values."""
        return {"format": _FORMAT, "version": _VERSION, **asdict(self), "system_prompts": list(self.system_prompts)}

    def __repr__(self) -> str:
        return f"Role({self.name!r}, {self.kind}: {self.description} {len(self.system_prompts)} system prompts)"


def _check_types(content: Mapping[str, Any], where: str) -> None:
    for key in ("name", "kind", "description"):
        if not isinstance(content[key], str):
            raise TraitFormatError(f"{where}: `{key}` must be a text. Got {reprlib.repr(content[key])}.")
    if content["kind"] not in get_args(RoleKind):
        rule = f"be one of {', '.join(get_args(RoleKind))}"
        raise TraitFormatError(f"{where}: `kind` must {rule}. Got {content['kind']!r}.")
    prompts = content["system_prompts"]
    if not isinstance(prompts, list) or not all(isinstance(one, str) for one in prompts):
        raise TraitFormatError(f"{where}: `system_prompts` must be a list of texts. Got {reprlib.repr(prompts)}.")


@checked
def list_roles() -> tuple[str, ...]:
    """Return the names of the bundled roles, without the assistant itself.

    Example:
        >>> "pirate" in list_roles(), "assistant" in list_roles()
        (True, False)
    """
    return tuple(name for name in _list_files() if name != ASSISTANT)


@checked
def load_role(role: str) -> Role:
    """Load a bundled role.

    Args:
        role: One of :func:`list_roles`, or ``assistant``.

    Raises:
        InvalidArgumentError: No such role; the message names the nearest.

    Example:
        >>> load_role("pirate").kind
        'human'
    """
    names = _list_files()
    if role not in names:
        near = difflib.get_close_matches(role, names, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        hint += "Role.from_json(path) reads a file of your own."
        raise InvalidArgumentError.of("role", f"be one of {', '.join(names)}", role, hint)
    with as_file(_TRAITS / "roles" / f"{role}.json") as path:
        return Role.from_json(path)


@checked
def load_role_questions() -> tuple[str, ...]:
    """Return the bundled questions that draw out who answers; everybody can answer them.

    Example:
        >>> len(load_role_questions())
        24
    """
    text = (_TRAITS / "role_questions.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def _list_files() -> tuple[str, ...]:
    folder = _TRAITS / "roles"
    return tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")))
