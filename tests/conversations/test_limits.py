"""What a file may ask of its reader: each bound breached is one bad row, and memory stays bounded."""

import gzip
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persona_lens.conversations import BadRow, ReadLimits, read_conversations
from persona_lens.errors import InvalidArgumentError

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = ReadLimits()
GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def fill(text):
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]}


def write(path, rows):
    """Write rows, some of them bytes, as the path's name says."""
    texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    content = b"[" + b",".join(texts) + b"]" if path.suffix == ".json" else b"".join(text + b"\n" for text in texts)
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        content = sink.getvalue().to_pybytes()
    path.write_bytes(content)
    return path


def reasons(path, limits=DEFAULTS):
    return [row.reason if isinstance(row, BadRow) else "" for row in read_conversations(path, limits=limits)]


@pytest.mark.parametrize("name", ["max_row_bytes", "max_depth", "max_ratio"])
@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan"), "9", True, None])
def test_a_limit_that_is_no_whole_number_above_zero_is_refused(name, value):
    check = inspect.unwrap(ReadLimits.__post_init__)  # without the run-time checks of types, which users do not have
    limits = object.__new__(ReadLimits)
    for field in ("max_row_bytes", "max_depth", "max_ratio"):
        object.__setattr__(limits, field, value if field == name else 1)
    with pytest.raises(InvalidArgumentError, match=name):
        check(limits)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.jsonl.zst"])
@pytest.mark.parametrize("n_bytes", [3000, 65_536, 300_000])
def test_a_row_that_is_too_large_is_one_bad_row_and_the_next_is_read(tmp_path, name, n_bytes):
    large = fill("x" * n_bytes)
    rows = [GOOD, large, GOOD, b'"' + b'\\"' * n_bytes + b'"', GOOD]
    size = len(json.dumps(large))
    limits = ReadLimits(max_row_bytes=size - 1)
    path = write(tmp_path / name, rows)
    assert reasons(path, limits) == ["", "row too large", "", "row too large", ""]
    assert reasons(path, ReadLimits(max_row_bytes=size + 1))[:3] == ["", "", ""]  # with the newline
    assert str(size) in list(read_conversations(path, limits=limits))[1].detail or name != "rows.json"


def test_a_row_of_a_parquet_file_that_is_too_large_is_one_bad_row(tmp_path):
    rows = [GOOD] * 300 + [fill("x" * 5000)] + [GOOD] * 300
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    expected = [""] * 300 + ["row too large"] + [""] * 300
    assert reasons(tmp_path / "rows.parquet", ReadLimits(max_row_bytes=4000)) == expected


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("depth", [101, 1000, 100_000])
def test_a_row_nested_too_deep_is_one_bad_row_and_the_next_is_read(tmp_path, name, depth):
    lists = b"[" * depth + b"]" * depth
    within = b'{"messages": 0, "x": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
    assert reasons(write(tmp_path / name, [GOOD, lists, GOOD, within, GOOD])) == ["", "nested too deep"] * 2 + [""]


def test_brackets_in_texts_and_beside_each_other_are_not_nested(tmp_path):
    row = fill('[{"' * 500) | {"lists": [[]] * 500}
    assert reasons(write(tmp_path / "rows.jsonl", [row])) == [""]
    assert reasons(write(tmp_path / "rows.json", [row])) == [""]


def test_rows_of_python_nested_without_end_are_bad_rows():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    rows = [deep, {"messages": deep}, {"messages": [{"role": "user", "content": deep}]}, {"messages": 10**5000}]
    found = list(read_conversations(rows))
    assert [row.reason for row in found] == ["wrong type"] * 4
    assert all("cannot be shown" in row.detail for row in found)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_compressed_too_far_is_read_to_its_limit_and_no_further(tmp_path, suffix):
    n_rows = 1 + (1 << 26) // 10_000
    path = write(tmp_path / f"rows.jsonl{suffix}", [fill("x" * 10_000)] * n_rows)
    found = reasons(path, ReadLimits(max_ratio=2))
    assert found[-1] == "compressed too far"
    assert found[:-1] == [""] * (len(found) - 1)
    assert n_rows - 100 < len(found) < n_rows
    assert reasons(path, ReadLimits(max_ratio=100_000)) == [""] * n_rows


def test_a_parquet_file_compressed_too_far_is_not_read(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([fill("x" * 1_000_000)] * 100), path, use_dictionary=False, compression="zstd")
    assert reasons(path) == ["compressed too far"]
    assert reasons(path, ReadLimits(max_ratio=1_000_000)) == [""] * 100


GROWTH = """
import sys
from pathlib import Path
from persona_lens.conversations import read_conversations

def show(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) >> 10

small, *paths = sys.argv[1:]
list(read_conversations(small))
for path in paths:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = show("VmRSS")
    n = sum(1 for row in read_conversations(path))
    print(n, show("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="where memory is read")
def test_no_small_file_takes_much_memory(tmp_path):
    """In a process of its own, whose peak is its own. Each file holds more than it may take."""
    small = write(tmp_path / "small.jsonl", [GOOD])
    brackets, endless, zeros, column = (
        tmp_path / name for name in ("rows.json", "rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet")
    )
    brackets.write_bytes(b"[" * 30_000 + b"]" * 30_000)
    with gzip.open(endless, "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(b"x" * (1 << 20))
    with pa.output_stream(str(zeros), compression="zstd") as file:
        for _ in range(500):
            file.write(bytes(1 << 20))
    pq.write_table(pa.Table.from_pylist([fill("x" * 900_000)] * 500), column)  # kept once
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, small, brackets, endless, zeros, column],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(found) == 4
    for n_rows, growth in found:
        assert n_rows >= 1
        assert growth < 250, "MiB"
