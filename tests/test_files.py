"""Files written whole or not at all: real file systems, real limits."""

import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens import files
from persona_lens.errors import InvalidArgumentError
from persona_lens.files import (
    check_apart,
    is_same_file,
    write_atomically,
    write_bytes_atomically,
    write_dense_json,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o027, 0o000], indirect=True)
def test_a_new_file_is_as_readable_as_the_umask_lets_any_new_file_be(tmp_path, umask):
    write_json(tmp_path / "ours.json", {})
    (tmp_path / "any").write_text("")
    assert mode_of(tmp_path / "ours.json") == mode_of(tmp_path / "any") == 0o666 & ~umask


@pytest.mark.parametrize("umask", [0o077], indirect=True)
def test_all_that_the_package_writes_keeps_to_the_umask(tmp_path, umask):
    trait = pl.load_trait("evil")
    trait.to_json(tmp_path / "trait.json")
    pl.load_vector("evil").save(tmp_path / "vector.safetensors")
    pl.ShardStore(tmp_path / "runs", {}).load_or_compute("a", lambda: pl.storage.Shard(records=[1]))
    pl.judges.write_spot_check(tmp_path / "sheet.csv", ["Why?"], ["Because."])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 5
    assert {mode_of(path) for path in written} == {0o600}


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    path.chmod(0o640)
    write_json(path, {"a": 1})
    assert mode_of(path) == 0o640


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.integers(1, 40))
def test_measurements_come_back_as_they_were_however_long_a_line_may_be(content, longest):
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(files, "_LINE", longest):
        write_dense_json(Path(folder) / "a.json", content)
        assert json.loads((Path(folder) / "a.json").read_text(encoding="utf-8")) == content


def test_of_measurements_a_line_holds_what_fits_and_every_list_of_numbers(tmp_path):
    content = {"interval": {"low": 0.5, "high": 1.5}, "scores": [[0.25] * 200, [0.75]], "texts": ["é" * 300] * 2}
    write_dense_json(tmp_path / "a.json", content)
    numbers, text = ",".join(["0.25"] * 200), "é" * 300
    lines = ["{", ' "interval": {"low":0.5,"high":1.5},', ' "scores": [', f"  [{numbers}],", "  [0.75]", " ],"]
    lines += [' "texts": [', f'  "{text}",', f'  "{text}"', " ]", "}", ""]
    assert (tmp_path / "a.json").read_text(encoding="utf-8").split("\n") == lines


def test_a_key_that_is_a_number_becomes_a_text_and_nan_is_refused(tmp_path):
    write_dense_json(tmp_path / "a.json", {1: ["x" * 500]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"1": ["x" * 500]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_dense_json(tmp_path / "b.json", [float("nan")])
    assert not (tmp_path / "b.json").exists()


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert "1" in (tmp_path / "real.json").read_text()


def test_a_name_of_the_longest_length_is_written_and_a_longer_one_leaves_nothing(tmp_path):
    write_bytes_atomically(tmp_path / ("a" * 255), b"x")
    write_bytes_atomically(tmp_path / ("é" * 127), b"x")
    with pytest.raises(InvalidArgumentError, match="at most 255 bytes"):
        write_bytes_atomically(tmp_path / ("b" * 256), b"x")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("what", ["folder", "pipe", "below a file"])
def test_what_is_no_file_is_refused_by_name_and_left_as_it_is(tmp_path, what):
    path = tmp_path / what  # a pipe stands for every device: no test may lay hands on the machine's own
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "below a file":
        (tmp_path / "file").write_text("kept")
        path = tmp_path / "file" / "a.json"
    before = sorted((one.name, stat.S_IFMT(one.stat().st_mode)) for one in tmp_path.iterdir())
    with pytest.raises(InvalidArgumentError, match="`path`"):
        write_bytes_atomically(path, b"x")
    assert sorted((one.name, stat.S_IFMT(one.stat().st_mode)) for one in tmp_path.iterdir()) == before


LIMITED = """
import resource, sys
from pathlib import Path
from persona_lens.files import write_bytes_atomically
if sys.argv[2] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    write_bytes_atomically(Path(sys.argv[1]), bytes(1 << 20))
except OSError as error:
    print(type(error).__name__, error.errno)
"""


def run_limited(path, limit):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(limit)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_a_file_that_may_not_grow_leaves_the_old_one_and_no_other(tmp_path):
    assert resource.RLIMIT_FSIZE is not None
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    assert run_limited(path, 4096) == ["OSError", "27"]
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.bin"]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not IS_ROOT, reason="only root may mount")
def test_a_full_disk_leaves_the_old_file_and_no_other(small_disk):
    path = small_disk / "a.bin"
    path.write_bytes(b"old")
    assert run_limited(path, 0) == ["OSError", "28"]
    assert path.read_bytes() == b"old"
    assert [one.name for one in small_disk.iterdir()] == ["a.bin"]


@pytest.mark.skipif(not IS_ROOT, reason="only root may mount")
@pytest.mark.parametrize("what", ["trait", "paper's trait", "vector", "shard", "sheet", "prompt"])
def test_nothing_is_left_half_written_on_a_full_disk(small_disk, what):
    (small_disk / "filler").write_bytes(bytes(252 * 1024))
    kept = sorted(path.name for path in small_disk.iterdir())
    long = "x" * 20_000
    trait = replace(pl.load_trait("evil"), description=long)
    write = {
        "trait": lambda: trait.to_json(small_disk / "a.json"),
        "paper's trait": lambda: replace(trait, rubric=trait.rubric + long).to_paper_json(
            small_disk / "a.json", small_disk / "b.json"
        ),
        "vector": lambda: pl.load_vector("evil").save(small_disk / "a.safetensors"),
        "shard": lambda: pl.ShardStore(small_disk, {"long": long}),
        "sheet": lambda: pl.judges.write_spot_check(small_disk / "a.csv", ["Why?"], [long]),
        "prompt": lambda: pl.traits.write_authoring_prompt("loud", f"Shouts all day. {long}", small_disk / "a.txt"),
    }[what]
    with pytest.raises(OSError, match="No space left"):
        write()
    assert sorted(path.name for path in small_disk.rglob("*") if path.is_file()) == kept


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt, ValueError])
def test_writing_that_is_broken_off_leaves_the_old_file_and_no_other(tmp_path, failure):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def break_off():
        with write_atomically(path) as file:
            file.write(b"new")
            raise failure

    with pytest.raises(failure):
        break_off()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def spell(path, how, tmp_path):
    if how == "link":
        (tmp_path / "link").symlink_to(path)
        return tmp_path / "link"
    if how == "hard link":
        os.link(path, tmp_path / "hard")
        return tmp_path / "hard"
    if how == "linked folder":
        (tmp_path / "linked").symlink_to(tmp_path, target_is_directory=True)
        return tmp_path / "linked" / path.name
    return {"same": path, "dots": tmp_path / "x" / ".." / path.name, "text": str(path)}[how]


@pytest.mark.parametrize("how", ["same", "text", "dots", "link", "hard link", "linked folder"])
def test_one_file_under_two_names_is_refused_however_it_is_spelled(tmp_path, how):
    (tmp_path / "x").mkdir()
    path = tmp_path / "a.txt"
    path.write_text("kept")
    other = spell(path, how, tmp_path)
    with pytest.raises(InvalidArgumentError, match="`second` must be another file than `first`"):
        check_apart({"first": path, "second": other})
    with pytest.raises(InvalidArgumentError, match="`out` must be another file than `data`"):
        check_apart({"out": other}, {"data": path})


def test_one_file_may_be_read_twice_and_two_be_written(tmp_path):
    check_apart({"out": tmp_path / "c"}, {"a": tmp_path / "a", "b": tmp_path / "a"})
    check_apart({"one": tmp_path / "a", "two": tmp_path / "b"})


def test_files_that_are_not_there_yet_are_told_apart(tmp_path):
    assert is_same_file(tmp_path / "a" / ".." / "b", tmp_path / "b")
    assert not is_same_file(tmp_path / "a", tmp_path / "b")


@given(data=st.binary(max_size=200))
def test_any_bytes_come_back(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "a"
    write_bytes_atomically(path, data)
    assert path.read_bytes() == data
