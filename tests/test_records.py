from __future__ import annotations

import importlib
import json
import math
import pkgutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool, Float, Int
from torch import Tensor

import persona_lens
from persona_lens.errors import FileFormatError
from persona_lens.records import _CONVERTER, Record
from persona_lens.statistics import Interval


@dataclass(frozen=True)
class Part(Record):
    name: str
    interval: Interval
    score: float | None


@dataclass(frozen=True, eq=False)
class Whole(Record):
    value: float
    number: int
    is_sure: bool
    kind: Literal["one", "other"]
    folder: Path
    parts: tuple[Part, ...]
    best: Part | None
    rows: tuple[tuple[str, str, float], ...]
    counts: dict[str, int]
    floats: Float[Tensor, "layer d_model"]
    integers: Int[Tensor, " n"]
    flags: Bool[Tensor, " n"]
    by_position: dict[str, Float[Tensor, " layer"]]
    provenance: dict[str, Any]
    note: str | None = None


def make(**changes: Any) -> Whole:
    part = Part("<a>", Interval(0.5, 0.25, 1 / 3 + 1), 1.0)
    whole = Whole(
        value=1 / 3,
        number=2**60,
        is_sure=True,
        kind="one",
        folder=Path("a/b"),
        parts=(part, part),
        best=None,
        rows=(("a", "b", 0.1),),
        counts={"kept": 3},
        floats=torch.tensor([[1 / 3, math.nan], [math.inf, -math.inf]]),
        integers=torch.tensor([1, -2]),
        flags=torch.tensor([True, False]),
        by_position={"x": torch.zeros(2)},
        provenance={"seed": 0, "nested": [{"a": None}]},
    )
    return replace(whole, **changes)


def reread(record: Record) -> Any:
    return type(record).from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))


def test_a_record_is_the_same_after_the_round_trip_and_its_json_is_plain() -> None:
    whole = make(best=make().parts[0], note="x")
    again = reread(whole)
    assert again.to_json() == whole.to_json() == json.loads(json.dumps(whole.to_json()))
    assert whole.to_json()["format"] == "Whole"
    assert whole.to_json()["version"] == 1
    for name in (
        "value",
        "number",
        "is_sure",
        "kind",
        "folder",
        "parts",
        "best",
        "rows",
        "counts",
        "provenance",
        "note",
    ):
        assert getattr(again, name) == getattr(whole, name), name


@given(st.floats(), st.none() | st.floats())
def test_every_float_survives_exactly_nan_and_none_apart(value: float, score: float | None) -> None:
    again = reread(make(value=value, best=Part("x", Interval.missing(), score)))
    np.testing.assert_equal(again.value, value)
    assert again.best.interval.is_missing
    assert (again.best.score is None) == (score is None)
    if score is not None:
        np.testing.assert_equal(again.best.score, score)


DTYPES = {
    "floats": [torch.float32, torch.float64, torch.float16, torch.bfloat16],
    "integers": [torch.int64, torch.int32, torch.int8],
    "flags": [torch.bool],
}


@given(
    st.sampled_from([(field, dtype) for field, dtypes in DTYPES.items() for dtype in dtypes]),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.lists(st.floats(-100, 100) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=9, max_size=9),
)
def test_tensors_of_every_type_and_shape_survive_exactly(
    drawn: tuple[str, torch.dtype], shape: tuple[int, int], numbers: list[float]
) -> None:
    field, dtype = drawn
    shape = shape if field == "floats" else shape[:1]
    tensor = torch.tensor(numbers, dtype=torch.float64)
    if not dtype.is_floating_point:
        tensor = tensor.nan_to_num(0, 1, 2)
    tensor = tensor.to(dtype)[: math.prod(shape)].reshape(shape)
    again = getattr(reread(make(**{field: tensor})), field)
    assert again.dtype == dtype
    assert again.shape == shape
    assert torch.equal(again.isnan(), tensor.isnan())
    assert torch.equal(again.nan_to_num(7), tensor.nan_to_num(7))


@pytest.mark.parametrize("key", [key for key in make().to_json() if key != "note"])
def test_a_missing_key_is_named(key: str) -> None:
    content = make().to_json()
    del content[key]
    with pytest.raises(FileFormatError, match=key):
        Whole.from_json(content)


def test_an_older_file_is_read_with_the_default_of_a_field_that_was_added_since() -> None:
    content = make(note="x").to_json()
    del content["note"]
    assert Whole.from_json(content).note is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "Part"}, "must hold a Whole.*'Part'"),
        ({"version": 2}, "version 1 or lower. Got 2. Update"),
        ({"version": "1"}, "Got '1'"),
        ({"version": None}, "Got None"),
        ({"more": 1}, r"unknown keys \['more'\] @ Whole"),
        ({"parts": [{"name": "x", "score": 1.0}]}, r"missing keys \['interval'\] @ Whole.parts\[0\]"),
        ({"parts": [1]}, r"must be an object.*@ Whole.parts\[0\]"),
        ({"value": "1"}, "must be a number, got '1' @ Whole.value"),
        ({"value": True}, "must be a number"),
        ({"number": 1.0}, "must be of type int"),
        ({"number": True}, "must be of type int"),
        ({"is_sure": 1}, "must be of type bool"),
        ({"kind": "none"}, "Whole.kind"),
        ({"rows": [["a", "b"]]}, r"Whole.rows\[0\]"),
        ({"floats": [1.0]}, r"must be Float\[Tensor, 'layer d_model'\].*Whole.floats"),
        ({"floats": [[1.0], [1.0, 2.0]]}, "Whole.floats"),
        ({"floats": {"dtype": "save", "shape": [0, 1], "values": []}}, "must hold 'dtype'"),
        ({"flags": [1]}, "must be of type bool"),
        ({"integers": [0.5]}, "must be of type int"),
        (
            {"best": {"name": "x", "score": 1.0, "interval": {"estimate": 0, "low": 2, "high": 1, "level": 0.9}}},
            "`low`",
        ),
    ],
)
def test_content_that_is_no_such_record_is_refused_with_the_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        Whole.from_json(make().to_json() | changes)


@pytest.mark.parametrize("content", [None, 3, "text", [], {}])
def test_content_that_is_no_object_is_refused(content: Any) -> None:
    with pytest.raises(FileFormatError, match="must hold a Part"):
        Part.from_json(content)


def test_a_file_holds_the_record_or_is_refused(tmp_path: Path) -> None:
    part = make().parts[0]
    path = tmp_path / "new" / "part.json"
    part.save(path)
    assert Part.load(path) == Part.load(str(path)) == part
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Part.load(tmp_path / "nowhere.json")
    for text in ("", "{", "[" * 100_000, "\x00\xff", "{}", "[1]", path.read_text()[:-9]):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(FileFormatError, match=r"part\.json"):
            Part.load(path)


def test_a_file_carries_a_checksum_of_its_content_and_one_without_is_read_as_well(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    part = make().parts[0]
    part.save(path)
    content = json.loads(path.read_text())
    assert len(content.pop("checksum")) == 64
    assert content == part.to_json()
    path.write_text(json.dumps(content, sort_keys=True))  # as versions before wrote it, and in another order
    assert Part.load(path) == part


def test_a_file_that_was_changed_is_refused_saying_how_a_change_that_was_meant_is_read(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    make().parts[0].save(path)
    path.write_text(path.read_text().replace('"score":1.0', '"score":2.0'))
    with pytest.raises(FileFormatError, match=r"part\.json: `content` must hold what was written.*take out 'checksum'"):
        Part.load(path)
    with pytest.raises(FileFormatError, match="what was written"):
        Part.from_json(json.loads(path.read_text()))
    for checksum in (None, 3, [], "0"):
        with pytest.raises(FileFormatError, match="what was written"):
            Part.from_json({**make().parts[0].to_json(), "checksum": checksum})


def test_no_flipped_bit_of_a_record_is_read_as_another_content(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    part = make().parts[0]
    part.save(path)
    whole = path.read_bytes()
    refused = 0
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert Part.load(path) == part, bit
        except FileFormatError:
            refused += 1
    assert refused > 0.9 * 8 * len(whole)  # blanks between values may turn into others


def test_nan_in_what_is_kept_as_it_is_writes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        make(provenance={"x": math.nan}).save(tmp_path / "whole.json")
    assert not list(tmp_path.iterdir())


def test_a_record_shows_its_numbers_in_a_line_and_in_an_escaped_table() -> None:
    part = make().parts[0]
    assert repr(part) == "Part(name='<a>', interval=0.50 [0.25, 1.33], score=1)"
    assert "\n" not in repr(replace(part, name="two\nlines" * 99))
    assert "<td>&lt;a&gt;</td>" in part._repr_html_()
    assert "<th>is sure</th><td>True</td>" in make()._repr_html_()
    assert "floats" not in repr(make())


def test_a_class_may_write_its_own_line() -> None:
    @dataclass(frozen=True)
    class Own(Record):
        x: int

        def __repr__(self) -> str:
            return "mine"

    assert repr(Own(1)) == "mine"


def list_records(kind: type[Record] = Record) -> list[type[Record]]:
    return [kind, *(one for subclass in kind.__subclasses__() for one in list_records(subclass))]


def test_every_result_of_the_library_can_be_written_and_read() -> None:
    for module in pkgutil.walk_packages(persona_lens.__path__, "persona_lens."):
        importlib.import_module(module.name)
    found = [kind for kind in list_records()[1:] if kind.__module__.startswith("persona_lens.")]
    assert len(found) > 25
    for kind in found:
        # Both are made from the fields' types, which must be known at run time and to the codec.
        assert _CONVERTER.get_structure_hook(kind), kind
        assert _CONVERTER.get_unstructure_hook(kind), kind
        assert kind.__name__ not in {other.__name__ for other in found if other is not kind}, "one format, one class"
