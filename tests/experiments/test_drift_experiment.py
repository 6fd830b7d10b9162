import json

import pytest

from tests.experiments.scripts import command, environment, run_script

pytestmark = pytest.mark.slow  # a whole script, run as a user runs it


@pytest.fixture(scope="module")
def setting(tmp_path_factory, roomy_folder):
    return tmp_path_factory.mktemp("drift"), roomy_folder


@pytest.fixture(scope="module")
def whole(setting):
    done = run_script(command(setting, "drift", "out"), env=environment(), cwd=setting[0])
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "out" / "drift.json").read_text())


def test_all_users_are_talked_to_under_every_condition_and_every_turn_is_measured(whole):
    drift = whole["drift"]
    held, profile = drift["conversations"], whole["config"]["profile"]
    assert held["conditions"] == ["as it is", "capped", "steered away", "system prompt"]
    n_scripts = 5 * profile["n_scripts"]
    assert len(held["scripts"]) == n_scripts
    assert all(len(script["turns"]) == profile["n_turns"] for script in held["scripts"])
    traits = whole["config"]["traits"]
    # Two projections and two judges a trait, one coherence, and three more confounds.
    assert len(drift["courses"]) == 4 * len(traits) + 4
    for course in drift["courses"]:
        assert (len(course["values"]), len(course["values"][0])) == (4, n_scripts)
    assert [one["trait"] for one in whole["validations"]] == [trait for trait in traits for _ in range(2)]


def test_figures_are_redrawn_from_the_result_without_a_model(setting, whole):
    pages = [setting[0] / "out" / f"drift{ending}.html" for ending in ("", "_turns")]
    before = [page.read_bytes() for page in pages]
    done = run_script([*command(setting, "drift", "out"), "--replot"], env=environment(), cwd=setting[0])
    assert done.returncode == 0, done.stderr
    assert [page.read_bytes() for page in pages] == before
