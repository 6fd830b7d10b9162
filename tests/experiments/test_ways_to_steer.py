"""All ways to steer, run as a user runs them, on a tiny random model: real steps, no meaning."""

import json

import pytest

from tests.experiments.scripts import run, save_talkative

pytestmark = pytest.mark.slow  # a whole script, run as a user runs it


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ways")
    return folder, save_talkative(folder / "model")


@pytest.fixture(scope="module")
def result(setting):
    done = run(setting, "ways_to_steer", "out", "--trait", "formality")
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "out" / "ways_to_steer.json").read_text())["traits"][0]


def test_every_estimator_meets_every_intervention_beside_prompt_and_random_directions(result):
    pairs = {(way["estimator"], way["intervention"]) for way in result["ways"]}
    estimators = {
        "mean difference", "first component", "logistic probe", "shrunk LDA", "without ordinary variation",
        "without what traits share", "optimised", "mean difference, sampled",
    }  # fmt: skip
    interventions = {"add", "add to the first 8 tokens", "rotate"}
    assert {(one, two) for one in estimators for two in interventions} <= pairs
    assert {("mean difference", "shift heads"), ("mean difference", "add where it is low")} <= pairs
    assert {one for one, _ in pairs if one.startswith("random direction")} == {
        "random direction 1", "random direction 2",
    }  # fmt: skip
    assert result["responses"]["conditions"][:2] == ["unsteered", "system prompt"]
    assert len(result["responses"]["conditions"]) == 2 + 2 * len(result["ways"])


def test_no_question_that_set_a_strength_is_one_that_it_is_judged_on(result):
    assert not set(result["trials"]["questions"]) & set(result["responses"]["questions"])


def test_two_judges_read_everything_and_other_traits_judges_too(result):
    assert len(result["scores"]) == 2
    assert list(result["scores"]) == list(result["trial_scores"])
    assert set(result["others"]) == {"empathy", "evil", "hallucination", "humorous", "sycophancy"}
    assert "unsteered" in result["capabilities"]
    assert {"mean difference, rotate", "shrunk LDA, add"} <= set(result["capabilities"])


def test_strengths_cost_what_they_were_to_cost_or_are_the_strongest(result):
    for way in result["ways"]:
        if way["intervention"] == "add":
            assert way["at_divergence"]["kl"] == pytest.approx(0.001, rel=0.1)


def test_redrawn_from_its_file_nothing_runs_and_the_figures_come_back(setting, result):
    out = setting[0] / "out"
    for figure in ("ways_to_steer.html", "ways_to_steer_front.html"):
        (out / figure).unlink()
    done = run(setting, "ways_to_steer", "out", "--replot")
    assert done.returncode == 0, done.stderr
    assert (out / "ways_to_steer.html").exists()
    assert (out / "ways_to_steer_front.html").exists()
    assert "better than adding the mean difference, for both judges" in done.stdout
