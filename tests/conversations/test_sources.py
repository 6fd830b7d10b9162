import gzip
import importlib
import itertools
import json
import sys
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import persona_lens
from persona_lens import conversations
from persona_lens.conversations import BadRow, Conversation, count_reasons, read_conversations
from persona_lens.errors import FileFormatError, InvalidArgumentError


def turns(*texts, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = itertools.cycle(["user", "assistant"])
    return [*messages, *({"role": role, "content": text} for role, text in zip(roles, texts, strict=False))]


def row(*texts, system=None):
    return {"messages": turns(*texts, system=system)}


def share(*pairs):
    return {"conversations": [{"from": role, "value": text} for role, text in pairs]}


def line(content):
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def write_lines(path, rows):
    """Write JSONL, compressed as the name says; each row of a zst file is a frame of its own."""
    lines = [content if isinstance(content, bytes) else line(content) for content in rows]
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(b"".join(lines)))
    elif path.suffix == ".zst":
        path.write_bytes(b"".join(map(compress_zstd, lines)))
    else:
        path.write_bytes(b"".join(lines))
    return path


def compress_zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def read_one(content):
    (found,) = read_conversations([content])
    return found


def reasons(source):
    return [found.reason if isinstance(found, BadRow) else "" for found in read_conversations(source)]


# Rows -----------------------------------------------------------------------------------------------------------


def test_messages_come_back_as_they_were():
    messages = turns("a", "b", "c", "d", system="s")
    assert read_one({"messages": messages, "id": 7}) == Conversation("row 1", 0, tuple(messages), 0)


def test_sharegpt_roles_become_ours():
    found = read_one(share(("system", "s"), ("human", "a"), ("gpt", "b")))
    assert list(found.messages) == turns("a", "b", system="s")


def test_user_turns_after_the_last_answer_are_cut_and_counted():
    found = read_one({"messages": [*turns("a", "b", "c"), *turns("d")]})
    assert (list(found.messages), found.n_cut_turns) == (turns("a", "b"), 2)


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "image": None}]
    found = read_one({"messages": [{"role": "user", "content": parts}, *turns("", "c")[1:]]})
    assert list(found.messages) == turns("ab", "c")


def test_texts_keep_their_outer_whitespace():
    assert list(read_one(row(" \n", " b\n")).messages) == turns(" \n", " b\n")


def test_a_column_of_none_is_no_column():
    found = read_one({"messages": None, **share(("human", "a"), ("gpt", "b"))})
    assert list(found.messages) == turns("a", "b")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "no messages"),
        ({"prompt": "a", "response": "b"}, "no messages"),
        ({"messages": []}, "no messages"),
        ({"messages": None}, "no messages"),
        (5, "wrong type"),
        (None, "wrong type"),
        (["a"], "wrong type"),
        ({"messages": "ab"}, "wrong type"),
        ({"messages": {"role": "user", "content": "a"}}, "wrong type"),
        ({"messages": ["a", "b"]}, "wrong type"),
        (row("a", None), "wrong type"),
        (row("a", 3), "wrong type"),
        (row("a", {"text": "b"}), "wrong type"),
        (row([{"type": "image_url", "image_url": "x"}], "b"), "wrong type"),
        (row([{"type": "text", "text": None}], "b"), "wrong type"),
        (row(["a"], "b"), "wrong type"),
        ({"messages": [{"role": None, "content": "a"}]}, "wrong type"),
        ({"messages": [{"content": "a"}]}, "missing key"),
        ({"messages": share(("human", "a"), ("gpt", "b"))["conversations"]}, "missing key"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "unknown role"),
        (share(("user", "a"), ("gpt", "b")), "unknown role"),
        ({"messages": [*turns("a"), *turns("b", system="s")]}, "system not first"),
        ({"messages": turns(system="s")}, "no response"),
        (row("a"), "no response"),
        (row("a", system="s"), "no response"),
        ({"messages": turns("a", "b")[1:]}, "begins with the assistant"),
        (share(("gpt", "a"), ("human", "b"), ("gpt", "c")), "begins with the assistant"),
        (share(("system", "s"), ("gpt", "a"), ("human", "b")), "begins with the assistant"),
        ({"messages": [*turns("a"), *turns("b", "c")]}, "turns do not alternate"),
        ({"messages": [*turns("a", "b"), *turns("", "c")[1:]]}, "turns do not alternate"),
        (row("a", ""), "empty response"),
        (row("a", "b", "c", " \n\u3000"), "empty response"),
        (row("a", []), "empty response"),
        (row("a", "\ud800"), "not UTF-8"),
    ],
)
def test_a_row_of_no_use_is_named(content, reason):
    found = read_one(content)
    assert isinstance(found, BadRow)
    assert found.reason == reason


def test_the_detail_shows_what_came_cut_and_writable():
    assert "tool" in read_one({"messages": [{"role": "tool", "content": "a"}]}).detail
    assert len(read_one({"text": "x" * 1000}).detail) == 200
    read_one(row("a", "\ud800")).detail.encode("utf-8")


def test_reasons_are_counted_the_most_frequent_first():
    bad = [BadRow("row 1", 0, "not JSON", ""), *[BadRow("row 2", 1, "no messages", "")] * 2]
    assert list(count_reasons(iter(bad)).items()) == [("no messages", 2), ("not JSON", 1)]
    assert count_reasons([]) == {}


# Files ----------------------------------------------------------------------------------------------------------

ROWS = [row("a", "b"), {"text": "c"}, row("ü", "d", "e")]
EXPECTED = [(0, turns("a", "b"), 0), (1, "no messages"), (2, turns("ü", "d"), 1)]


def summarize(source, **options):
    return [
        (found.index, found.reason)
        if isinstance(found, BadRow)
        else (found.index, list(found.messages), found.n_cut_turns)
        for found in read_conversations(source, **options)
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.jsonl.gz", "rows.ndjson.zst"])
def test_lines_are_read_plain_and_compressed(tmp_path, name):
    path = write_lines(tmp_path / name, ROWS)
    assert summarize(path) == summarize(str(path)) == EXPECTED
    assert [found.place for found in read_conversations(path)] == ["line 1", "line 2", "line 3"]


def test_the_column_of_lmsys_and_wildchat_is_read():
    turns_of_a_chat = turns("a", "b")
    (found,) = read_conversations([{"conversation": turns_of_a_chat, "model": "x"}])
    assert list(found.messages) == turns_of_a_chat


def test_a_json_list_is_read(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8-sig")
    assert summarize(path) == EXPECTED


@pytest.mark.parametrize("content", ['{"messages": []}', '{"a": 1}\n{"a": 2}', ""])
def test_a_json_file_that_is_no_list_is_refused_at_once(tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(FileFormatError, match=r"rows\.json"):
        read_conversations(path)


def write_parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def test_parquet_is_read_over_several_batches(tmp_path):
    rows = [row(f"a{i}", f"b{i}") | {"other": i} for i in range(600)]
    path = write_parquet(tmp_path / "rows.parquet", rows)
    assert summarize(path) == [(i, turns(f"a{i}", f"b{i}"), 0) for i in range(600)]


def test_parquet_with_both_columns_and_with_neither(tmp_path):
    rows = [row("a", "b") | {"conversations": None}, share(("human", "c"), ("gpt", "d")) | {"messages": None}]
    assert summarize(write_parquet(tmp_path / "both.parquet", rows)) == [
        (0, turns("a", "b"), 0),
        (1, turns("c", "d"), 0),
    ]
    (bad,) = read_conversations(write_parquet(tmp_path / "neither.parquet", [{"text": "c"}]))
    assert (bad.reason, bad.detail) == ("no messages", "{'text': 'c'}")


def test_a_parquet_row_that_is_not_utf8_is_named_and_the_rest_goes_on(tmp_path):
    table = pa.Table.from_pylist([row("a", "b"), row("xyzxyz", "d"), row("e", "f")])
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"xyzxyz", b"xyz\xffyz"))
    assert summarize(path) == [(0, turns("a", "b"), 0), (1, "not UTF-8"), (2, turns("e", "f"), 0)]


def test_a_parquet_file_cut_off_is_refused_at_once(tmp_path):
    path = write_parquet(tmp_path / "rows.parquet", [row("a", "b")])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileFormatError, match=r"rows\.parquet"):
        read_conversations(path)


def test_a_parquet_file_damaged_inside_gives_the_rows_before(tmp_path):
    rows = [row(f"question {i}", f"answer {i}") for i in range(1024)]
    path = write_parquet(tmp_path / "rows.parquet", rows, row_group_size=256, compression="gzip")
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(2).column(0).dictionary_page_offset
    content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    found = list(read_conversations(path))
    assert [type(each) for each in found] == [Conversation] * 512 + [BadRow]
    assert (found[-1].place, found[-1].index, found[-1].reason) == ("row 513", 512, "damaged file")


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [b"\n", row("a", "b"), b" \r\n", b"{\n", b"\n"])
    assert [(found.place, found.index) for found in read_conversations(path)] == [("line 2", 0), ("line 4", 1)]


def test_an_empty_file_has_no_rows(tmp_path):
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst"):
        assert reasons(write_lines(tmp_path / name, [])) == []


def test_windows_line_ends_and_the_byte_order_mark_are_no_matter(tmp_path):
    content = b"\xef\xbb\xbf" + line(row("a", "b")).replace(b"\n", b"\r\n") * 2
    assert reasons(write_lines(tmp_path / "rows.jsonl", [content])) == ["", ""]


def test_a_line_that_is_not_utf8_is_named_and_the_rest_goes_on(tmp_path):
    latin = json.dumps(row("für", "b"), ensure_ascii=False).encode("latin-1") + b"\n"
    path = write_lines(tmp_path / "rows.jsonl", [row("a", "b"), latin, row("c", "d")])
    assert summarize(path) == [(0, turns("a", "b"), 0), (1, "not UTF-8"), (2, turns("c", "d"), 0)]
    assert r"f\xfcr" in list(read_conversations(path))[1].detail


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not JSON"), ("[" * 100_000, "nested too deep"), ("1" * 5000, "wrong type"), ("'a'", "not JSON")],
)
def test_a_line_that_is_no_row_is_named_and_the_rest_goes_on(tmp_path, content, reason):
    path = write_lines(tmp_path / "rows.jsonl", [content.encode() + b"\n", row("c", "d")])
    assert reasons(path) == [reason, ""]


def test_a_last_line_without_newline_is_a_line(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [row("a", "b"), line(row("c", "d")).rstrip()])
    assert reasons(path) == ["", ""]


@pytest.mark.parametrize("text", ["c", "ü"])
def test_wherever_a_last_line_is_cut_in_the_middle_it_is_said(tmp_path, text):
    whole = line(row(text, text)).rstrip()
    for n_bytes in range(1, len(whole)):
        found = list(read_conversations(write_lines(tmp_path / "rows.jsonl", [row("a", "b"), whole[:n_bytes]])))
        assert (found[1].place, found[1].reason) == ("line 2", "cut off")
    assert "not JSON" in found[1].detail
    assert repr(found[1].detail)[1:-1].startswith("in a last line without end")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("n_rows", [20, 3000])
def test_a_compressed_file_cut_off_gives_the_rows_before(tmp_path, suffix, n_rows):
    rows = [row(f"question {i} {'x' * (i % 50)}", f"answer {i * i}") for i in range(n_rows)]
    path = tmp_path / f"rows.jsonl{suffix}"
    # A member or frame for every ten rows, as a writer makes that appends.
    blocks = [b"".join(map(line, rows[i : i + 10])) for i in range(0, n_rows, 10)]
    packed = [gzip.compress(block) if suffix == ".gz" else compress_zstd(block) for block in blocks]
    path.write_bytes(b"".join(packed)[:-8])
    found = list(read_conversations(path))
    n_whole = len(found) - 1
    assert n_rows - 10 <= n_whole <= n_rows
    assert [list(each.messages) for each in found[:-1]] == [each["messages"] for each in rows[:n_whole]]
    assert (found[-1].index, found[-1].place, found[-1].reason) == (n_whole, f"line {n_whole + 1}", "cut off")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_wherever_a_compressed_file_is_cut_it_is_said(tmp_path, suffix):
    path = write_lines(tmp_path / f"rows.jsonl{suffix}", [line(row("a", "b")) + line(row("c", "d"))])
    content = path.read_bytes()
    for n_bytes in range(2, len(content)):
        path.write_bytes(content[:n_bytes])
        assert reasons(path)[-1] == "cut off", n_bytes


@pytest.mark.parametrize("n_rows", [3, 400])
def test_wherever_a_json_list_is_cut_off_the_rows_before_are_read(tmp_path, n_rows):
    rows = [row(f"question {i}", "answer " * (i % 20 + 1)) for i in range(n_rows)]
    path = tmp_path / "rows.json"
    content = json.dumps(rows).encode()
    for n_bytes in {1, 2, *range(5, len(content), max(1, len(content) // 50)), len(content) - 1}:
        path.write_bytes(content[:n_bytes])
        *whole, last = read_conversations(path)
        n_whole = content[:n_bytes].count(b"}]}")
        assert [list(each.messages) for each in whole] == [each["messages"] for each in rows[:n_whole]], n_bytes
        assert (last.reason, last.place) == ("cut off", f"row {n_whole + 1}"), n_bytes


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_not_compressed_as_its_name_says_is_damaged(tmp_path, suffix):
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(line(row("a", "b")))
    assert reasons(path) == ["damaged file"]


def test_a_compressed_file_damaged_inside_is_said(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl.gz", [row(f"a{i * i}", "b") for i in range(100)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert reasons(path)[-1] == "damaged file"


def test_an_error_of_the_disk_is_not_taken_for_a_damaged_file(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    rows = read_conversations(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        next(rows)


# What is refused at once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.jsonl.gz", "missing.json", "missing.parquet"])
def test_a_missing_file_is_refused_at_once(tmp_path, name):
    for source in (tmp_path / name, str(tmp_path / name), name):
        with pytest.raises(FileNotFoundError, match="missing"):
            read_conversations(source)


def test_what_cannot_be_a_hub_name_is_taken_for_a_path(tmp_path):
    for source in (str(tmp_path / "missing"), "./missing", "a/b/missing", "not a name"):
        with pytest.raises(FileNotFoundError, match="existing file"):
            read_conversations(source)


@pytest.mark.parametrize("name", ["rows.txt", "rows.csv", "rows", "rows.json.gz", "rows.parquet.zst", "rows.gz"])
def test_an_unknown_file_type_is_refused_at_once(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    for source in (path, str(path)):
        with pytest.raises(InvalidArgumentError, match=r"\.jsonl"):
            read_conversations(source)


def test_a_folder_is_refused_at_once(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    for source in (tmp_path, str(tmp_path / "rows.jsonl"), ""):
        with pytest.raises(InvalidArgumentError, match="file of type"):
            read_conversations(source)


@pytest.mark.parametrize("name", ["imdb", "nobody/nothing-2.1"])
def test_a_hub_name_out_of_reach_is_refused_at_once_with_what_to_do(monkeypatch, name):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidArgumentError, match="Check the name and the network") as caught:
        read_conversations(name, split="test", subset="small")
    assert name in str(caught.value)
    assert "'small'" in str(caught.value)
    assert "'test'" in str(caught.value)


def test_a_hub_name_is_streamed_with_its_split_and_subset(monkeypatch):
    asked = []

    def load_dataset(name, subset, *, split, streaming):
        asked.append((name, subset, split, streaming))
        return datasets.Dataset.from_list(ROWS[:1]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert summarize("owner/name", split="test", subset="small") == EXPECTED[:1]
    assert asked == [("owner/name", "small", "test", True)]


# Datasets and iterables -----------------------------------------------------------------------------------------


def test_dataset_objects_are_read():
    rows = [row("a", "b"), {"messages": None}, row("ü", "d", "e")]
    for dataset in (datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows).to_iterable_dataset()):
        assert summarize(dataset) == EXPECTED
        assert [found.place for found in read_conversations(dataset)] == ["row 1", "row 2", "row 3"]


def test_a_dataset_s_output_format_is_no_matter():
    dataset = datasets.Dataset.from_list([row("a", "b")]).with_format("numpy")
    assert summarize(dataset) == [(0, turns("a", "b"), 0)]
    assert summarize(dataset.to_iterable_dataset().with_format("numpy")) == [(0, turns("a", "b"), 0)]


def test_several_splits_are_refused():
    with pytest.raises(InvalidArgumentError, match="one split"):
        read_conversations(datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS[:1])))


def test_rows_are_taken_one_at_a_time():
    numbers = itertools.count()
    found = read_conversations(row(f"a{i}", "b") for i in numbers)
    assert next(numbers) == 0, "nothing is read before the first row is asked for"
    next(found)
    assert next(numbers) == 2


# Round trips and memory -----------------------------------------------------------------------------------------

separators = st.sampled_from(["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\ufeff"])
texts = st.lists(st.text() | separators, min_size=1)


@settings(max_examples=50)
@given(st.lists(texts), st.booleans(), st.sampled_from(["", ".gz", ".zst"]))
def test_any_texts_written_as_lines_come_back_as_they_were(tmp_path_factory, columns, is_ascii, suffix):
    rows = [row(*itertools.chain.from_iterable((text, f"{text}.") for text in texts)) for texts in columns]
    path = tmp_path_factory.mktemp("rows") / f"rows.jsonl{suffix}"
    lines = [json.dumps(each, ensure_ascii=is_ascii).encode() + b"\n" for each in rows]
    found = list(read_conversations(write_lines(path, lines)))
    assert [list(each.messages) for each in found] == [each["messages"] for each in rows]


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_value_anywhere_gives_a_row_and_no_error(content):
    for each in (content, {"messages": content}, {"conversations": content}, row("a", content)):
        assert read_one(each).index == 0


@pytest.mark.parametrize("n_bytes", [65535, 65536, 65537, 200_000])
def test_lines_longer_than_what_is_read_at_a_time_stay_whole(tmp_path, n_bytes):
    rows = [row("a", "b" * n_bytes), row("c", "d"), row("e", "f" * n_bytes)]
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst"):
        found = read_conversations(write_lines(tmp_path / name, rows))
        assert [list(each.messages) for each in found] == [each["messages"] for each in rows]


def read_unchecked(path):
    """Read with the modules as users have them: pytest's checks of annotations take most of the time and memory."""
    name = conversations.__name__
    checked = {other: module for other, module in sys.modules.items() if f"{other}.".startswith(f"{name}.")}
    finders = list(sys.meta_path)
    try:
        for other in checked:
            del sys.modules[other]
        sys.meta_path[:] = [finder for finder in finders if "jaxtyping" not in type(finder).__module__]
        return importlib.import_module(name).read_conversations(path)
    finally:
        sys.meta_path[:] = finders
        sys.modules.update(checked)
        persona_lens.conversations = conversations


def peak_of_reading(path):
    rows = read_unchecked(path)
    tracemalloc.start()
    try:
        n_read = sum(1 for _ in rows)
        return n_read, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_many_rows_are_not_held_in_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line(row("a", "b")) * 40_000)
    rows = read_unchecked(path)
    n_read = sum(1 for _ in itertools.islice(rows, 1000))
    blocks = sys.getallocatedblocks()
    for _ in rows:
        n_read += 1
        if n_read % 2_000 == 0:
            assert sys.getallocatedblocks() - blocks < 20_000, "a row is some ten blocks"
    assert n_read == 40_000


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_large_file_is_not_held_in_memory(tmp_path, suffix):
    path = write_lines(tmp_path / f"rows.jsonl{suffix}", [line(row("a" * 1000, "b" * 4000)) * 1000])
    n_read, peak = peak_of_reading(path)
    assert n_read == 1000
    assert peak < 2**20, "of 5 MB"


@pytest.mark.slow
def test_a_large_json_list_is_not_held_in_memory(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row("a" * 1000, "b" * 4000)] * 4000))
    n_read, peak = peak_of_reading(path)
    assert n_read == 4000
    assert peak < 2**20, "of 20 MB"


@pytest.mark.slow
def test_a_large_parquet_file_is_not_held_in_memory(tmp_path):
    rows = [row(f"question {i} " * 50, f"answer {i} " * 50) for i in range(4_000)]
    path = write_parquet(tmp_path / "rows.parquet", rows, row_group_size=500)
    del rows
    n_read, peak = peak_of_reading(path)
    assert n_read == 4_000
    assert peak < 2 * 2**20, "of 5 MB"
    before = pa.total_allocated_bytes()
    assert max(pa.total_allocated_bytes() - before for _ in read_unchecked(path)) < 4 * 2**20, "of Arrow's memory"
