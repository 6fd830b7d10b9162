import json

import pytest

import persona_lens as pl
from tests.experiments.scripts import command, environment, run_script

pytestmark = pytest.mark.slow  # a whole script, run as a user runs it


@pytest.fixture(scope="module")
def setting(tmp_path_factory, roomy_folder):
    return tmp_path_factory.mktemp("space"), roomy_folder


@pytest.fixture(scope="module")
def whole(setting):
    done = run_script(command(setting, "persona_space", "out"), env=environment(), cwd=setting[0])
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "out" / "persona_space.json").read_text())


def test_every_role_lies_somewhere_and_is_asked_whether_it_is_played(whole):
    n_roles = whole["config"]["profile"]["n_roles"]
    names = {one["name"] for one in whole["space"]["roles"]}
    assert len(names) == n_roles
    assert set(whole["playing"]["roles"]) == set(whole["role_distances"]["roles"]) == names
    assert [one["layer"] for one in whole["layers"]] == [0, 1, 2]
    assert "placebo" in whole["prompt_distances"]["roles"]


def test_floors_are_tried_beside_random_ones_that_move_as_far_on_questions_that_made_none(whole):
    profile, capping = whole["config"]["profile"], whole["capping"]
    n_random = sum(name.startswith("random") for name in capping["conditions"])
    assert capping["conditions"][:4] == ["role", "floor 5", "floor 25", "floor 50"]
    assert n_random == 3 * profile["n_random"]
    assert len(capping["scores"]) == len(capping["judges_measured"]) == 2
    assert len(capping["scores"][0]) == len(capping["conditions"])
    assert len(capping["scores"][0][0]) == len(capping["capped_roles"]) == profile["n_capped"]
    assert len(capping["scores"][0][0][0]) == profile["n_questions"] // 2
    for aim, reached in zip(capping["moved"], capping["null_moved"], strict=True):
        assert all(aim / 1.3 < one < aim * 1.3 for one in reached)


def test_the_axis_is_kept_with_its_layer_and_floors(setting, whole):
    axis = pl.PersonaVector.load(setting[0] / "out" / "assistant_axis.safetensors")
    assert axis.trait == "assistant"
    assert axis.provenance["layer"] == 1
    assert len(axis.provenance["floors"]["25"]) == 3


def test_the_figures_are_redrawn_from_the_result_without_a_model(setting, whole):
    pages = [setting[0] / "out" / f"persona_space{ending}.html" for ending in ("", "_axis")]
    before = [page.read_bytes() for page in pages]
    done = run_script([*command(setting, "persona_space", "out"), "--replot"], env=environment(), cwd=setting[0])
    assert done.returncode == 0, done.stderr
    assert [page.read_bytes() for page in pages] == before
