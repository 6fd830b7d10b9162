"""Finished means whole: what is damaged on disk is never taken for scores, and never ends the process."""

import contextlib
import json
import random
import re
import shutil
from dataclasses import replace

import pytest

import persona_lens as pl
from persona_lens.screening import files
from tests.screening.test_screen import SETTINGS, make_rows, read_shards, run


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """A finished screening of three shards, not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    run(tiny_model, make_rows(12), folder)
    return folder


@pytest.fixture
def out(whole, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def damage(content, rng):
    """Flip a bit, zero or cut an end, or put bytes in, take them out or overwrite them."""
    changed = bytearray(content)
    at = rng.randrange(len(content))
    kind = rng.choice(["flip", "flip", "flip", "zeros", "cut", "insert", "remove", "overwrite", "append", "empty"])
    if kind == "flip":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        changed[at:] = bytes(len(content) - at)
    elif kind == "cut":
        del changed[at:]
    elif kind == "insert":
        changed[at:at] = rng.randbytes(rng.randint(1, 8))
    elif kind == "remove":
        del changed[at : at + rng.randint(1, 8)]
    elif kind == "overwrite":
        changed[at : at + 8] = rng.randbytes(8)
    elif kind == "append":
        changed += rng.randbytes(rng.randint(1, 8))
    else:
        changed.clear()
    return bytes(changed)


def test_of_two_thousand_damaged_shards_none_is_accepted_and_none_ends_the_process(out):
    path = files.shard_path(out, 1)
    content = path.read_bytes()
    rng = random.Random(0)
    assert files.find_checksum(path) == json.loads((out / files.RECORD).read_text())["shards"][1]
    accepted = []
    for _ in range(2000):
        changed = damage(content, rng)
        path.write_bytes(changed)
        if changed != content and (files.read_mark(path) or files.find_checksum(path)):
            accepted.append(changed)
    assert accepted == []


def test_a_damaged_shard_is_computed_anew_to_the_same_bytes(tiny_model, out):
    before = read_shards(out)
    rng = random.Random(1)
    for _ in range(8):
        name = rng.choice(sorted(before))
        (out / "shards" / name).write_bytes(damage(before[name], rng))
        run(tiny_model, make_rows(12), out)
        assert read_shards(out) == before


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("how", ["gone", "cut", "flipped", "another's", "a folder"])
def test_a_finished_screening_with_a_shard_that_is_not_its_own_and_whole_is_refused_by_name(out, index, how):
    path = files.shard_path(out, index)
    content = bytearray(path.read_bytes())
    path.unlink()
    if how == "cut":
        path.write_bytes(content[:-9])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "another's":
        shutil.copy(files.shard_path(out, (index + 1) % 3), path)
    elif how == "a folder":
        path.mkdir()
    with pytest.raises(pl.errors.FileFormatError, match=path.name):
        pl.screening.Screening.load(out)


def test_a_shard_that_goes_after_a_screening_was_opened_is_missed(out):
    found = pl.screening.Screening.load(out)
    files.shard_path(out, 2).unlink()
    with pytest.raises(pl.errors.FileFormatError, match=r"00000002\.arrow"):
        found.measure("one")


def test_of_five_hundred_damaged_records_none_is_accepted(out):
    path = out / files.RECORD
    content = path.read_bytes()
    rng = random.Random(2)
    same = pl.screening.Screening.load(out)
    for _ in range(500):
        path.write_bytes(damage(content, rng))
        with contextlib.suppress(pl.errors.FileFormatError):
            found = pl.screening.Screening.load(out)  # after a change that JSON does not see, such as one of a space
            assert (found.counts, found.config, found.shards) == (same.counts, same.config, same.shards)


@pytest.mark.parametrize("record", ["", "{", "[]", "5", "null", '{"config": {}}', '"\\ud800"', "[" * 10_000, "\x00"])
def test_a_broken_record_is_written_anew_and_the_shards_are_kept(tiny_model, out, record):
    before = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    kept = (out / files.RECORD).read_bytes()
    (out / files.RECORD).write_text(record)
    with pytest.raises(pl.errors.FileFormatError, match="folder"):
        pl.screening.Screening.load(out)
    run(tiny_model, make_rows(12), out)
    assert {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()} == before
    assert (out / files.RECORD).read_bytes() == kept


def test_with_a_broken_record_another_screening_writes_nothing_over_the_scores(tiny_model, out):
    (out / files.RECORD).write_text("{")
    files.shard_path(out, 0).unlink()
    before = read_shards(out)
    settings = pl.screening.ScreenSettings(max_response_tokens=5, max_prompt_tokens=80)
    with pytest.raises(pl.errors.InvalidArgumentError, match="another screening"):
        run(tiny_model, make_rows(12), out, settings=settings)
    assert read_shards(out) == before


def test_a_shard_of_the_same_rows_from_another_screening_is_not_taken(tiny_model, out, tmp_path):
    before = read_shards(out)
    other = run(tiny_model, make_rows(12), tmp_path / "other", layers={"one": 2, "two": 1})
    shutil.copy(files.shard_path(other.folder, 1), files.shard_path(out, 1))
    run(tiny_model, make_rows(12), out)
    assert read_shards(out) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": {"one": 2, "two": 1}}, "layers.one 1, not 2, layers.two 2, not 1"),
        ({"settings": replace(SETTINGS, batch_size=3)}, "one with settings.batch_size 128, not 3'"),
        ({"settings": replace(SETTINGS, turn="last")}, "settings.turn first, not last"),
        ({"shard_rows": 5}, "shard_rows 4, not 5"),
    ],
)
def test_what_is_another_in_the_screening_of_a_folder_is_named(tiny_model, out, change, words):
    before = read_shards(out), (out / files.RECORD).read_bytes()
    with pytest.raises(pl.errors.InvalidArgumentError, match=re.escape(words)):
        run(tiny_model, make_rows(12), out, **change)
    assert (read_shards(out), (out / files.RECORD).read_bytes()) == before
