"""Records: measured results that go to JSON and come back the same, checked whole on the way.

The fields' annotations alone say how a record is written, so that no result writes or reads its own JSON. NaN is
``null`` (``"nan"`` where a field may also be None), infinity ``"inf"`` or ``"-inf"``, a tuple a list, a path its text,
a tensor nested lists. What an annotation leaves open (``dict[str, Any]``) is kept as the JSON value that it is.
"""

from __future__ import annotations

import copy
import html
import json
import math
import reprlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

import cattrs
import torch
from cattrs.gen import make_dict_structure_fn
from jaxtyping import AbstractArray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json
from persona_lens.errors import FileFormatError
from persona_lens.files import write_dense_json

__all__ = ["Record"]

_T = TypeVar("_T")
_R = TypeVar("_R", bound="Record")  # not Self, which beartype takes in classes alone

_CHECKSUM = "checksum"
_HEAD = ("format", "version", _CHECKSUM)
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
# What a plain nested list is read as: the tensor's type is written only where it is another.
_PLAIN_DTYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}


@checked
@dataclass(frozen=True)
class Record:
    """Base of every measured result, a frozen dataclass: one JSON, one file, one line, one table.

    A field that is added later gets a default, with which older files are read; a subclass whose fields change in
    another way raises its ``_version``. Records within a record are written without a head of their own: they are read
    with the whole.

    Example:
        >>> @dataclass(frozen=True)
        ... class Share(Record):
        ...     of: str
        ...     value: float
        >>> Share("thirds", 1 / 3).to_json()
        {'format': 'Share', 'version': 1, 'of': 'thirds', 'value': 0.3333333333333333}
        >>> Share.from_json(Share("thirds", 1 / 3).to_json())
        Share(of='thirds', value=0.333333)
    """

    _version: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        """Keep the one-line repr, which ``@dataclass`` would replace in every subclass."""
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Record.__repr__  # type: ignore[method-assign]

    def to_json(self) -> dict[str, Any]:
        """Return the whole result as JSON-able values, floats exact."""
        return {"format": type(self).__name__, "version": self._version, **_CONVERTER.unstructure(self)}

    @classmethod
    def from_json(cls: type[_R], content: Any) -> _R:
        """Read what :meth:`to_json` returned, or what JSON made of it.

        Raises:
            FileFormatError: Another format, a later version, a key that is missing or unknown (what is not understood
                would else be lost in silence), a value of another type, or, if there is a checksum, another content;
                the message names each.
        """
        return read_headed(content, cls, cls.__name__, cls._version)

    def save(self, path: str | Path) -> None:
        """Write the record as JSON with a checksum of it, all of it or nothing."""
        write_dense_json(Path(path), self._seal())

    def _seal(self) -> dict[str, Any]:
        """Return what :meth:`to_json` does, with a checksum of it."""
        content = self.to_json()
        return {**content, _CHECKSUM: hash_json(content)}

    @classmethod
    def load(cls: type[_R], path: str | Path) -> _R:
        """Read what :meth:`save` wrote; a file that an earlier version wrote without a checksum is read as it is.

        Raises:
            FileNotFoundError: No such file.
            FileFormatError: No JSON, or one that :meth:`from_json` refuses.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"`path` must name an existing file. Got {str(path)!r}.")
        try:
            return cls.from_json(cls._read_file(path))
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from error
        except (ValueError, RecursionError) as error:  # no JSON, no text at all, or one nested without end
            raise FileFormatError(f"`path` must name a JSON file. Got {str(path)!r}: {error}.") from error

    @classmethod
    def _read_file(cls, path: Path) -> Any:
        """Return the JSON value that a file holds."""
        return json.loads(path.read_text(encoding="utf-8"))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={text}" for name, text in self._list_values(reprlib.repr))
        return f"{type(self).__name__}({shown})"

    def _repr_html_(self) -> str:
        rows = ((name.replace("_", " "), text) for name, text in self._list_values(str))
        return format_table(type(self).__name__, rows)

    def _list_values(self, show_text: Callable[[str], str]) -> Iterator[tuple[str, str]]:
        """Name and show the fields that fit in a line: numbers, texts, and what writes itself as an Interval does."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                yield field.name, show_text(value)
            elif isinstance(value, float):
                yield field.name, f"{value:g}"
            elif value is None or isinstance(value, int) or value.__class__.__str__ is not object.__str__:
                yield field.name, str(value)


def format_table(caption: str, rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Return an HTML table of rows that each begin with their name; what is shown is escaped."""
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in head)] if head else []
    for name, *values in rows:
        shown = "".join(f"<td>{html.escape(str(value))}</td>" for value in values)
        lines.append(f"<th>{html.escape(str(name))}</th>{shown}")
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{html.escape(caption)}</caption>{body}</table>"


def read_headed(content: Any, kind: type[_T], name: str, version: int) -> _T:
    """Read a dataclass from its JSON under a head that says ``"format": name`` and a version up to this one.

    Raises:
        FileFormatError: As for :meth:`Record.from_json`.
    """
    if not isinstance(content, Mapping) or content.get("format") != name:
        got = content.get("format") if isinstance(content, Mapping) else type(content).__name__
        raise FileFormatError(f"`content` must hold a {name}, with 'format': {name!r}. Got {got!r}.")
    found = content.get("version")
    if type(found) is not int or found > version:
        hint = "Update persona-lens." if type(found) is int else "Make it again."
        raise FileFormatError(f"`content` must hold a {name} of version {version} or lower. Got {found!r}. {hint}")
    rest = {key: value for key, value in content.items() if key != _CHECKSUM}
    if _CHECKSUM in content and content[_CHECKSUM] != hash_json(rest):
        rule, hint = "hold what was written", f"If it was changed on purpose, take out {_CHECKSUM!r}."
        raise FileFormatError.of("content", rule, f"a {name} with another checksum", hint)
    try:
        return _CONVERTER.structure({key: value for key, value in content.items() if key not in _HEAD}, kind)
    except Exception as error:  # cattrs collects whatever the fields' own checks raise
        faults = "; ".join(cattrs.transform_error(error, path=name, format_exception=lambda one, _: str(one)))
        raise FileFormatError(f"`content` must hold a whole {name}: {faults}. Make it again.") from error


# The codec --------------------------------------------------------------------------------------------------------


def _write_float(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return float(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _read_float(value: Any, _: Any = None) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str) and value in _SPECIAL:
        return _SPECIAL[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, got {reprlib.repr(value)}")
    return float(value)


def _write_optional_float(value: float | None) -> float | str | None:
    return "nan" if value is not None and math.isnan(value) else None if value is None else _write_float(value)


def _read_optional_float(value: Any, _: Any) -> float | None:
    return None if value is None else _read_float(value)


def _is_optional_float(annotation: Any) -> bool:
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return is_union and set(get_args(annotation)) == {float, type(None)}


def _read_exactly(value: Any, kind: type) -> Any:
    """Take a value as it is: nothing is converted in silence."""
    if type(value) is not kind:
        raise ValueError(f"must be of type {kind.__name__}, got {reprlib.repr(value)}")
    return value


def _is_tensor(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, AbstractArray)


def _plain_dtype(annotation: Any) -> torch.dtype:
    """Return the type of tensor that a plain list stands for under an annotation: float32 where it allows floats."""
    return next(dtype for name, dtype in _PLAIN_DTYPES.items() if name in annotation.dtypes)


def _write_tensor(value: Tensor, annotation: Any) -> Any:
    """Write nested lists; the type and shape beside them where the lists would not tell."""
    value = value.detach().cpu()
    if value.dtype == _plain_dtype(annotation) and 0 not in value.shape[:-1]:
        return _write_numbers(value.tolist())
    dtype = str(value.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(value.shape), "values": _write_numbers(value.flatten().tolist())}


def _write_numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_write_numbers(one) for one in value]
    return _write_float(value) if isinstance(value, float) else value


def _read_tensor(content: Any, annotation: Any) -> Tensor:
    if isinstance(content, Mapping):
        if content.keys() != {"dtype", "shape", "values"} or not isinstance(
            dtype := getattr(torch, str(content["dtype"]), None), torch.dtype
        ):
            raise ValueError(f"must hold 'dtype', 'shape' and 'values', got {reprlib.repr(content)}")
        tensor = torch.tensor(_read_numbers(content["values"], dtype), dtype=dtype).reshape(content["shape"])
    else:
        dtype = _plain_dtype(annotation)
        tensor = torch.tensor(_read_numbers(content, dtype), dtype=dtype)
    fits: bool = isinstance(tensor, annotation)  # said apart, since it would make `tensor` an Any
    if not fits:
        raise ValueError(f"must be {annotation.__name__}, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor


def _read_numbers(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_read_numbers(one, dtype) for one in value]
    return _read_float(value) if dtype.is_floating_point else _read_exactly(value, bool if dtype == torch.bool else int)


def _make_reader(kind: type) -> Callable[[Any, Any], Any]:
    """Make the reader of a dataclass, which asks for every field without a default and for nothing else."""
    read: Callable[[Any, Any], Any] = make_dict_structure_fn(kind, _CONVERTER)
    names = [field.name for field in fields(kind)]
    required = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]

    def read_whole(content: Any, _: Any) -> Any:
        if not isinstance(content, Mapping):
            raise ValueError(f"must be an object with the keys {names}, got {reprlib.repr(content)}")
        missing = [name for name in required if name not in content]
        if missing:
            raise ValueError(f"missing keys {missing}")
        unknown = [key for key in content if key not in names]
        if unknown:
            raise ValueError(f"unknown keys {unknown}")
        return read(content, kind)

    return read_whole


_CONVERTER = cattrs.Converter(unstruct_collection_overrides={tuple: list})
for _kind in (int, str, bool):
    _CONVERTER.register_structure_hook(_kind, _read_exactly)
_CONVERTER.register_unstructure_hook(int, int)  # NumPy's too
_CONVERTER.register_unstructure_hook(bool, bool)
_CONVERTER.register_structure_hook(float, _read_float)
_CONVERTER.register_unstructure_hook(float, _write_float)
_CONVERTER.register_structure_hook_func(_is_optional_float, _read_optional_float)
_CONVERTER.register_unstructure_hook_func(_is_optional_float, _write_optional_float)
_CONVERTER.register_structure_hook(Path, lambda value, _: Path(_read_exactly(value, str)))
_CONVERTER.register_unstructure_hook(Path, str)
_CONVERTER.register_structure_hook_func(_is_tensor, _read_tensor)
_CONVERTER.register_unstructure_hook_factory(_is_tensor, lambda kind: partial(_write_tensor, annotation=kind))
_CONVERTER.register_unstructure_hook_func(lambda kind: kind == dict[str, Any], copy.deepcopy)
_CONVERTER.register_structure_hook_factory(is_dataclass, _make_reader)
