import json
import sys

import pytest

from tests.experiments.scripts import ROOT, environment, run_script
from tests.small_trait import tiny_trait

pytestmark = pytest.mark.slow  # whole scripts, each run as a user runs it

RESULTS = ["monitoring_loud.json", "monitoring_loud.html"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory, roomy_folder):
    folder = tmp_path_factory.mktemp("monitoring")
    tiny_trait().to_json(folder / "loud.json")
    (folder / "prompts.json").write_text(json.dumps({"loud": ["Be mute.", "Be <calm>.", "Shout now!", "Not asked."]}))
    return folder, roomy_folder


def command(setting, name, *more):
    folder, model = setting
    return [
        sys.executable, str(ROOT / "experiments" / "monitoring.py"), "--trait", str(folder / "loud.json"),
        "--model", model, "--tiny", "--dtype", "float32", "--prompts", str(folder / "prompts.json"),
        "--out", str(folder / name), "--runs", str(folder / f"{name}-runs"), *more,
    ]  # fmt: skip


def run(setting, name, *more):
    return run_script(command(setting, name, *more), env=environment())


@pytest.fixture(scope="module")
def whole(setting):
    (setting[0] / "whole").mkdir()
    # A random model keeps no pair of rollouts, so a vector is laid where layer_sweep.py would have left it.
    import torch

    import persona_lens as pl

    info = pl.describe_model(pl.load_model(setting[1], dtype="float32", device="cpu"))
    torch.manual_seed(0)
    provenance = {"seed": 0, "rollouts": 1, "max_new_tokens": 6, "temperature": 0.7}
    vector = pl.PersonaVector(
        "loud", info, {"response_mean": torch.randn(info.n_layers, info.d_model)}, provenance=provenance
    )
    for name in ("whole", "killed"):
        vector.save(setting[0] / name / "vector_loud.safetensors")
    done = run(setting, "whole")
    assert done.returncode == 0, done.stderr
    return setting[0] / "whole"


def test_a_run_writes_projections_scores_correlations_and_figure(whole):
    content = json.loads((whole / RESULTS[0]).read_text())
    assert content["config"]["seed"] == 0
    assert content["config"]["versions"]["torch"]
    assert content["config"]["layer"] == 1
    assert content["config"]["layer_source"] == "middle layer"
    assert content["config"]["vector"].startswith("vector_loud.safetensors")
    graded = content["settings"]["system prompts"]
    assert len(graded["projections"]) + content["n_unscored_responses"] >= 12
    assert set(graded["conditions"]) == {"1", "2", "3"}
    assert set(graded["questions"]) == {"Why?", "When?", "What for?", "Which one?"}
    assert content["correlations"]["shots"]["n"] == len(content["settings"]["shots"]["scores"])
    page = (whole / RESULTS[1]).read_text()
    assert "Plotly.newPlot" in page
    assert "<calm>" not in page


def test_numbers_of_shots_that_cannot_be_made_are_named(whole):
    content = json.loads((whole / RESULTS[0]).read_text())
    assert "examples" in content["skipped"]["99"]
    assert set(content["conditions"]["shots"]) | set(content["skipped"]) == {"0", "1", "2", "99"}
    assert "0" in content["conditions"]["shots"]


def test_replot_draws_the_same_figure_from_the_file_without_a_model(setting, whole):
    before = (whole / RESULTS[1]).read_bytes()
    (whole / RESULTS[1]).unlink()
    done = run(setting, "whole", "--replot", "--model", "nobody/has-this-model")
    assert done.returncode == 0, done.stderr
    assert (whole / RESULTS[1]).read_bytes() == before


def test_a_trait_without_graded_prompts_and_a_layer_out_of_range_are_refused(setting, whole):
    other = setting[0] / "other.json"
    other.write_text("{}")
    done = run(setting, "bad", "--prompts", str(other))
    assert done.returncode != 0
    assert "loud" in done.stderr
    done = run(setting, "bad", "--layer", "3")
    assert done.returncode != 0
    assert "--layer must be in [0, 3)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (setting[0] / "bad").exists()


def test_every_graded_list_has_eight_prompts_of_its_own():
    from persona_lens import load_trait

    graded = json.loads((ROOT / "experiments" / "graded_prompts.json").read_text())
    assert list(graded) == ["evil", "sycophancy", "hallucination"]
    for name, prompts in graded.items():
        trait = load_trait(name)
        assert len(set(prompts)) == 8
        assert not set(prompts) & {*trait.positive_system_prompts, *trait.negative_system_prompts}
