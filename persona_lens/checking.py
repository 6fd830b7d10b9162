"""Public callables check the types of what they are given: a wrong one is a TypeError that names the parameter.

Annotations alone say what is right. Values (ranges, shapes that must fit each other) are checked where they are used.
"""

from __future__ import annotations

import builtins
import difflib
import functools
import inspect
import numbers
import os
import sys
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from persona_lens.errors import ArgumentTypeError, InvalidArgumentError

T = TypeVar("T")

_LONGEST_NAME = 255  # of a file or folder, in bytes, on the usual file systems

# As everywhere in Python's numerics: a whole number is a real one, and NumPy's numbers are numbers.
_NUMBERS: Mapping[Any, Any] = {int: numbers.Integral, float: numbers.Real}


def checked(public: T) -> T:
    """Let a public function, or a class when it is made and its public methods, check the types of their arguments.

    Args:
        public: A function, or a class, which is returned itself.

    Raises:
        ArgumentTypeError: (the public callable) An argument of another type than its annotation says.
        InvalidArgumentError: (the public callable) A word that is none of those that its annotation lists.

    Example:
        >>> @checked
        ... def double(number: float) -> float:
        ...     return 2 * number
        >>> double("1")
        Traceback (most recent call last):
            ...
        persona_lens.errors.ArgumentTypeError: `number` must be of type float. Got '1'.
    """
    if isinstance(public, type):
        own: Any = public
        own.__init__ = _check_calls(own.__init__, public)
        for name, method in list(vars(public).items()):
            if isinstance(method, staticmethod | classmethod) and not name.startswith("_"):
                setattr(own, name, type(method)(_check_calls(method.__func__, method.__func__)))
            elif inspect.isfunction(method) and not name.startswith("_"):
                setattr(own, name, _check_calls(method, method))
        return cast(T, own)
    return cast(T, _check_calls(public, public))


def _check_calls(function: Any, public: Any) -> Any:
    signature = inspect.signature(function)

    @functools.cache  # names that a module imports later are known at the first call
    def hints() -> dict[str, Any]:
        return resolve_hints(public)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:  # too few or too many; Python's own words, with the function's name
            raise TypeError(f"{public.__qualname__}() {error}") from None
        for name, value in bound.arguments.items():
            if name in hints() and name not in ("self", "cls"):
                for one in _list_values(signature.parameters[name].kind, value):
                    _check(name, one, hints()[name], public)
        return function(*args, **kwargs)

    call.__dict__["__checked__"] = True
    return call


def _list_values(kind: Any, value: Any) -> Collection[Any]:
    """Return what must be of the type: each of `*names` and of `**names`, else the value itself."""
    if kind is kind.VAR_POSITIONAL:
        return tuple(value)
    return tuple(value.values()) if kind is kind.VAR_KEYWORD else (value,)


class _Names(dict[str, Any]):
    """A module's names for annotations; those imported for type checkers alone are found where they are defined."""

    def __init__(self, module: str) -> None:
        self.known = vars(sys.modules[module])

    def __missing__(self, name: str) -> Any:
        if name in self.known or hasattr(builtins, name):
            raise KeyError(name)
        package = [module for path, module in list(sys.modules.items()) if path.startswith("persona_lens")]
        # Another package's, which is slow to import, is not checked.
        return next((vars(module)[name] for module in package if name in vars(module)), Any)


def resolve_hints(public: Any) -> dict[str, Any]:
    """Return the types of a function's parameters, or of those that a class is made of; by name."""
    if not isinstance(public, type):
        return get_type_hints(public, localns=_Names(public.__module__))
    hints: dict[str, Any] = {}
    wanted = inspect.signature(public).parameters.keys()
    for base in reversed(public.__mro__):
        known = vars(sys.modules[base.__module__])
        written = vars(base).get("__annotations__", {})
        fields = types.SimpleNamespace(__annotations__={name: written[name] for name in written.keys() & wanted})
        hints |= get_type_hints(fields, globalns=known, localns=_Names(base.__module__))
    if not is_dataclass(public):
        hints |= get_type_hints(inspect.unwrap(vars(public)["__init__"]), localns=_Names(public.__module__))
    return hints


def _check(name: str, value: Any, hint: Any, public: Any) -> None:
    if fits(value, hint):
        if isinstance(value, int) and abs(value) >= 2**63:
            raise InvalidArgumentError.of(name, "be below 2**63 in size", value)
        if isinstance(value, str | Path) and Path in _list_parts(hint):
            _check_path(name, str(value))
        return
    words = [word for part in _list_parts(hint) if get_origin(part) is Literal for word in get_args(part)]
    if isinstance(value, str) and words and all(isinstance(word, str) for word in words):
        more = " or None" if None.__class__ in _list_parts(hint) else ""
        near = difflib.get_close_matches(value, words, n=1)
        did_you_mean = f"Did you mean {near[0]!r}?" if near else ""
        raise InvalidArgumentError.of(name, f"be one of {', '.join(map(repr, words))}{more}", value, did_you_mean)
    raise ArgumentTypeError.of(name, f"be of type {_describe(name, hint, public)}", value, _advise(name, value, hint))


def _advise(name: str, value: Any, hint: Any) -> str:
    """Return what to do about a value of another type, where that is plain."""
    if isinstance(value, str) and fits([value], hint):
        return f"For one text: {name}=[...]."
    if getattr(value, "ndim", None) == 0 and fits(value.item(), hint):  # a tensor of one number
        return f"Give the number in it: {name}.item()."
    if hasattr(value, "named_parameters") and not isinstance(value, type) and Path in _list_parts(hint):
        return "Give its name or folder: the weights are loaded here."
    return ""


def _check_path(name: str, path: str) -> None:
    """Refuse what no file can be called, before anything looks for it."""
    try:
        parts = os.fsencode(path).split(os.fsencode(os.sep))
    except UnicodeEncodeError:
        parts = [b"\0"]
    if b"\0" in b"".join(parts) or max(map(len, parts)) > _LONGEST_NAME:
        rule = f"be a path that a file can have: no NUL, no half surrogate pair, names of at most {_LONGEST_NAME} bytes"
        raise InvalidArgumentError.of(name, rule, path)


def _list_parts(hint: Any) -> Iterator[Any]:
    """Yield a hint, or the parts of a union."""
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _list_parts(part)
    else:
        yield hint


def fits(value: Any, hint: Any) -> bool:
    """Whether a value, and each of its parts, is of a type; a text is no sequence of texts.

    Example:
        >>> from collections.abc import Sequence
        >>> fits(["a"], Sequence[str]), fits(["a", 1], Sequence[str]), fits("a", Sequence[str])
        (True, False, False)
    """
    if hint in (Any, object) or isinstance(hint, TypeVar):
        return True
    parts = list(_list_parts(hint))
    if len(parts) > 1:
        return any(fits(value, part) for part in parts)
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, type):
        return isinstance(value, _NUMBERS.get(hint, hint)) if not is_typeddict(hint) else isinstance(value, Mapping)
    if origin is tuple and inner[-1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if isinstance(origin, type) and issubclass(origin, Iterable) and inner:
        if not isinstance(value, origin) or isinstance(value, str | bytes):
            return False
        if not isinstance(value, Collection):
            return True  # an iterator, which looking would use up
        if getattr(value, "ndim", 1) == 0:
            return False  # an array of no axis, which only says that it can be gone through
        if isinstance(value, Mapping):
            return _all_fit(value.keys(), inner[0]) and _all_fit(value.values(), inner[-1])
        return _all_fit(value, inner[0])
    from beartype.door import is_bearable  # for what few calls need: a command should begin at once

    return bool(is_bearable(value, hint))


def _all_fit(values: Collection[Any], hint: Any) -> bool:
    if isinstance(hint, type) and not hasattr(hint, "dims"):  # one of each type says it for all, but for an array's
        values = list({type(value): value for value in values}.values())
    return all(fits(value, hint) for value in values)


def _describe(name: str, hint: Any, public: Any) -> str:
    """Return a type as it is written in the source."""
    written = inspect.signature(public).parameters[name].annotation
    return written if isinstance(written, str) else hint.__name__ if isinstance(hint, type) else str(hint)
