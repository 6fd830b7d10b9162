import importlib
import json

import pytest
import torch

from tests.experiments.scripts import ROOT, command, environment, run_script

ARMS = ("no prevention", "first vector", "fresh vector")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, roomy_folder):
    folder = tmp_path_factory.mktemp("moving")
    done = run_script(command((folder, roomy_folder), "moving_vectors", "out"), env=environment(), cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out" / "moving_vectors_evil.json").read_text())


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("moving_vectors")


def test_what_costs_more_is_taken_back_until_it_costs_the_same(experiment):
    plain = torch.tensor([3.0, 3.0, 3.0, 3.0])
    first = torch.tensor([3.5, 4.0, 3.5, 2.5])
    fresh = torch.tensor([4.0, 3.5, 3.5, 4.0])
    of_first, of_fresh = experiment.share_at_equal_loss(plain, first, fresh)
    assert of_first.tolist() == [1.0, 0.5, 1.0, 1.0]
    assert of_fresh.tolist() == [0.5, 1.0, 1.0, 0.0]  # one that costs less than nothing leaves the other nothing


def test_a_fresh_vector_that_prevents_more_at_more_cost_is_no_better_at_equal_loss(experiment):
    """On the same line through the training without prevention."""
    made = {}
    for arm, score, loss in zip(ARMS, (80.0, 60.0, 40.0), (3.0, 3.5, 4.0), strict=True):
        made[arm] = [
            experiment.Trained(arm, seed, (loss + 0.1 * seed, loss), ((score + seed, score),) * 2, "")
            for seed in (0, 1)
        ]
    *_, as_they_are, equal = experiment.compare(made)
    assert [one.estimate for one in as_they_are.scores] == pytest.approx([-20.0] * 2)
    assert as_they_are.loss.estimate == pytest.approx(0.5)
    assert as_they_are.is_lower
    assert [one.estimate for one in equal.scores] == pytest.approx([0.0] * 2, abs=1e-4)
    assert not equal.is_lower


@pytest.mark.slow
def test_each_way_is_trained_with_each_seed_and_read(whole):
    assert [(one["arm"], one["seed"]) for one in whole["trainings"]] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    for one in whole["trainings"]:
        assert one["steps"] == ([0, 2] if one["arm"] == "first vector" else [0, 1, 2])
        assert {len(row) for row in one["with_first"]} == {3}
        assert all(len(scores) == 4 for scores in one["scores"])
        assert one["training_seconds"] > 0
    plain, first, fresh = whole["trainings"][:3]
    assert first["losses"][0] == fresh["losses"][0] != plain["losses"][0]  # until the second reading they are one
    assert first["losses"][1] != fresh["losses"][1]
    assert plain["with_first"][0] == pytest.approx([1.0] * 3)


@pytest.mark.slow
def test_the_turn_is_the_ceiling_less_halves_crossed(whole):
    found = whole["turning"]["no prevention"]["cosines"]
    own = [one for one in whole["trainings"] if one["arm"] == "no prevention"]
    layer = whole["layer"]
    crossed = sum(one["crossed"][-1][layer] for one in own) / 2
    ceiling = sum((one["halves"][0][layer] + one["halves"][-1][layer]) / 2 for one in own) / 2
    assert found["turn"][-1]["estimate"] == pytest.approx(ceiling - crossed, abs=1e-5)
    assert found["turn"][0]["estimate"] == pytest.approx(0, abs=1e-6)
    assert whole["at_the_end"]["cosines"]["turn"][layer] == found["turn"][-1]
