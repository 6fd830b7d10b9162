from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.space import find_assistant_axis, measure_axis_distances, note_thresholds
from persona_lens.vectors.ordinary import OrdinaryProjections
from tests.space.made import along, make_answers


def test_the_axis_is_the_assistant_less_the_mean_role():
    answers = make_answers(along(0, -1.0, -2.0, -3.0), along(0, 4.0)[0], noise=0)
    axis = find_assistant_axis(answers)
    assert torch.allclose(axis.direction(1), along(0, 6.0)[0], atol=1e-5)
    assert axis.split_half_cosine["response_mean"].tolist() == pytest.approx([1, 1])
    assert axis.provenance["roles"] == ["role0", "role1", "role2"]


def test_distances_are_in_units_of_the_mean_role_of_the_others():
    answers = make_answers(along(0, -1.0, -2.0, -3.0, -2.0), along(0, 4.0)[0], noise=0)
    found = measure_axis_distances(answers, 0)
    # The others' mean lies 7/3, 2, 5/3 and 2 below zero, and the assistant 4 above.
    expected = [5 / (4 + 7 / 3), 6 / 6, 7 / (4 + 5 / 3), 6 / 6]
    assert [one.estimate for one in found.distances] == pytest.approx(expected, abs=1e-4)
    assert "assistant" not in found.roles


def test_a_role_that_adds_nothing_but_noise_of_its_own_does_not_seem_away_from_the_assistant():
    spread = torch.cat([along(0, *[-2.0] * 8), torch.zeros(1, 24)])
    answers = make_answers(spread, torch.zeros(24), noise=1.0, n_questions=24, seed=3)
    found = measure_axis_distances(answers, 0)
    assert found.of("role8").low < 0 < found.of("role8").high
    assert found.of("role0").low > 0.3


def test_other_prompts_are_measured_by_an_axis_of_all_roles():
    answers = make_answers(along(0, -1.0, -2.0, -3.0), along(0, 4.0)[0], noise=0)
    same = measure_axis_distances(answers, 0, others=answers.take(["role1"]))
    assert same.of("role1").estimate == pytest.approx(1.0, abs=1e-4)  # it is left out of its own axis
    asked = answers.ask(range(4))
    with pytest.raises(InvalidArgumentError, match="others"):
        measure_axis_distances(answers, 0, others=asked)
    foreign = replace(answers, model=replace(answers.model, fingerprint="g"))
    with pytest.raises(ModelMismatchError, match="others"):
        measure_axis_distances(answers, 0, others=foreign)


def test_an_assistant_like_the_roles_has_no_axis_to_measure_by():
    same = make_answers(torch.zeros(4, 24), torch.zeros(24), noise=0)
    with pytest.raises(InvalidArgumentError):
        measure_axis_distances(same, 0)


def test_thresholds_are_percentiles_of_ordinary_tokens_at_every_layer():
    axis = find_assistant_axis(make_answers(along(0, -1.0, -2.0, -3.0), along(0, 4.0)[0]))
    projections = torch.stack([torch.arange(101.0), torch.arange(101.0) + 5])
    ordinary = OrdinaryProjections("assistant", axis.model, axis.digest, projections, 3, 0)
    noted = note_thresholds(axis, ordinary, 1, percentiles=(5, 50))
    assert noted.provenance["layer"] == 1
    assert noted.provenance["floors"] == {"5": [5.0, 10.0], "50": [50.0, 55.0]}
    other = find_assistant_axis(make_answers(along(1, -1.0, -2.0, -3.0), along(0, 4.0)[0]))
    with pytest.raises(InvalidArgumentError, match="ordinary"):
        note_thresholds(other, ordinary, 1)


def test_the_axis_survives_a_file(tmp_path):
    axis = find_assistant_axis(make_answers(along(0, -1.0, -2.0, -3.0), along(0, 4.0)[0]))
    axis.save(tmp_path / "axis.safetensors")
    back = pl.PersonaVector.load(tmp_path / "axis.safetensors")
    assert back.provenance == axis.provenance
    assert torch.equal(back.directions, axis.directions)


def test_a_floor_lifts_what_falls_below_the_ordinary_range_and_leaves_the_rest(tiny_model):
    directions = torch.randn(3, 48, generator=torch.Generator().manual_seed(2))
    axis = pl.PersonaVector("assistant", pl.describe_model(tiny_model), {"response_mean": directions})
    ordinary = pl.measure_ordinary_projections(
        tiny_model, axis, questions=["Hi?", "Why?"], sampling=pl.Sampling(max_new_tokens=12)
    )
    floors = ordinary.quantile(0.5)
    tokens = torch.randint(0, 255, (2, 20), generator=torch.Generator().manual_seed(1))
    plain = pl.cache_residual_stream(tiny_model, tokens)[1]
    with pl.hooked(tiny_model, pl.cap(axis, layer=1, floor=floors)):
        capped = pl.cache_residual_stream(tiny_model, tokens)[1]
    before, after = (pl.project(one, axis.direction(1)) for one in (plain, capped))
    assert bool((before < floors[1]).any() & (before > floors[1]).any())
    assert torch.allclose(after, before.clamp(min=float(floors[1])), atol=1e-4)
    kept = before >= floors[1]
    assert torch.equal(capped[kept], plain[kept])
