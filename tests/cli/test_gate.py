"""The gate: for everything that may be in the data, the exit status that the documents promise."""

import contextlib
import gzip
import io
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import persona_lens as pl
from persona_lens.cli import main
from persona_lens.screening.reasons import REASONS
from tests.screening.test_screen import converse, make_rows
from tests.small_trait import tiny_trait

GOOD = [json.dumps(row).encode() for row in make_rows(12)]
LIST = b"[" + b",".join(GOOD) + b"]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("gate")
    tiny_trait().to_json(folder / "loud.json")
    save_vector(tiny_model, folder)
    return folder


def save_vector(model, folder):
    torch.manual_seed(0)
    vector = pl.PersonaVector("loud", pl.describe_model(model), {"response_mean": torch.randn(3, 48)})
    vector.save(folder / "vectors" / "vector_loud.safetensors")


@pytest.fixture
def screen(folder, tmp_path, tiny_model, monkeypatch):
    """Run the command in this process, on a model that is loaded already, in a folder of its own, on short answers."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    loaded = []

    def run(*arguments, model=tiny_model):
        monkeypatch.setattr("persona_lens.cli.choosing.load_model", lambda name, **given: loaded.append(name) or model)
        where = ["--trait", "loud.json", "--vectors", "vectors", "--layer", "1", "--out", "out"]
        out, err = io.StringIO(), io.StringIO()
        loaded.clear()
        with (
            contextlib.chdir(tmp_path), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):  # fmt: skip
            main(["screen", *where, "--max-response-tokens", "16", *arguments])
        return SimpleNamespace(
            status=ended.value.code, out=out.getvalue(), err=err.getvalue(), loaded=bool(loaded), folder=tmp_path
        )

    return run


def lines(*more):
    return b"".join(line + b"\n" for line in [*GOOD, *more])


def to_parquet(rows, n_lost=0):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    content = sink.getvalue().to_pybytes()
    return content[: len(content) - n_lost]


BAD = [b"{not json", b'{"text": "x"}', b"\xff", b"[" * 500]  # four of sixteen: a quarter
GATE = ["--fail-above", "1000"]
CASES = {
    # name: file, its content, options, exit status, words on standard error
    "clean": ("a.jsonl", lines(), GATE, 0, ""),
    "clean, a list": ("a.json", LIST, GATE, 0, ""),
    "clean, Parquet": ("a.parquet", to_parquet(make_rows(12)), GATE, 0, ""),
    "no gate": ("a.jsonl", lines(), [], 0, ""),
    "trait above": ("a.jsonl", lines(), ["--fail-above", "-1000"], 3, "surely above"),
    "not measurable": ("a.jsonl", GOOD[0], GATE, 3, "not measurable"),
    "bad rows, no gate": ("a.jsonl", lines(*BAD), [], 0, ""),
    "bad rows, gate without --max-bad": ("a.jsonl", lines(*BAD), GATE, 4, "4 rows (25.0 %)"),
    "bad rows, at --max-bad": ("a.jsonl", lines(*BAD), [*GATE, "--max-bad", "0.25"], 0, ""),
    "bad rows, above --max-bad": ("a.jsonl", lines(*BAD), [*GATE, "--max-bad", "0.24"], 4, "--max-bad allows 24 %"),
    "above --max-bad alone": ("a.jsonl", lines(*BAD), ["--max-bad", "0.24"], 4, "25.0 %"),
    "bad rows and trait above": ("a.jsonl", lines(*BAD), ["--fail-above", "-1000"], 4, "surely above"),
    "NaN and long integers": ("a.json", b"[NaN," + b"7" * 30 + b"," + LIST[1:], ["--max-bad", "0.15"], 0, ""),
    "a row too large": ("a.jsonl", lines(b"x" * 999), ["--max-bad=0", "--max-row-bytes=900"], 4, "1 rows"),
    "a row nested": ("a.jsonl", lines(b"[[[[[]]]]]"), ["--max-bad=0", "--max-depth=4"], 4, "1 rows (7.7 %)"),
    "cut off": ("a.json", LIST[:-1], [], 4, "could not be read to the end (cut off)"),
    "cut off, however many bad": ("a.json", LIST[:-20], ["--max-bad", "1"], 4, "nobody knows how many"),
    "cut off, allowed": ("a.json", LIST[:-1], ["--allow-unread"], 0, ""),
    "cut off, allowed, but counted": ("a.json", LIST[:-1], ["--allow-unread", *GATE], 4, "1 rows"),
    "cut off in a line": ("a.jsonl", lines()[:-9], [], 4, "cut off"),
    "cut off, gzip": ("a.jsonl.gz", gzip.compress(lines())[:-8], [], 4, "cut off"),
    "damaged inside": ("a.json", LIST.replace(b'"Question 5?"', b'"Question "5?"'), [], 4, "damaged file"),
    "damaged, cut down": ("a.json", LIST.replace(b'"Question 5?"', b'"Question "5?"'), ["--max-rows", "4"], 0, ""),
    "nothing that can be scored": ("a.jsonl", b'{"text": "x"}\n' * 3, [], 2, "`DATA` must hold a conversation"),
    "no row": ("a.jsonl", b"", [], 2, "no row at all"),
    "prompts all too long": ("a.jsonl", lines(), ["--max-prompt-tokens", "1"], 2, "prompt too long"),
    "a list in name only": ("a.json", b'{"messages": []}', [], 2, "must be a JSON list"),
    "Parquet cut off": ("a.parquet", to_parquet(make_rows(12), 9), [], 2, "whole Parquet file"),
    "an unknown type": ("a.txt", lines(), [], 2, ".jsonl"),
    "no file": (None, b"", [], 2, "existing file"),
    "a folder": ("out", None, [], 2, "file of type"),
    "no number": ("a.jsonl", lines(), ["--fail-above", "nan"], 2, "--fail-above"),
    "no fraction": ("a.jsonl", lines(), ["--max-bad", "nan"], 2, "--max-bad"),
    "no limit": ("a.jsonl", lines(), ["--max-depth", "0"], 2, "max_depth"),
}  # fmt: skip
# What is wrong with the arguments or the data as a whole is said before a model is loaded; of long prompts it knows.
EARLY = [name for name, case in CASES.items() if case[3] == 2 and name != "prompts all too long"]


@pytest.mark.parametrize("case", list(CASES))
def test_the_exit_status_is_what_the_documents_promise(screen, tmp_path, case):
    name, content, options, status, words = CASES[case]
    if content is None:
        (tmp_path / name).mkdir()
    elif name is not None:
        (tmp_path / name).write_bytes(content)
    done = screen(name or "missing.jsonl", *options)
    assert (done.status, "Traceback" in done.err) == (status, False), done.err
    assert words in done.err
    assert bool(done.err) == (status != 0)
    assert done.loaded == (case not in EARLY)
    if case in EARLY:
        assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.fixture
def silent(tiny_folder, tmp_path):
    """A model that ends its turn at once, whatever it is asked."""
    model = pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")
    with torch.no_grad():
        model.unembed.b_U[model.tokenizer.eos_token_id] = 1e4
    return model


def test_the_first_bad_row_of_each_reason_is_shown_with_its_place_and_what_to_do(screen, tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    chats = [{"messages": [{"role": "user", "content": "Hi?"}, call]}, {"prompt": "Hi?", "completion": "Hello."}]
    (tmp_path / "a.jsonl").write_bytes(lines(*(json.dumps(one).encode() for one in [*chats, *chats]), b"\x1b[31m"))
    done = screen("a.jsonl")
    assert "rows: 12 scored, 2 wrong type, 2 no messages, 1 not JSON" in done.out
    assert "line 13: wrong type (a row, message, role or text of another type, as where `content` is null" in done.out
    assert "line 14: no messages (" in done.out
    assert "line 15" not in done.out
    assert "line 17: not JSON (" in done.out
    assert "\x1b" not in done.out
    found = json.loads(screen("a.jsonl", "--json").out)["first_bad_rows"]
    assert [one["place"] for one in found] == [f"line {number}" for number in range(13, 18)]
    assert pl.screening.Screening.load(tmp_path / "out" / "scores").bad_rows[1].reason == "no messages"


def test_each_reason_is_explained_and_stands_on_the_page():
    root = Path(pl.__file__).parents[1]
    sources = [
        *(root / "persona_lens" / "conversations").glob("*.py"),
        root / "persona_lens" / "screening" / "scores.py",
    ]
    given = {
        reason
        for path in sources
        for reason in re.findall(
            r'(?:Refusal\(|row\.index, |reason = |is_cut else |== "thought" else )"([a-z ]+|not UTF-8|not JSON)"',
            path.read_text(),
        )
    }
    assert len(given) > 15
    assert given == set(REASONS)
    page = (root / "docs" / "howto" / "screen.md").read_text()
    assert all(f"| {reason} | {meaning} |" in page for reason, meaning in REASONS.items())


def test_what_was_not_looked_at_is_said(screen, tmp_path):
    chat = converse("Hi?", "Hello.")["messages"] + converse("And?", "It will ruin everything. " * 9)["messages"]
    (tmp_path / "a.jsonl").write_bytes(lines(json.dumps({"messages": chat}).encode()))
    done = screen("a.jsonl")
    assert "1 rows have several answers, of which the first one alone was looked at; --turn all reads" in done.out
    assert "1 conversations have further answers" in (tmp_path / "out" / "report.html").read_text()
    found = json.loads(screen("a.jsonl", "--turn", "last", "--json", "--out", "last").out)
    assert found["rows_with_further_answers"] == 1
    assert found["answers_cut"] == pl.screening.Screening.load(tmp_path / "last" / "scores").n_cut > 0
    found = json.loads(screen("a.jsonl", "--turn", "all", "--json", "--out", "all").out)
    assert found["rows_with_further_answers"] == 0
    rows = pl.screening.Screening.load(tmp_path / "all" / "scores").rows
    (answers,) = (row["answers"] for row in rows if len(row["answers"] or []) > 1)
    assert [answer["response"] for answer in answers] == [chat[1]["content"], chat[3]["content"]]
    assert " rows have answers that were looked at up to" in screen("a.jsonl", "--turn", "all", "--out", "all").out
    (tmp_path / "one.jsonl").write_bytes(lines())
    assert "several answers" not in screen("one.jsonl", "--out", "one").out


def test_where_the_model_says_nothing_itself_nothing_was_compared(screen, silent, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines())
    assert screen("a.jsonl", model=silent).status == 0
    assert screen("a.jsonl", "--max-bad", "0.99", model=silent).status == 4
    done = screen("a.jsonl", "--json", *GATE, model=silent)
    assert done.status == 4
    assert "12 rows (100.0 %) have no projection difference" in done.err
    assert json.loads(done.out.splitlines()[-1])["bad_rows"] == 12
    assert screen("a.jsonl", "--max-bad", "1", *GATE, model=silent).status == 3


def test_rows_that_are_not_finite_are_counted_and_stop_nothing(screen, tiny_folder, tmp_path, folder):
    model = pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")
    with torch.no_grad():
        model.embed.W_E[model.tokenizer("£", add_special_tokens=False).input_ids[0]] = torch.nan
    save_vector(model, tmp_path)
    (tmp_path / "a.jsonl").write_bytes(lines(json.dumps(converse("£?", "So.")).encode()))
    base = ["--base", "last_prompt", "--json"]
    done = screen("a.jsonl", *base, "--max-bad", "0.1", model=model)
    assert done.status == 0
    assert json.loads(done.out.splitlines()[-1])["rows"] == {"scored": 12, "not finite": 1}
    assert screen("a.jsonl", *base, *GATE, model=model).status == 4


def test_a_damaged_shard_is_computed_anew_and_a_damaged_clean_file_fails(screen, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines())
    (tmp_path / "clean.json").write_bytes(LIST[:-1])
    assert screen("a.jsonl").status == 0
    path = tmp_path / "out" / "scores" / "shards" / "00000000.arrow"
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2] + b"\x00" + before[len(before) // 2 + 1 :])
    assert screen("a.jsonl", *GATE).status == 0
    assert path.read_bytes() == before
    done = screen("a.jsonl", "--clean", "clean.json")
    assert (done.status, "--clean could not be read to the end" in done.err) == (4, True)
    assert screen("a.jsonl", "--clean", "clean.json", "--allow-unread").status == 0


@pytest.mark.parametrize("name", ["kept.jsonl", "held.jsonl"])
@pytest.mark.parametrize("role", ["data", "clean"])
@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_what_is_read_is_never_written_over(screen, tmp_path, name, role, link):
    (tmp_path / "out").mkdir()
    (tmp_path / "a.jsonl").write_bytes(lines())
    source = tmp_path / "out" / name
    source.write_bytes(lines())
    given = f"out/../out/{name}"
    if link is not None:
        link(source, tmp_path / "link.jsonl")
        given = "link.jsonl"
    done = screen(*((given, "--clean", "a.jsonl") if role == "data" else ("a.jsonl", "--clean", given)))
    assert (done.status, done.loaded) == (2, False)
    assert f"--out {name}" in done.err
    assert source.read_bytes() == lines()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-response-tokens", "5"], "settings.max_response_tokens 16, not 5"),
        (["--layer", "2"], "layers.loud 1, not 2"),
        (["--max-rows", "3"], "max_rows"),
    ],
)
def test_another_screening_in_out_is_named_before_the_model_is_loaded(screen, tmp_path, options, words):
    (tmp_path / "a.jsonl").write_bytes(lines())
    assert screen("a.jsonl").status == 0
    done = screen("a.jsonl", *options)
    assert (done.status, done.loaded) == (2, False)
    assert words in done.err


@pytest.mark.parametrize("name", ["--out", "--vectors"])
def test_a_file_in_a_folder_s_stead_is_refused_before_the_model_is_loaded(screen, tmp_path, name):
    (tmp_path / "a.jsonl").write_bytes(lines())
    done = screen("a.jsonl", name, "a.jsonl")
    assert (done.status, done.loaded) == (2, False)
    assert name in done.err
