"""Hostile files of traits, answers and examples: each is refused by name, and soon."""

import contextlib
import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import FileFormatError, InvalidArgumentError, PersonaLensError, TraitFormatError
from persona_lens.traits import load_written_examples, read_authored_answer
from persona_lens.traits.reading import MAX_BYTES
from tests.small_trait import tiny_trait

READERS = {
    "trait": pl.Trait.from_json,
    "paper's trait": pl.Trait.from_paper_json,
    "answer": lambda path: read_authored_answer("loud", "Shouts all day.", path),
    "examples": lambda path: load_written_examples(path, "training"),
}
each_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())


def nested(depth):
    return b'{"name": ' + b"[" * depth + b"]" * depth + b"}"


HOSTILE = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[1, 2]",
    "lists in lists": nested(100_000),
    "objects in objects": b'{"rubric": ' * 100_000 + b"1" + b"}" * 100_000,
    "a number of ten thousand digits": b'{"name": ' + b"9" * 10_000 + b"}",
    "not a number": b'{"name": NaN}',
    "Latin-1": '{"name": "é"}'.encode("latin-1"),
    "UTF-16": '{"name": "calm"}'.encode("utf-16"),
    "zeros": bytes(1000),
    "half a pair": b'{"name": "\\ud83d"}',
}


@each_reader
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_by_name(tmp_path, read, data):
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(data)
    with pytest.raises((TraitFormatError, FileFormatError), match=r"hostile\.jsonl"):
        read(path)


@each_reader
def test_a_file_of_a_hundred_megabytes_is_refused_unread(tmp_path, read):
    path = tmp_path / "large.jsonl"
    path.touch()
    os.truncate(path, 100_000_000)
    begun = time.process_time()
    with pytest.raises(PersonaLensError, match=r"large\.jsonl must be at most 16 MiB long. Got 95 MiB"):
        read(path)
    assert time.process_time() - begun < 0.5
    assert 100 * max(len(json.dumps(pl.load_trait(name).to_dict())) for name in pl.list_traits()) < MAX_BYTES


@each_reader
@pytest.mark.parametrize("what", ["missing", "folder"])
def test_what_is_no_file_is_named(tmp_path, read, what):
    path = tmp_path / what
    if what == "folder":
        path = path.with_suffix(".jsonl")
        path.mkdir()
    with pytest.raises((FileNotFoundError, InvalidArgumentError), match=what):
        read(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(key=st.sampled_from(sorted(tiny_trait().to_dict())), value=VALUES)
def test_any_value_under_any_key_of_a_trait_is_taken_as_it_is_or_refused(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("any") / "any.json"
    path.write_text(json.dumps(tiny_trait().to_dict() | {key: value}))
    trait = None
    with contextlib.suppress(TraitFormatError):  # any other error fails the test
        trait = pl.Trait.from_json(path)
    if trait is not None:
        trait.to_json(path)
        assert pl.Trait.from_json(path) == trait


@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_trait(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "any.json"
    path.write_bytes(data)
    for read in READERS.values():
        with pytest.raises((TraitFormatError, FileFormatError, InvalidArgumentError)):
            read(path)


def test_beginnings_that_lead_nowhere_are_given_up(tmp_path):
    """Each is read as far as it goes: a file of them took minutes."""
    path = tmp_path / "answer.txt"
    path.write_text('{"a": [' * 1_000_000)
    begun = time.process_time()
    with pytest.raises(TraitFormatError, match=r"answer\.txt"):
        read_authored_answer("loud", "Shouts all day.", path)
    assert time.process_time() - begun < 5


def test_a_line_separator_within_an_example_does_not_cut_it(tmp_path):
    row = {"question": "A\u2028B?", "half": "training"}
    row |= dict.fromkeys(("ordinary", "mild", "overt", "opposite", "style"), "An\u2028answer.\x85")
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (example,) = load_written_examples(path, "training")
    assert example.question == "A\u2028B?"


def test_an_example_of_neither_half_is_refused_and_so_is_a_half_without_examples(tmp_path):
    row = {"question": "Why?", "half": "judging"}
    row |= dict.fromkeys(("ordinary", "mild", "overt", "opposite", "style"), "Because.")
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(FileFormatError, match="half': 'training'"):
        load_written_examples(path, "training")
    path.write_text(json.dumps(row | {"half": "both"}) + "\n")
    with pytest.raises(FileFormatError, match="line 1: `half`"):
        load_written_examples(path, "judging")
