import importlib
import json
import math

import pytest
import torch

from persona_lens.finetuning.vector_tracking import Reading, compare_readings
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
    plain = torch.tensor([3.0, 3.0, 3.0])
    first = torch.tensor([3.5, 4.0, 3.5])
    fresh = torch.tensor([4.0, 3.5, 3.5])
    of_first, of_fresh = experiment.share_at_equal_loss(plain, first, fresh)
    assert of_first.tolist() == [1.0, 0.5, 1.0]
    assert of_fresh.tolist() == [0.5, 1.0, 1.0]


def test_where_no_share_costs_what_the_cheaper_way_does_there_is_no_equal_loss(experiment):
    plain = torch.tensor([3.0, 3.0, 3.0])
    first = torch.tensor([2.5, 2.0, 2.5])  # cheaper than no prevention
    fresh = torch.tensor([4.0, 2.5, 3.0])
    of_first, of_fresh = experiment.share_at_equal_loss(plain, first, fresh)
    assert of_first.tolist() == [1.0] * 3
    assert of_fresh.isnan().all()


def test_a_seed_without_equal_loss_is_left_out_of_the_contrast(experiment):
    made = {arm: [] for arm in ARMS}
    for seed, losses in enumerate(((3.0, 3.5, 4.0), (3.0, 3.5, 4.0), (3.0, 2.5, 4.0))):
        for arm, score, loss in zip(ARMS, (80.0, 60.0, 40.0 + 60 * (seed == 2)), losses, strict=True):
            made[arm].append(experiment.Trained(arm, seed, (loss, loss), ((score, score),) * 2, ""))
    equal = experiment.compare(made)[-1]
    assert [one.estimate for one in equal.scores] == pytest.approx([0.0] * 2, abs=1e-4)


def test_a_direction_that_never_turns_has_no_turn_though_its_second_reading_is_noisier(experiment):
    generator = torch.Generator().manual_seed(0)
    direction = torch.zeros(20_000)
    direction[0] = 100.0  # a half's noise has a length of about 141 in the first reading, 424 in the second

    def read(step, noise):
        return Reading(step, (direction + noise * torch.randn(2, 1, 20_000, generator=generator)), 2)

    turns = compare_readings([read(0, 1.0), read(4, 3.0)])
    rows = {
        name: tuple(tuple(getattr(turn, name).tolist()) for turn in turns)
        for name in ("with_first", "with_previous", "halves", "crossed")
    }
    found = experiment.measure_turn(experiment.Trained("no prevention", 0, (), (), "", **rows))
    assert float(found["crossed"][1, 0]) < float(found["crossed"][0, 0]) - 0.1
    assert float(found["turn"][1, 0]) == pytest.approx(0, abs=0.015)


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
    by_layer = whole["at_the_end"]["cosines"]["turn"]
    assert by_layer[whole["layer"]] == found["turn"][-1]
    for layer, turn in enumerate(by_layer):
        halves = [(one["halves"][0][layer], one["halves"][-1][layer]) for one in own]
        if min(min(pair) for pair in halves) < 0:  # of a random model's readings, which have no ceiling
            assert turn["estimate"] is None
        else:
            ceiling = sum((first * last) ** 0.5 for first, last in halves) / 2
            crossed = sum(one["crossed"][-1][layer] for one in own) / 2
            assert turn["estimate"] == pytest.approx(ceiling - crossed, abs=1e-5)


def test_where_halves_of_a_reading_do_not_agree_the_turn_is_unknown(experiment):
    rows = {name: ((0.5, -0.5), (0.4, -0.4)) for name in ("with_first", "with_previous", "halves", "crossed")}
    own = [experiment.Trained("no prevention", seed, (), (), "", steps=(0, 4), norms=((1.0, 1.0),) * 2, **rows)
           for seed in (0, 1)]  # fmt: skip
    known, unknown = experiment.find_layers(own).cosines["turn"]
    assert known.estimate == pytest.approx(0.2**0.5 - 0.4)
    assert math.isnan(unknown.estimate)
