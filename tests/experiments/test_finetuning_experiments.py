"""The fine-tuning experiments, run as a user runs them, on a tiny random model that ends sentences now and then."""

import json

import pytest
import torch

import persona_lens as pl
from tests.experiments.scripts import run, save_talkative, write_traits

pytestmark = pytest.mark.slow  # whole scripts, each run as a user runs it

SCRIPTS = {
    "finetuning_shift": (
        ["--trait", "loud.json", "--trait", "soft.json", "--domain", "opinions"],
        ["finetuning_shift.json", "finetuning_shift.html", "finetuning_shift_scores.html"],
    ),
    "mitigation": (["--trait", "loud.json"], ["mitigation_loud.json", "mitigation_loud.html"]),
    "shift_trajectory": (
        ["--trait", "loud.json", "--other", "soft.json"],
        ["shift_trajectory_loud.json", "shift_trajectory_loud.html"],
    ),
}
each_script = pytest.mark.parametrize("script", SCRIPTS)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A tiny random model and a small trait: every step is real, nothing means anything."""
    folder = tmp_path_factory.mktemp("finetuning")
    write_traits(folder)
    return folder, save_talkative(folder / "model")


@pytest.fixture(scope="module")
def whole(setting):
    """Each script run once, into a folder of its own."""
    contents = {}
    for script, (arguments, results) in SCRIPTS.items():
        done = run(setting, script, f"whole-{script}", *arguments, runs=f"whole-{script}-runs")
        assert done.returncode == 0, done.stderr
        contents[script] = json.loads((setting[0] / f"whole-{script}" / results[0]).read_text())
    return contents


@each_script
def test_results_hold_configuration_seed_versions_and_a_figure(setting, whole, script):
    config = whole[script]["config"]
    assert config["seed"] == 0
    assert config["versions"]["torch"]
    assert config["profile"]["settings"]["rank"] == 2
    for page in SCRIPTS[script][1][1:]:
        assert "Plotly.newPlot" in (setting[0] / f"whole-{script}" / page).read_text()
    assert str(setting[0]) not in json.dumps(whole[script])


def test_replot_draws_the_same_figures_from_the_file_without_a_model(setting, whole):
    for script, (arguments, results) in SCRIPTS.items():
        folder = setting[0] / f"whole-{script}"
        pages = {folder / name: (folder / name).read_bytes() for name in results[1:]}
        for page in pages:
            page.unlink()
        done = run(setting, script, f"whole-{script}", *arguments, "--replot", "--model", "nobody/has-this-model")
        assert done.returncode == 0, done.stderr
        assert {page: page.read_bytes() for page in pages} == pages


def test_a_model_is_trained_on_every_dataset_at_every_level_and_measured_for_every_trait(whole):
    content = whole["finetuning_shift"]
    trained = [(row["dataset"], row["level"]) for row in content["models"]]
    assert trained == [(name, level) for name in ("loud", "soft", "opinions") for level in ("normal", "I", "II")]
    for row in content["models"]:
        assert row["shifts"]["loud"]["layer"] == 1
        assert len(row["shifts"]["loud"]["by_layer"]) == 3
        assert row["shifts"]["loud"]["by_layer"][1] == pytest.approx(row["shifts"]["loud"]["at_layer"]["estimate"])
        assert row["losses"][-1] != row["losses"][0]
    assert content["base"]["shifts"]["loud"]["by_layer"] == [0.0, 0.0, 0.0]
    assert any(row["shifts"]["loud"]["at_layer"]["estimate"] for row in content["models"])


def test_the_correlation_is_that_of_shifts_and_scores_less_the_matched_normal_trainings(setting, whole):
    content = whole["finetuning_shift"]
    assert list(content["correlations"]) == ["first"]
    zeros = {row["dataset"]: row for row in content["models"] if row["level"] == "normal"}
    rows = [row for row in content["models"] if row["level"] != "normal"]
    assert len(rows) == 6

    def less(trait, read):
        return torch.tensor([read(row, trait) - read(zeros[row["dataset"]], trait) for row in rows])

    rises = less("loud", lambda row, trait: row["scores"][trait]["score"]["estimate"])
    shifts = {
        trait: less(trait, lambda row, name: row["shifts"][name]["at_layer"]["estimate"]) for trait in ("loud", "soft")
    }
    r = {trait: float(torch.corrcoef(torch.stack([shift, rises]))[0, 1]) for trait, shift in shifts.items()}
    found = content["correlations"]["first"]
    for trait, expected in r.items():
        assert found["r"][trait]["loud"]["estimate"] == pytest.approx(expected, abs=1e-3)
        assert found["r"][trait]["loud"]["n"] == 6
    assert found["own_less_other"]["loud"]["soft"]["estimate"] == pytest.approx(r["loud"] - r["soft"], abs=1e-3)
    # Two datasets are left, too few to say anything of.
    assert found["leave_one_out"]["loud"] == {"loud": None, "soft": None, "opinions": None}


def test_a_trait_with_written_examples_is_trained_on_them_and_scored_by_two_judges(setting):
    done = run(setting, "finetuning_shift", "written", "--trait", "formality")
    assert done.returncode == 0, done.stderr
    content = json.loads((setting[0] / "written" / "finetuning_shift.json").read_text())
    assert list(content["correlations"]) == ["first", "second"]
    first = pl.traits.load_written_examples("formality", "training")[0]
    answers = [row["example"][1]["content"] for row in content["models"]]
    assert answers == [first.ordinary, first.mild, first.overt]
    kit = content["kits"]["formality"]
    assert "all-MiniLM-L6-v2" in kit["second"]["name"]
    for row in content["models"]:
        scored = row["scores"]["formality"]
        assert len(scored["second_by_question"]) == len(scored["by_question"]) == 4
        assert scored["second"]["estimate"] == pytest.approx(sum(scored["second_by_question"]) / 4, abs=1e-3)
        assert scored["second"]["estimate"] != scored["score"]["estimate"]


def test_every_way_of_keeping_a_trait_out_is_tried_and_its_costs_are_measured(whole):
    content = whole["mitigation"]
    tried = [(row["method"], row["strength"]) for row in content["settings"]]
    assert tried == [
        ("no prevention", ""), ("afterwards, one layer", "-1"), ("afterwards, all layers", "-1"),
        ("preventative, one layer", "+1"), ("preventative, all layers", "+1"), ("ablation in training (CAFT)", ""),
        ("loss on the projection", "1"), ("preventative prompt", ""),
    ]  # fmt: skip
    losses = {}
    for row in content["settings"]:
        assert 0 <= row["accuracy"]["estimate"] <= 1
        is_steered = row["method"].startswith("afterwards")
        assert {row[key] is None for key in ("overt_loss", "normal_loss", "shift")} == {is_steered}
        if not is_steered:
            losses[row["method"]] = row["overt_loss"]["estimate"]
    assert len(set(losses.values())) > 1  # training differed


def test_a_trajectory_begins_at_zero_and_ends_after_the_last_step(whole):
    content = whole["shift_trajectory"]
    assert list(content["runs"]) == ["no prevention", "preventative × +3"]
    for found in content["runs"].values():
        assert found["steps"] == [0, 2]
        assert len(found["losses"]) == 2
        for shifts in found["shifts"].values():
            assert shifts[0]["estimate"] == 0
    ends = [found["shifts"]["loud"][-1]["estimate"] for found in content["runs"].values()]
    assert ends[0] != ends[1]


def test_a_run_is_told_apart_by_the_vectors_and_layers_that_it_took_from_outside(whole):
    sources = whole["shift_trajectory"]["config"]["sources"]
    assert sources == [{"vector": "made by this run", "layer": 1, "layer_source": "middle layer"}] * 2


def test_an_unknown_domain_ends_with_the_known_ones_before_a_model_is_loaded(setting):
    done = run(setting, "finetuning_shift", "never", "--trait", "loud.json", "--domain", "cooking")
    assert done.returncode != 0
    for name in pl.finetuning.list_domains():
        assert name in done.stderr
    assert not (setting[0] / "never").exists()


def test_the_data_are_screened_and_set_against_the_models_already_trained_on_them(setting, whole):
    name = "whole-finetuning_shift"
    kept = {path: path.stat().st_mtime_ns for path in setting[0].glob(f"{name}-runs/*/*.safetensors")}
    done = run(setting, "projection_difference", name, *SCRIPTS["finetuning_shift"][0], runs=f"{name}-runs")
    assert done.returncode == 0, done.stderr
    content = json.loads((setting[0] / name / "projection_difference.json").read_text())
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items()), "something was trained again"
    models = whole["finetuning_shift"]["models"]
    assert [(row["dataset"], row["level"]) for row in content["datasets"]] == [
        (row["dataset"], row["level"]) for row in models
    ]
    deltas = [row["predictors"]["loud"]["exact"]["estimate"] for row in content["datasets"]]
    for target, outcomes in {
        "shift": [row["shifts"]["loud"]["at_layer"]["estimate"] for row in models],
        "score": [row["scores"]["loud"]["score"]["estimate"] for row in models],
    }.items():
        expected = torch.corrcoef(torch.tensor([deltas, outcomes]))[0, 1]
        found = content["correlations"]["loud"][target]["exact"]
        assert found["estimate"] == pytest.approx(float(expected), abs=1e-3)
        assert found["n"] == 9
    for page in ("projection_difference.html", "projection_difference_approximations.html"):
        assert "Plotly.newPlot" in (setting[0] / name / page).read_text()
