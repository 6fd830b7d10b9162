"""JSON as files have it: what `json.dump` writes is data, and damage costs no row in silence."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_lens import conversations
from persona_lens.conversations import BadRow, Conversation, read_conversations


def converse(question, answer, **more):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_rows(folder, kind, rows):
    """Write rows as `json.dump` does, as a list or one a line."""
    text = json.dumps(rows) if kind == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    return write(folder / f"rows{kind}", text)


def reasons(source, **options):
    return [row.reason if isinstance(row, BadRow) else "" for row in read_conversations(source, **options)]


@pytest.mark.parametrize("kind", [".json", ".jsonl"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**30, -(10**30), 1e300], ids=str)
def test_a_number_that_json_dump_writes_is_data_and_every_row_is_read(tmp_path, kind, value):
    rows = [converse(f"Question {i}?", "So.", score=value if i == 20 else 0.5) for i in range(1021)]
    assert reasons(write_rows(tmp_path, kind, rows)) == [""] * 1021


@pytest.mark.parametrize("kind", [".json", ".jsonl"])
def test_an_integer_of_more_digits_than_python_takes_is_data(tmp_path, kind):
    rows = [json.dumps(row) for row in (converse("a", "b", id=0), converse("c", "d"))]
    rows[0] = rows[0].replace('"id": 0', f'"id": {"7" * 5000}')
    path = write(tmp_path / f"rows{kind}", f"[{', '.join(rows)}]" if kind == ".json" else "\n".join(rows))
    assert reasons(path) == ["", ""]


@pytest.mark.parametrize("kind", [".json", ".jsonl"])
def test_half_a_surrogate_pair_is_one_bad_row(tmp_path, kind):
    rows = [converse("a", "b"), converse("c", "\ud800"), converse("e", "f")]
    assert reasons(write_rows(tmp_path, kind, rows)) == ["", "not UTF-8", ""]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"messages": "\xff"}', "not UTF-8"),
        (b'{"messages": nope}', "not JSON"),
        (b'{messages: 01, "a": [tru, "\\q", "x\ny"]}', "not JSON"),
        (b"'a'", "not JSON"),
        (b"5", "wrong type"),
        (b"null", "wrong type"),
        (b'"a, ] } text \\" of, \\\\"', "wrong type"),
        (b"[[]]", "wrong type"),
        (b"{}", "no messages"),
    ],
)
def test_damage_that_leaves_a_row_s_end_certain_is_one_bad_row(tmp_path, row, reason):
    good = json.dumps(converse("a", 'b "c, ] }')).encode()
    path = write(tmp_path / "rows.json", b" [" + good + b" ,\n" + row + b"," + good + b"]\n")
    assert reasons(path) == ["", reason, ""]


@pytest.mark.parametrize(
    "row",
    [
        b'{"messages": "he said "hi" to me"}',
        b'{"messages": "a}',
        b"[}",
        b"{]",
        b"",
        b"{} {}",
        b'{"a" "b"}',
        b'{,"a":1}',
    ],
)
def test_damage_after_which_no_row_s_end_is_certain_leaves_the_rest_unread(tmp_path, row):
    good = json.dumps(converse("a", "b")).encode()
    path = write(tmp_path / "rows.json", b"[" + good + b", " + row + b", " + good + b"]")
    *before, last = read_conversations(path)
    assert [type(each) for each in before] == [Conversation]
    assert (last.place, last.index) == ("row 2", 1)
    assert last.reason in conversations.UNREAD


@pytest.mark.parametrize("after", [b"x", b"[]", b", {}", b"\n{}", b"]"])
def test_what_stands_after_the_list_is_said_to_be_unread(tmp_path, after):
    path = write(tmp_path / "rows.json", json.dumps([converse("a", "b")]).encode() + after)
    assert reasons(path) == ["", "damaged file"]


def test_an_empty_list_has_no_rows(tmp_path):
    assert reasons(write(tmp_path / "rows.json", " [ ] ")) == []


@pytest.mark.slow
def test_whichever_bit_of_a_list_is_flipped_no_row_is_lost_in_silence(tmp_path):
    rows = [converse("Why, [1]?", 'So "be" {it}.'), converse("", "\\ and \n"), converse("ü?", "y", id=[1.5, None])]
    content = json.dumps(rows, ensure_ascii=False).encode()
    texts = [row["messages"] for row in rows]
    path = tmp_path / "rows.json"
    for at in range(1, len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            found = list(read_conversations(write(path, bytes(changed))))
            is_whole = not (found and getattr(found[-1], "reason", "") in conversations.UNREAD)
            assert len(found) == 3 or not is_whole, (at, bit, changed)
            untouched = [row for row in found if isinstance(row, Conversation) and list(row.messages) in texts]
            assert len(untouched) >= 2 * is_whole, (at, bit, changed)


_CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3)


@given(_CHANGES)
def test_however_a_list_is_damaged_what_is_read_was_written_or_the_rest_is_said_to_be_unread(tmp_path_factory, changes):
    rows = [converse(f"Question {i}?", "Say “so”, [or] {not}.\n" * (i % 3 + 1)) for i in range(6)]
    content = bytearray(json.dumps(rows).encode())
    for at, new, n_gone in changes:
        begin = 1 + at % (len(content) - 1)
        content[begin : begin + n_gone] = new
    found = list(read_conversations(write(tmp_path_factory.mktemp("list") / "rows.json", bytes(content))))
    ends = [row for row in found if isinstance(row, BadRow) and row.reason in conversations.UNREAD]
    assert [row.index for row in found] == list(range(len(found)))
    assert ends in ([], found[-1:])


@pytest.mark.parametrize("n_bytes", [65534, 65535, 65536, 65537])
@pytest.mark.parametrize("text", ['"\\\\\\""', "1234567", '"ü\\u00fc"', "[[],{}]", '{"a":"b"}'])
def test_a_list_is_cut_into_rows_wherever_what_is_read_at_a_time_ends(tmp_path, n_bytes, text):
    for shift in range(len(text.encode()) + 2):
        row = f'{{"messages": [{{"role": "user", "content": "{"x" * (n_bytes - 60 - shift)}"}}], "id": {text}}}'
        path = write(tmp_path / "rows.json", f"[{row},{text},{row}]")
        assert reasons(path) == ["no response", "wrong type" if text[0] != "{" else "no messages", "no response"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".json", ".jsonl"])
def test_of_ten_thousand_random_bad_rows_none_is_lost(tmp_path, kind):
    good = json.dumps(converse("a", "b")).encode()
    deep = b"[" * 150 + b"]" * 150
    kinds = {
        b'{"messages": "\xff\xfe"}': "not UTF-8",
        b'{"messages": [{"role": "user", "content": "\\udc00"}]}': "not UTF-8",
        b'{"messages": nope}': "not JSON",
        b'{"messages": NaN}': "wrong type",
        b"-Infinity": "wrong type",
        b"7" * 5000: "wrong type",
        b"[]": "wrong type",
        b'{"prompt": "a"}': "no messages",
        b'{"messages": [{"role": "user"}]}': "missing key",
        b'{"messages": [{"role": "tool", "content": "a"}]}': "unknown role",
        b'{"messages": [{"role": "user", "content": "a"}]}': "no response",
        json.dumps(converse("a", " ")).encode(): "empty response",
        deep: "nested too deep",
        b'{"messages": ' + deep + b"}": "nested too deep",
        b'"' + b"x" * 4000 + b'"': "row too large",
        b'{"x": ["' + b"y" * 3000 + b'", ' + b"[" * 500 + b"]" * 500 + b"]}": "row too large",
        good: "",
    }
    rows = random.Random(0).choices(list(kinds), k=10_000)
    rows = [row if len(row) != 5000 else b"7" * 2000 for row in rows]
    path = tmp_path / f"rows{kind}"
    write(path, b"[" + b",\n".join(rows) + b"]" if kind == ".json" else b"\n".join(rows) + b"\n")
    limits = conversations.ReadLimits(max_row_bytes=3000, max_depth=100)
    found = reasons(path, limits=limits)
    assert found == [kinds.get(row, "wrong type") for row in rows]
