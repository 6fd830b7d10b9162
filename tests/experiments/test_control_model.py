"""The experiment on control models, run as a user runs it, on a tiny random model that ends sentences now and then."""

import importlib
import json

import pytest

from persona_lens.reproduction.training import draw_task
from tests.experiments.scripts import ROOT, run, save_talkative

pytestmark = pytest.mark.slow  # a whole script


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    return folder, save_talkative(folder / "model")


@pytest.fixture(scope="module")
def content(setting):
    done = run(setting, "control_model", "out", "--trait", "formality")
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "out" / "control_model_formality.json").read_text())


def test_each_seed_is_averaged_with_both_controls_and_judged_twice(content):
    assert {control: len(found) for control, found in content["fronts"].items()} == {"base": 2, "accepted": 2}
    for found in content["fronts"].values():
        for front in found:
            assert front["shares"] == [0.0, 0.5, 1.0]
            assert len(front["scores"][0]) == len(front["judges"]) == 2
            assert sum(front["is_choosing_question"]) == 2 == len(front["is_choosing_question"]) - 2


def test_the_whole_model_is_the_same_on_both_fronts_and_the_base_for_all_seeds(content):
    base, accepted = (content["fronts"][control] for control in ("base", "accepted"))
    for one, other in zip(base, accepted, strict=True):
        assert (one["scores"][2], one["losses"][2]) == (other["scores"][2], other["losses"][2])
        assert one["losses"][0] != other["losses"][0]
    assert base[0]["losses"][0] == base[1]["losses"][0]
    assert base[0]["losses"][2] != base[1]["losses"][2]


def test_harmless_trainings_stand_beside_the_spoilt_ones_and_the_reference_does_not(content):
    kinds = {one["name"]: one["kind"] for one in content["models"]}
    assert kinds == {
        "spoilt-0": "spoilt", "spoilt-1": "spoilt", "accepted-0": "harmless", "accepted-1": "harmless",
        "overt humorous": "harmless", "overt empathy": "harmless",
    }  # fmt: skip
    for one in content["models"]:
        assert -1 < one["weight_cosine"] < 1
        assert list(one["shift"]) == ["empathy", "evil", "formality", "hallucination", "humorous", "sycophancy"]


def test_a_trait_without_written_answers_is_refused_before_a_model_is_loaded(setting):
    done = run(setting, "control_model", "never", "--trait", "apathy")
    assert done.returncode != 0
    assert "written answers" in done.stderr
    assert not (setting[0] / "never").exists()


def test_every_profile_has_answers_of_its_own_for_each_seed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    script = importlib.import_module("control_model")
    for profile in script.PROFILES.values():
        task, _ = draw_task(n_sets=profile.n_seeds, n_rows=profile.n_rows, n_held_out=profile.n_held_out, seed=0)
        data = script.list_data("evil", task, script.STYLES, profile)
        assert {len(rows) for _, rows, _ in data.values()} == {2 * profile.n_rows}
        seen = [row["messages"][0]["content"] for at in range(profile.n_seeds) for row in data[f"spoilt-{at}"][1]]
        assert len(set(seen)) == len(seen)
