import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from choreographer.browsers.chromium import Chromium

import persona_lens as pl
from persona_lens.evaluation.sweep import LayerChoice
from persona_lens.statistics import Interval
from tests.experiments.scripts import (
    ROOT,
    environment,
    environment_with_browser,
    read_result,
    run_script,
    save_talkative,
)
from tests.small_trait import tiny_trait

pytestmark = [pytest.mark.slow, pytest.mark.versions]  # whole scripts, each run as a user runs it

RESULTS = [
    "layer_sweep_loud.json",
    "layer_sweep_loud.html",
    "layer_sweep_loud_responses.txt",
    "vector_loud.safetensors",
    "layer_sweep_loud_fresh.html",
]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """The script on a tiny random model and a small trait: every step is real, nothing means anything."""
    folder = tmp_path_factory.mktemp("sweep")
    trait = folder / "loud.json"
    tiny_trait().to_json(trait)
    return folder, ["--trait", str(trait), "--model", save_talkative(folder / "model"), "--tiny", "--dtype", "float32"]


def command(setting, name, *more):
    folder, arguments = setting
    script = str(ROOT / "experiments" / "layer_sweep.py")
    where = ["--out", str(folder / name), "--runs", str(folder / f"{name}-runs")]
    return [sys.executable, script, *arguments, *where, *more]


def run(setting, name, *more, **variables):
    return run_script(command(setting, name, *more), env=environment(**variables))


@pytest.fixture(scope="module")
def model(setting):
    return pl.load_model(setting[1][3], dtype="float32")


@pytest.fixture(scope="module")
def whole(setting):
    done = run_script(command(setting, "whole"), env=environment_with_browser())
    assert done.returncode == 0, done.stderr
    return setting[0] / "whole", done


def test_a_run_writes_results_figure_and_responses(whole):
    folder, done = whole
    content = json.loads((folder / RESULTS[0]).read_text())
    assert content["config"]["seed"] == 0
    assert content["config"]["versions"]["torch"]
    assert content["sweep"]["layers"] == [0]
    assert content["vector"]["counts"]["pairs"] == 8
    assert "Plotly.newPlot" in (folder / RESULTS[1]).read_text()
    assert "Steered:" in (folder / RESULTS[2]).read_text()
    assert (folder / RESULTS[3]).exists()
    assert "layer_sweep_loud.html" in done.stdout
    there = bool(Chromium.find_browser(skip_local=False))
    assert [(folder / name).with_suffix(".png").exists() for name in (RESULTS[1], RESULTS[4])] == [there] * 2


def test_a_run_that_was_killed_goes_on_and_writes_what_an_uninterrupted_one_writes(setting, whole):
    for shards in (1, 3):
        runs = setting[0] / "killed-runs"
        process = subprocess.Popen(
            command(setting, "killed"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 200
        while len(list(runs.rglob("*.safetensors"))) < shards and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    assert kept
    assert run(setting, "killed").returncode == 0
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    for name in RESULTS:
        assert (setting[0] / "killed" / name).read_bytes() == (whole[0] / name).read_bytes(), name


def test_replot_draws_the_same_figure_from_the_file_without_a_model(setting, whole):
    before = (whole[0] / RESULTS[1]).read_bytes()
    (whole[0] / RESULTS[1]).unlink()
    done = run(setting, "whole", "--replot", "--model", "nobody/has-this-model")
    assert done.returncode == 0, done.stderr
    assert (whole[0] / RESULTS[1]).read_bytes() == before


def test_without_a_browser_a_line_says_so_and_the_page_is_written(setting, whole):
    page = whole[0] / RESULTS[1]
    picture = page.with_suffix(".png")
    page.unlink()
    picture.unlink(missing_ok=True)
    done = run(setting, "whole", "--replot", BROWSER_PATH="/no/browser", PATH="/nowhere", HOME="/nowhere")
    assert done.returncode == 0, done.stderr
    assert "no Chrome or Chromium found" in done.stdout
    assert page.exists()
    assert not picture.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--trait", "nobody"], "evil"), (["--model", "nobody/has-this-model"], "load_model"), (["--seed", "x"], "seed")],
)
def test_bad_arguments_end_with_what_to_do(setting, more, words):
    done = run(setting, "bad", *more)
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
    assert not (setting[0] / "bad").exists()


def test_the_effect_is_measured_on_questions_that_the_choice_was_not_made_on(whole):
    content = json.loads((whole[0] / RESULTS[0]).read_text())
    assert content["sweep"]["questions"] == ["Why?", "What for?"]
    assert content["responses"]["questions"] == ["When?", "Which one?"]


def test_the_text_shows_each_questions_unsteered_and_steered_response(whole):
    content = read_result(whole[0] / RESULTS[0])
    text = (whole[0] / RESULTS[2]).read_text()
    found = content["responses"]
    plain, steered = (found["responses"][found["conditions"].index(one)] for one in ("unsteered", "sampled vector"))
    for question, (one,), (two,) in zip(found["questions"], plain, steered, strict=True):
        assert f"Question:  {question}\nUnsteered: {one.strip()}\nSteered:   {two.strip()}\n" in text
    assert plain != steered


def test_a_trait_without_written_examples_has_one_judge_and_its_titles_say_that_nobody_measured_it(whole):
    content = json.loads((whole[0] / RESULTS[0]).read_text())
    assert (content["source"], content["validations"]) == ("sampled", [])
    assert list(content["scores"]) == ["likelihood judge (proxy)"]
    assert list(content["nulls"]) == ["random, equal coherence"]  # there are no written pairs whose labels to shuffle
    for page in (RESULTS[1], RESULTS[4]):
        assert "Judge not validated for loud" in (whole[0] / page).read_text()


def test_a_trait_with_written_examples_is_read_by_judges_that_were_measured(setting):
    folder, (_, _, *arguments) = setting
    done = run((folder, ["--trait", "formality", *arguments]), "written")
    assert done.returncode == 0, done.stderr
    content = json.loads((setting[0] / "written" / "layer_sweep_formality.json").read_text())
    assert content["source"] == "written"
    assert [one["trait"] for one in content["validations"]] == ["formality"] * 3
    assert list(content["nulls"]) == ["shuffled labels", "random, equal coherence"]
    chosen_by = content["sweep"]["judge"]
    assert chosen_by == next(iter(content["scores"]))
    assert "layer" in chosen_by
    trait = content["config"]["trait"]
    first = pl.traits.load_written_examples("formality", "training")[0].question
    assert content["sweep"]["questions"] == [*trait["evaluation_questions"][0::2], first]
    assert not set(content["sweep"]["questions"]) & set(content["responses"]["questions"])
    assert len(content["sweep"]["null_scores"]) == 2
    assert content["system_prompt"]["score"]["estimate"] is not None


@pytest.fixture
def script(monkeypatch):
    """The script as a module, so that its steps can be watched."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    spec = importlib.util.spec_from_file_location("layer_sweep_script", ROOT / "experiments" / "layer_sweep.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def sweep(script, model, folder, seed=0):
    arguments = script.Arguments(tiny=True, seed=seed, folder=folder / "out", runs=folder / "runs")
    return script.run(model, tiny_trait(), arguments.pick(script.PROFILES), arguments)


def test_another_seed_is_another_run_with_other_responses(script, model, tmp_path):
    first, other, again = (sweep(script, model, tmp_path, seed) for seed in (0, 1, 0))
    assert len(list((tmp_path / "runs").iterdir())) == 4  # each beside the judges that it shares with other scripts
    assert first.to_json() == again.to_json()
    assert first.sweep.responses != other.sweep.responses
    assert not first.sweep.scores.equal(other.sweep.scores)


@pytest.mark.parametrize(
    ("chosen", "folder"),
    [
        ({}, "figures"),
        ({"tiny": True}, "figures/tiny"),
        ({"model": "Qwen/Qwen2.5-7B-Instruct"}, "figures/Qwen2.5-7B-Instruct"),
        ({"tiny": True, "folder": Path("mine")}, "mine"),
        ({"profile": "brief"}, "figures/brief"),
        ({"profile": "brief", "tiny": True}, "figures/tiny"),
        ({"profile": "paper"}, "figures"),
    ],
)
def test_no_trial_and_no_other_model_writes_over_the_bundled_models_results(script, chosen, folder):
    assert script.Arguments(**chosen).out == Path(folder)


def test_a_finished_run_computes_nothing_again(script, model, tmp_path, monkeypatch):
    first = sweep(script, model, tmp_path)
    for name in (
        "evaluation.conditions.sample_rollouts", "judges.likelihood.sample_rollouts",
        "vectors.contrasts.sample_recorded_rollouts",
    ):  # fmt: skip
        monkeypatch.setattr(f"persona_lens.{name}", None)
    assert sweep(script, model, tmp_path).to_json() == first.to_json()


@pytest.mark.parametrize("is_any_coherent", [True, False])
def test_the_coherent_choice_is_confirmed_and_the_highest_score_only_where_none_is(
    script, model, tmp_path, monkeypatch, is_any_coherent
):
    point = Interval(1.0, 1.0, 1.0)
    coherent, best = (LayerChoice("made", 0, coefficient, point, point) for coefficient in (1.0, 2.0))
    monkeypatch.setattr(
        pl.evaluation.SweepResult, "choose_coherent", lambda self, *_: coherent if is_any_coherent else None
    )
    monkeypatch.setattr(pl.evaluation.SweepResult, "choose_by_score", lambda self: best)
    found = sweep(script, model, tmp_path)
    assert found.choice.coefficient == (1.0 if is_any_coherent else 2.0)
