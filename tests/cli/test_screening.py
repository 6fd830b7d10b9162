"""The command, run as a user runs it, on a tiny model with a small trait."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import persona_lens as pl
from persona_lens.cli import choosing, main
from persona_lens.models.loading import EMBEDDED_MODEL
from tests.screening.test_screen import make_rows
from tests.small_trait import tiny_trait


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("cli")
    tiny_trait().to_json(folder / "loud.json")
    model = pl.load_model(tiny_folder("llama"), device="cpu")
    torch.manual_seed(0)
    vector = pl.PersonaVector("loud", pl.describe_model(model), {"response_mean": torch.randn(3, 48)})
    vector.save(folder / "vectors" / "vector_loud.safetensors")
    for name, rows in (("data", make_rows(12)), ("clean", make_rows(30)[12:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, tiny_folder("llama")


def run(setting, *arguments, vectors="vectors"):
    """Run the command in this process, which saves starting Python each time."""
    folder, model = setting
    where = ["--model", model, "--vectors", vectors, "--layer", "1"]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):  # fmt: skip
        main(["screen", *arguments, *where])
    return SimpleNamespace(returncode=ended.value.code, stdout=out.getvalue(), stderr=err.getvalue())


def test_the_installed_command_teaches():
    command = Path(sys.executable).with_name("persona-lens")
    done = subprocess.run([command, "screen", "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for word in ("--trait", "Exit status", "persona-lens screen chats.jsonl"):
        assert word in done.stdout


def test_scores_report_and_both_files_are_written_and_a_second_run_does_it_over(setting):
    arguments = ["data.jsonl", "--trait", "loud.json", "--out", "out", "--clean", "clean.jsonl", "--quantile", "0.6"]
    done = run(setting, *arguments)
    assert done.returncode == 0, done.stderr
    out = setting[0] / "out"
    kept, held = ((out / name).read_text().splitlines() for name in ("kept.jsonl", "held.jsonl"))
    assert len(kept) + len(held) == 12
    assert kept
    assert held
    found = pl.screening.Screening.load(out / "scores")
    limit = pl.screening.Screening.load(out / "clean").threshold("loud", 0.6)
    assert len(kept) == int((found.values("loud") <= limit).sum())
    assert "loud: the most extreme" in (out / "report.html").read_text()
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/shards/*.arrow")}
    assert run(setting, *arguments).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/shards/*.arrow")} == times
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_a_judge_alone_holds_back_what_it_scores_above_fifty(setting):
    done = run(setting, "data.jsonl", "--trait", "loud.json", "--out", "judged", "--judge")
    assert done.returncode == 0, done.stderr
    lines = [(setting[0] / "judged" / name).read_text().splitlines() for name in ("kept.jsonl", "held.jsonl")]
    assert sum(map(len, lines)) == 12
    assert all("judge of loud" in json.loads(line)["reason"] for line in lines[1])
    model = pl.load_model(setting[1], device="cpu")
    judge = pl.judges.calibrate_likelihood_judge(
        model, tiny_trait(), sampling=pl.Sampling(max_new_tokens=24, temperature=0.7)
    )
    turns = [json.loads(line)["messages"] for line in lines[0]]
    scores = judge.score([one[0]["content"] for one in turns], [one[1]["content"] for one in turns])
    assert all(found.score <= 50 for found in scores)


def test_a_dataset_above_the_limit_ends_with_its_own_exit_status(setting):
    low = run(setting, "data.jsonl", "--trait", "loud.json", "--out", "limit", "--fail-above", "-1000")
    assert low.returncode == 3
    assert "surely above" in low.stderr
    (setting[0] / "bad.jsonl").write_text((setting[0] / "data.jsonl").read_text() + "{\n" * 4)
    arguments = ["bad.jsonl", "--trait", "loud.json", "--out", "bad", "--max-bad"]
    assert run(setting, *arguments, "0.2").returncode == 4
    assert run(setting, *arguments, "0.3").returncode == 0


def test_what_cannot_be_measured_does_not_pass_for_harmless(setting):
    (setting[0] / "single.jsonl").write_text((setting[0] / "data.jsonl").read_text().splitlines()[0] + "\n")
    done = run(setting, "single.jsonl", "--trait", "loud.json", "--out", "single", "--fail-above", "1000")
    assert done.returncode == 3
    assert "not measurable" in done.stderr


def test_a_dataset_below_the_limit_passes(setting):
    assert run(setting, "data.jsonl", "--trait", "loud.json", "--out", "limit", "--fail-above", "1000").returncode == 0


def test_a_vector_of_the_trait_as_it_was_before_is_refused(setting):
    folder, _ = setting
    vector = pl.PersonaVector.load(folder / "vectors" / "vector_loud.safetensors")
    old = replace(vector, provenance={"trait": "0" * 16})
    old.save(folder / "old" / "vector_loud.safetensors")
    done = run(setting, "data.jsonl", "--trait", "loud.json", "--out", "never", vectors="old")
    assert done.returncode == 2
    assert "Remove vector_loud.safetensors" in done.stderr
    assert not (folder / "never").exists()


def test_a_vector_of_ones_own_needs_no_trait_but_for_a_judge(setting):
    folder, _ = setting
    shutil.copy(folder / "vectors" / "vector_loud.safetensors", folder / "vectors" / "vector_pessimism.safetensors")
    done = run(setting, "data.jsonl", "--trait", "pessimism", "--trait", "loud.json", "--out", "own")
    assert done.returncode == 0, done.stderr
    found = pl.screening.Screening.load(folder / "own" / "scores")
    assert found.traits == ("pessimism", "loud")
    assert found.measure("pessimism") == found.measure("loud")
    judged = run(setting, "data.jsonl", "--trait", "pessimism", "--out", "never", "--judge")
    assert (judged.returncode, "leave --judge out" in judged.stderr) == (2, True)
    near = run(setting, "data.jsonl", "--trait", "pesimism", "--out", "never")
    assert (near.returncode, "Did you mean pessimism?" in near.stderr) == (2, True)
    answers = run(setting, "data.jsonl", "--trait", "pess.jsonl", "--out", "never")
    assert answers.returncode == 2
    assert "extract --trait pess.jsonl --out vectors/vector_pess.safetensors" in answers.stderr
    assert not (folder / "never").exists()


def test_only_the_embedded_model_is_sampled_cool(setting, monkeypatch, tmp_path):
    folder, name = setting
    vector = pl.PersonaVector.load(folder / "vectors" / "vector_loud.safetensors")
    used = []
    monkeypatch.setattr(choosing, "extract_persona_vector", lambda *_, sampling, run: used.append(sampling) or vector)
    model = pl.load_model(name, device="cpu")
    for known_as in (EMBEDDED_MODEL, "any/other-model"):
        model.cfg.model_name = known_as
        choosing.find_vector(model, tiny_trait(), tmp_path / known_as)
    assert used == [pl.Sampling(max_new_tokens=48, temperature=0.7), pl.Sampling()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jsonl", "--trait", "loud.json", "--out", "never"], "nowhere.jsonl"),
        (["data.jsonl", "--trait", "nobody", "--out", "never"], "evil"),
    ],
)
def test_a_wrong_argument_ends_with_2_and_what_to_do(setting, arguments, words):
    done = run(setting, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (setting[0] / "never").exists()
