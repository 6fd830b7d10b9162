from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.space import PersonaSpace, find_persona_space
from tests.space.made import INFO, along, make_answers

FEW = {"n_resamples": 30, "n_shuffles": 20}


@pytest.fixture(scope="module")
def answers():
    """Twelve roles that differ along the first axis, and less along the second; the assistant beyond them."""
    spread = along(0, *range(12)) + along(1, *[0.6 * (-1) ** i for i in range(12)])
    return make_answers(spread, along(0, 20.0)[0], noise=0.3)


@pytest.fixture(scope="module")
def space(answers):
    vector = pl.PersonaVector("back", INFO, {"response_mean": along(0, -3.0, -3.0)})
    return find_persona_space(answers, 1, vectors={"back": vector}, n_components=3, **FEW)


def test_the_directions_in_which_roles_differ_are_found_and_told_from_chance(space):
    first, second, third = space.variances
    assert abs(float(space.components[0, 0])) > 0.99
    assert abs(float(space.components[1, 1])) > 0.9
    assert first.share > 0.9
    assert [one.is_beyond_chance for one in (first, third)] == [True, False]
    assert first.half_cosine > 0.99
    assert first.half_correlation > 0.99
    assert third.half_correlation < second.half_correlation
    assert first.half_correlation > first.null_half_correlation


def test_halves_that_agree_by_chance_alone_do_so_as_in_the_null():
    """Of two components of noise, matched between halves, coordinates agree above 0: the null says how far."""
    above = 0
    for seed in range(6):
        nothing = make_answers(torch.zeros(12, 24), torch.zeros(24), noise=1.0, seed=seed)
        (found,) = find_persona_space(nothing, 0, n_components=1, n_resamples=2, n_shuffles=20).variances
        assert -1 <= found.null_half_correlation < 1
        above += found.half_correlation > found.null_half_correlation
    assert above <= 2


def test_a_space_without_the_null_of_that_correlation_still_loads(space, tmp_path):
    content = space.to_json()
    for one in content["variances"]:
        del one["null_half_correlation"]
    assert [one.null_half_correlation for one in PersonaSpace.from_json(content).variances] == [None] * 3


def test_components_point_to_the_assistant_and_the_axis_lies_along_the_first(space):
    assert float(space.components[0, 0]) > 0
    assert space.assistant.coordinates[0] > max(role.coordinates[0] for role in space.roles)
    assert space.axis_cosines[0].low > 0.95
    assert space.axis_cosines == space.assistant.cosines


def test_roles_are_ranked_from_the_assistant_s_side_and_vectors_placed(space):
    ranked = [role.cosines[0].estimate for role in space.rank(0)]
    assert ranked == sorted(ranked, reverse=True)
    assert {role.name for role in space.rank(0)[:6]} == {f"role{i}" for i in range(6, 12)}
    (back,) = space.vectors
    assert back.axis.high < -0.9
    assert back.coordinates == ()
    with pytest.raises(InvalidArgumentError, match="component"):
        space.rank(3)


def test_intervals_hold_their_estimates_and_widen_with_noise(answers, space):
    noisy = find_persona_space(replace(answers, means=answers.means + torch.randn_like(answers.means)), 1, **FEW)
    for one in (*space.roles, *noisy.roles):
        assert all(i.low <= i.estimate <= i.high for i in (*one.cosines, one.axis))
    widths = [sum(role.axis.high - role.axis.low for role in one.roles) for one in (space, noisy)]
    assert widths[0] < widths[1]


def test_answers_that_no_role_makes_its_own_hold_no_component_beyond_chance():
    nothing = make_answers(torch.zeros(12, 24), torch.zeros(24), noise=1.0)
    found = find_persona_space(nothing, 0, n_components=2, **FEW)
    assert found.noise_share == pytest.approx(1, abs=0.2)
    assert not found.variances[0].is_beyond_chance


def test_new_means_are_projected_from_the_center(answers, space):
    means = answers.take(["role3"]).means[0, :, 1].mean(dim=0)
    at = next(role for role in space.roles if role.name == "role3")
    assert space.project(means).tolist() == pytest.approx(at.coordinates, abs=1e-3)
    with pytest.raises(InvalidArgumentError, match="means"):
        space.project(torch.ones(3))


def test_the_same_seed_finds_the_same_space_and_a_file_keeps_it(answers, space, tmp_path):
    vector = pl.PersonaVector("back", INFO, {"response_mean": along(0, -3.0, -3.0)})
    again = find_persona_space(answers, 1, vectors={"back": vector}, n_components=3, **FEW)
    again.save(tmp_path / "space.json")
    assert PersonaSpace.load(tmp_path / "space.json").to_json() == space.to_json()


def test_the_plot_names_every_role(space):
    names = {one.text for one in space.plot().layout.annotations}
    assert {role.name for role in space.roles} <= names


def test_what_does_not_fit_is_refused(answers):
    with pytest.raises(InvalidArgumentError, match="n_components"):
        find_persona_space(answers, 0, n_components=11)
    with pytest.raises(InvalidArgumentError, match="four questions"):
        find_persona_space(answers.ask([0, 1, 2]), 0)
    with pytest.raises(InvalidArgumentError, match="roles"):
        find_persona_space(answers.characters, 0)
    other = pl.PersonaVector("x", replace(INFO, fingerprint="g"), {"response_mean": along(0, 1.0, 1.0)})
    with pytest.raises(ModelMismatchError, match="vectors"):
        find_persona_space(answers, 0, vectors={"x": other})
