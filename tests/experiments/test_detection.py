"""What says before a response what comes, run as a user runs it, on a tiny random model: real steps, no meaning."""

import json

import pytest

from tests.experiments.scripts import run, save_talkative

pytestmark = pytest.mark.slow  # a whole script, run as a user runs it

DIRECTIONS = [
    "mean difference", "first component", "logistic probe", "shrunk LDA", "without ordinary variation",
    "without what traits share", "ridge, fitted to scores",
]  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection")
    return folder, save_talkative(folder / "model")


def test_every_direction_is_chosen_on_some_questions_and_measured_on_others(setting):
    done = run(setting, "detection", "out", "--trait", "evil")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((setting[0] / "out" / "detection.json").read_text())["traits"]
    assert list(found["chosen"]) == list(found["second"]) == DIRECTIONS
    assert found["best"] in DIRECTIONS[:-1]
    for name, one in found["chosen"].items():
        assert list(one["within"]) == [name]
        assert one["held_out"]["n_questions"] <= 6
        assert one["n_choosing"] <= 18
    highest = {name: max(found["chosen"][name]["within"][name]) for name in DIRECTIONS[:-1]}
    assert highest[found["best"]] == pytest.approx(max(highest.values()), abs=1e-3)  # files round, so two may tie


def test_a_trait_without_graded_prompts_is_refused_before_the_model_is_loaded(setting):
    done = run(setting, "detection", "out", "--trait", "formality")
    assert done.returncode
    assert "--prompts must name a file with prompts for ['formality']" in done.stderr
