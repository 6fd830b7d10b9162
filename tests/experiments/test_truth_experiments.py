import json
import math

import pytest

from tests.experiments.scripts import command, environment, run_script

pytestmark = pytest.mark.slow  # whole scripts, each run as a user runs it

NAMES = ("truth", "known_entities")


@pytest.fixture(scope="module")
def setting(tmp_path_factory, roomy_folder):
    return tmp_path_factory.mktemp("truth"), roomy_folder


@pytest.fixture(scope="module")
def whole(setting):
    for name in NAMES:
        done = run_script(command(setting, name, "out"), env=environment(), cwd=setting[0])
        assert done.returncode == 0, done.stderr
    return {name: json.loads((setting[0] / "out" / f"{name}.json").read_text()) for name in NAMES}


def test_every_direction_is_tried_on_every_kind_at_the_layer_of_its_own_kind(whole):
    kinds = whole["truth"]["kinds"]
    for one in whole["truth"]["transfers"]:
        assert [(cell["trained"], cell["tested"]) for cell in one["cells"]] == [(a, b) for a in kinds for b in kinds]
        assert all(len({cell["layer"] for cell in one["cells"] if cell["trained"] == kind}) == 1 for kind in kinds)
        apart = [cell["accuracy"]["estimate"] for cell in one["cells"] if cell["trained"] != cell["tested"]]
        assert one["accuracy"]["estimate"] == pytest.approx(sum(apart) / len(apart))
        assert len(one["accuracy_by_layer"]) == 3


def test_the_judgement_of_every_kind_is_moved_by_each_direction_and_by_random_ones(whole):
    truth = whole["truth"]
    assert [one["kind"] for one in truth["judgements"]] == truth["kinds"]
    for one in truth["judgements"]:
        assert len(one["random"]) == truth["config"]["profile"]["n_random"]
        for effect in one["effects"]:
            beyond = effect["shift"]["estimate"] - sum(one["random"]) / len(one["random"])
            assert effect["above_random"]["estimate"] == pytest.approx(beyond, abs=1e-5)
            both = (effect["to_true"]["estimate"] + effect["to_false"]["estimate"]) / 2
            assert effect["shift"]["estimate"] == pytest.approx(both, abs=1e-5)
            surely = one["gap"]["low"] > 0
            assert (effect["indirect_effect"]["estimate"] is not None) == surely


def test_estimators_stand_beside_what_the_names_alone_say(whole):
    found = whole["known_entities"]
    assert found["n_pairs"] == 2 * len(found["categories"])
    assert found["vector"] is None  # it is the embedded model's
    for one in found["estimators"]:
        assert len(one["by_layer"]) == 3
        assert len(one["layers"]) == len(one["by_category"]) == len(found["categories"])
        assert one["within"]["estimate"] == pytest.approx(sum(one["by_category"]) / len(one["by_category"]))
        surprise = found["surface"][0]["within"]["estimate"]
        assert one["above_surprise"]["estimate"] == pytest.approx(one["within"]["estimate"] - surprise)
    assert all(math.isfinite(one["auroc"]["estimate"]) for one in found["surface"])


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_redrawn_from_its_result_without_a_model(setting, whole, name):
    page = setting[0] / "out" / f"{name}.html"
    before = page.read_bytes()
    done = run_script([*command(setting, name, "out"), "--replot"], env=environment(), cwd=setting[0])
    assert done.returncode == 0, done.stderr
    assert page.read_bytes() == before
