"""Hostile files and paths: each command says in one message what is wrong, with status 2, and shows no traceback."""

import importlib
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

import persona_lens as pl
from tests.cli.test_commands import run
from tests.small_trait import tiny_trait

DEEP = b"[" * 100_000
LONG = "x" * 300


def written_rows(n=4):
    kinds = ("ordinary", "mild", "overt", "opposite", "style")
    return [
        {"half": half, "question": f"{half} {i}?", **{kind: f"A {kind} answer, number {i}." for kind in kinds}}
        for half in ("training", "judging")
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def good(tmp_path_factory, tiny_folder):
    """What is not hostile: a trait, written answers, a vector, a model."""
    folder = tmp_path_factory.mktemp("good")
    tiny_trait().to_json(folder / "loud.json")
    (folder / "loud.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written_rows()))
    model = pl.load_model(tiny_folder("llama"), device="cpu")
    vector = pl.PersonaVector("loud", pl.describe_model(model), {"response_mean": torch.ones(3, 48)})
    vector.save(folder / "loud.safetensors")
    return SimpleNamespace(
        trait=folder / "loud.json",
        examples=folder / "loud.jsonl",
        vector=folder / "loud.safetensors",
        model=tiny_folder("llama"),
    )


def header(metadata):
    text = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(text)) + text


def steer(path):
    return ["steer", "Who?", "--vector", path, "--layer", 1, "--coefficient", 1, "--model", "{model}"]


VECTORS = {
    "empty": b"",
    "text": b"not a vector",
    "cut off": None,
    "a huge header": struct.pack("<Q", 2**62) + b"{}",
    "lists in lists for a header": struct.pack("<Q", len(DEEP)) + DEEP,
    "another's": safetensors.torch.save({"x": torch.ones(2)}),
    "lists in lists for a record": header({"persona_lens": DEEP.decode()}),
    "a list for a record": header({"persona_lens": "[1]"}),
    "another record": header({"persona_lens": '{"format": "persona-lens-vector", "version": 1}'}),
    "a later version": header({"persona_lens": '{"format": "persona-lens-vector", "version": 99}'}),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_that_is_none(good, tmp_path, name):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(good.vector.read_bytes()[:-9] if VECTORS[name] is None else VECTORS[name])
    for arguments in (steer(path), ["sweep", "--trait", good.trait, "--vector", path, "--out", tmp_path / "out"]):
        check(run(*(str(one).format(model=good.model) for one in arguments)), "hostile.safetensors")
    assert not (tmp_path / "out").exists()


TRAITS = {
    "empty.json": b"",
    "cut.json": b'{"name": "lo',
    "list.json": b"[]",
    "deep.json": DEEP,
    "types.json": b'{"name": 1, "description": [], "instruction_pairs": {}, "extraction_questions": "Why?", '
    b'"evaluation_questions": [1], "rubric": null}',
    "latin.json": '{"name": "é"}'.encode("latin-1"),
    "other.json": b'{"format": "SweepResult", "version": 1}',
    "number.json": b"9" * 5000,
    "empty.jsonl": b"",
    "cut.jsonl": b'{"half": "training", "que',
    "deep.jsonl": DEEP,
    "other.jsonl": b'{"messages": []}\n',
    "zeros.jsonl": bytes(1000),
}


@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("command", ["extract", "sweep", "validate"])
def test_a_trait_or_written_answers_that_are_none(good, tmp_path, command, name):
    path = tmp_path / name
    path.write_bytes(TRAITS[name])
    out = [] if command == "validate" else ["--out", tmp_path / "out"]
    ways = [["--trait", path]] if name.endswith(".json") else [["--trait", good.trait, "--examples", path]]
    ways += [["--trait", path]] if command == "extract" else []
    for way in ways:
        check(run(command, *way, *out, "--model", good.model), name)
    assert not (tmp_path / "out").exists()


def break_model(folder, how):
    """Do one thing to a model's folder."""
    names = {"config": "config.json", "weights": "model.safetensors", "tokenizer": "tokenizer.json"}
    names |= {"tokenizer's config": "tokenizer_config.json"}
    what, _, way = how.partition(": ")
    path = folder / names[what]
    if way == "missing":
        path.unlink()
    elif way == "a folder":
        path.unlink()
        path.mkdir()
    elif way == "cut off":
        path.write_bytes(path.read_bytes()[:-20])
    elif way.startswith("{"):
        path.write_text(json.dumps(json.loads(path.read_text()) | json.loads(way)))
    else:
        path.write_bytes({"empty": b"", "junk": b"junk", "list": b"[]", "deep": DEEP, "zeros": bytes(4096)}[way])


MODELS = [
    *(f"config: {way}" for way in ("missing", "a folder", "empty", "junk", "list", "deep", "zeros")),
    'config: {"model_type": "unheard-of"}',
    'config: {"model_type": 5}',
    'config: {"hidden_size": "48"}',
    'config: {"hidden_size": 49}',
    'config: {"hidden_size": -1}',
    'config: {"num_attention_heads": 0}',
    'config: {"vocab_size": 100}',
    *(f"weights: {way}" for way in ("missing", "a folder", "empty", "junk", "cut off", "zeros")),
    *(f"tokenizer: {way}" for way in ("missing", "a folder", "empty", "junk", "list", "deep", "cut off")),
    *(f"tokenizer's config: {way}" for way in ("empty", "junk", "list", "deep")),
    'tokenizer\'s config: {"chat_template": 5}',
    'tokenizer\'s config: {"chat_template": "{% for %}"}',
]


@pytest.mark.parametrize("how", MODELS)
def test_a_model_that_is_none(good, tmp_path, how):
    folder = tmp_path / "hostile-model"
    shutil.copytree(good.model, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            json.loads((folder / "tokenizer_config.json").read_text())
            | {"chat_template": (pl.load_model(good.model).tokenizer.chat_template)}
        )
    )
    break_model(folder, how)
    done = run("extract", "--trait", good.examples, "--out", tmp_path / "out.safetensors", "--model", folder)
    check(done, "hostile-model" if "chat_template" not in how else "template")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "model",
    ["", " ", ".", "no/such/folder", "./nowhere", LONG, "a\nb/c", "nowhere.gguf", "{text}.gguf", "{text}", "a/b/"],
)
def test_a_model_that_is_nowhere(good, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    for name in ("text", "text.gguf"):
        (tmp_path / name).write_text("no model")
    done = run("extract", "--trait", good.examples, "--out", "x", "--model", model.format(text=tmp_path / "text"))
    check(done, "model")


OUTS = {
    "a folder": "folder",
    "below a file": "file/x.safetensors",
    "below a file's folder": "file/deep/x.safetensors",
    "an over-long name": LONG,
    "an over-long folder": f"{LONG}/x.safetensors",
    "a path of ten thousand characters": "/".join(["abcdefghi"] * 1000),
    "no folder that may be made": "/proc/nowhere/x.safetensors",
    "nothing": "",
}


@pytest.mark.parametrize("out", OUTS.values(), ids=OUTS.keys())
@pytest.mark.parametrize("command", ["extract", "sweep", "demo"])
def test_a_place_where_nothing_can_be_written_is_refused_before_a_model_is_loaded(
    good, tmp_path, monkeypatch, command, out
):
    monkeypatch.chdir(tmp_path)
    module = "demo" if command == "demo" else "choosing"
    monkeypatch.setattr(f"persona_lens.cli.{module}.load_model", lambda *name, **given: pytest.fail("loaded"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    if command == "sweep" and out in ("folder", ""):
        out = "file"
    trait = ["--trait", "evil"] if command == "demo" else ["--trait", good.trait]
    check(run(command, *trait, "--out", out), "")
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.fixture
def read_only_folder(monkeypatch):
    """A folder that whoever asks may read and not write; root asks as nobody."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        importlib.import_module("encodings.utf_8_sig")  # which nobody may not read where Python lies in root's home
        os.seteuid(65534)
        if not os.access(pl.__path__[0], os.R_OK | os.X_OK, effective_ids=True):
            os.seteuid(user)
            pytest.skip("this clone lies in a folder that nobody but root may enter")
    yield folder
    os.seteuid(user)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("command", ["extract", "sweep", "demo"])
def test_a_read_only_folder_is_refused_before_a_model_is_loaded(read_only_folder, monkeypatch, command):
    module = "demo" if command == "demo" else "choosing"
    monkeypatch.setattr(f"persona_lens.cli.{module}.load_model", lambda *name, **given: pytest.fail("loaded"))
    out = "new" if command == "sweep" else "new.safetensors"
    check(run(command, "--trait", "evil", "--out", read_only_folder / out), "may be written")
    assert list(read_only_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["extract", "--trait", "{trait}", "--out", "{trait}"], "--trait"),
        (["extract", "--trait", "{examples}", "--out", "{examples}"], "--trait"),
        (["extract", "--trait", "{trait}", "--examples", "{examples}", "--out", "{examples}"], "--examples"),
        (["sweep", "--trait", "{trait}", "--vector", "{out}/vector.safetensors", "--out", "{out}"], "--vector"),
    ],
)
def test_what_is_read_is_never_written_over(good, tmp_path, arguments, name):
    (tmp_path / "out").mkdir()
    shutil.copy(good.vector, tmp_path / "out" / "vector.safetensors")
    names = {key: shutil.copy(getattr(good, key), tmp_path) for key in ("trait", "examples")}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = run(*(one.format(out=tmp_path / "out", **names) for one in arguments), "--model", good.model)
    check(done, f"must be another file than `{name}`")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("arguments", [["steer", "Who?", "--vector"], ["extract", "--out", "x", "--trait"]])
@pytest.mark.parametrize("what", ["folder", "pipe", "long"])
def test_what_is_no_file_to_read(tmp_path, monkeypatch, arguments, what):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{what}.json"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path = tmp_path / f"{LONG}.json"
    check(run(*arguments, path), path.name[:20])


def check(done, words):
    """Status 2, one short message that names what is wrong, no traceback."""
    assert done.status == 2, done
    assert words in done.err
    assert "Traceback" not in done.err
    assert 10 < len(done.err) < 2500
    assert done.out == ""
