import importlib
import json
from dataclasses import replace

import pytest
import torch

from tests.experiments.scripts import ROOT, command, environment, run_script

pytestmark = pytest.mark.slow  # a whole script, run as a user runs it


@pytest.fixture(scope="module")
def setting(tmp_path_factory, roomy_folder):
    return tmp_path_factory.mktemp("reflection"), roomy_folder


@pytest.fixture(scope="module")
def whole(setting):
    done = run_script(command(setting, "reflection", "out"), env=environment(), cwd=setting[0])
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "out" / "reflection.json").read_text())


def test_every_question_is_answered_after_every_message_and_read_and_judged_twice(whole):
    profile = whole["config"]["profile"]
    assert whole["conditions"][:2] == ["no message", "plain reminder"]
    assert [one["trait"] for one in whole["traits"]] == whole["config"]["traits"]
    for one in whole["traits"]:
        assert [measured["unit"] for measured in one["measured"]] == [
            "residual-stream units", "points of 100", "points of 100", "tokens",
        ]  # fmt: skip
        for values in (one["given"], *(measured["values"] for measured in one["measured"])):
            assert len(values) == 6
            assert all(len(condition) == 2 * profile["n_questions"] for condition in values)
            assert all(len(question) == profile["rollouts"] for condition in values for question in condition)
        told = {name: note for name, (note, *_) in one["example"].items()}
        assert told["no message"] == ""
        assert told["plain reminder"] == one["wish"]
        assert all(told[name].startswith("Your last answer ") for name in whole["conditions"][2:])
        assert all(told[name].endswith(one["wish"]) for name in whole["conditions"][1:])
        assert len({before for _, before, _ in one["example"].values()}) == 1
    n_conversations = len(whole["traits"]) * 2 * profile["n_questions"] * profile["rollouts"]
    assert 0 < whole["n_answers"] <= 7 * n_conversations


def test_what_is_missing_is_left_out_of_both_sides_of_a_comparison_and_of_what_is_counted(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    results = importlib.import_module("results.reflection")
    found = results.ReflectionResult.load(ROOT / "figures" / "reflection.json")
    one = found.traits[0]
    draws = torch.tensor([0.0, 10.0]).expand(one.given.shape).clone()
    draws[1, :, 1] = torch.nan
    measured = results.Measured("", "", draws)
    assert found.compare(measured, found.conditions[1], found.conditions[0]).estimate == 0
    given = one.given.clone()
    given[:, :2] = torch.nan
    assert (
        f"of {one.given[0].numel() - 2 * one.given.shape[-1]};"
        in replace(found, traits=(replace(one, given=given), *found.traits[1:]))._say_same()
    )


def test_the_figure_is_redrawn_from_the_result_without_a_model(setting, whole):
    page = setting[0] / "out" / "reflection.html"
    before = page.read_bytes()
    done = run_script([*command(setting, "reflection", "out"), "--replot"], env=environment(), cwd=setting[0])
    assert done.returncode == 0, done.stderr
    assert page.read_bytes() == before
