"""Which direction and layer say before a response what comes: chosen on some questions, measured on others."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.monitoring import choose_detector, project_at_every_layer, project_last_prompt_token

CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}],
    [{"role": "system", "content": "Be loud."}, {"role": "user", "content": "Hello there"}],
]


def graded(n_questions=40, n_conditions=3, seed=0):
    """Scores with a condition's level and a question's signal, and the rows' labels."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n_conditions, n_questions, generator=generator)
    noise = torch.randn(n_conditions, n_questions, generator=generator)
    scores = (50 + 10 * torch.arange(n_conditions)[:, None] + 8 * signal + 4 * noise).flatten()
    conditions = [str(c) for c in range(n_conditions) for _ in range(n_questions)]
    questions = [f"q{q}" for _ in range(n_conditions) for q in range(n_questions)]
    return signal.flatten(), scores, conditions, questions


def halves(questions):
    return [one for one in dict.fromkeys(questions) if int(one[1:]) % 2 == 0]


@given(seed=st.integers(0, 1000), layer=st.integers(0, 4), name=st.sampled_from("abc"))
def test_the_direction_that_goes_with_scores_is_found_and_confirmed_on_other_questions(seed, layer, name):
    signal, scores, conditions, questions = graded(seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    projections = {one: torch.randn(5, len(scores), generator=generator) for one in "abc"}
    projections[name][layer] = 3 * signal + 7
    found = choose_detector(projections, scores, conditions, questions, choosing=halves(questions))
    assert (found.name, found.layer) == (name, layer)
    assert found.is_reliable
    assert found.held_out.within.estimate > 0.7
    assert found.n_choosing == 60


def test_what_only_knows_the_condition_is_not_chosen():
    signal, scores, conditions, questions = graded()
    level = torch.tensor([float(one) for one in conditions])
    wavy = torch.sin(torch.arange(len(scores)) * 1.7)
    projections = {"condition": torch.stack([level + 0.01 * wavy]), "signal": torch.stack([signal])}
    found = choose_detector(projections, scores, conditions, questions, choosing=halves(questions))
    assert found.name == "signal"
    assert abs(float(found.within["condition"][0])) < 0.4


def test_the_best_of_many_that_mean_nothing_is_not_reliable_on_other_questions():
    _, scores, conditions, questions = graded()
    reliable = 0
    for seed in range(20):
        noise = torch.randn(40, len(scores), generator=torch.Generator().manual_seed(100 + seed))
        found = choose_detector({"noise": noise}, scores, conditions, questions, choosing=halves(questions))
        assert float(found.within["noise"].max()) > 0.15  # it fits by chance where it was chosen
        reliable += found.is_reliable
    assert reliable <= 3


def test_choosing_and_measuring_share_no_row():
    signal, scores, conditions, questions = graded()
    chosen = halves(questions)
    is_chosen = torch.tensor([one in chosen for one in questions])
    only_there = torch.where(is_chosen, signal, -signal)
    found = choose_detector({"flips": only_there[None]}, scores, conditions, questions, choosing=chosen)
    assert float(found.within["flips"][0]) > 0.7
    assert found.held_out.within.estimate < -0.7


def test_a_direction_that_is_zero_at_a_layer_is_never_chosen_there():
    signal, scores, conditions, questions = graded()
    rows = torch.stack([torch.zeros_like(signal), -signal])
    found = choose_detector({"a": rows}, scores, conditions, questions, choosing=halves(questions))
    assert found.layer == 1
    assert found.within["a"][0].isnan()


def test_what_cannot_be_chosen_on_is_refused_by_name():
    signal, scores, conditions, questions = graded()
    rows = {"a": signal[None]}
    every = list(dict.fromkeys(questions))
    for choosing in ([], every, ["elsewhere"]):
        with pytest.raises(InvalidArgumentError, match="`choosing`"):
            choose_detector(rows, scores, conditions, questions, choosing=choosing)
    with pytest.raises(InvalidArgumentError, match="`projections`"):
        choose_detector({}, scores, conditions, questions, choosing=every[:3])
    with pytest.raises(InvalidArgumentError, match="`scores`"):
        choose_detector(rows, torch.full_like(scores, 5.0), conditions, questions, choosing=every[:3])
    with pytest.raises(InvalidArgumentError, match="finite"):
        choose_detector({"a": rows["a"] * torch.nan}, scores, conditions, questions, choosing=every[:3])


def test_a_choice_comes_back_from_its_file(tmp_path):
    signal, scores, conditions, questions = graded()
    found = choose_detector({"a": signal[None]}, scores, conditions, questions, choosing=halves(questions))
    found.save(tmp_path / "choice.json")
    again = pl.monitoring.DetectorChoice.load(tmp_path / "choice.json")
    assert repr(again) == repr(found)
    assert "reliable" in repr(found)


@pytest.fixture
def vectors(tiny_model):
    info = pl.describe_model(tiny_model)
    made = {}
    for seed, name in enumerate(("first", "second")):
        directions = torch.randn(info.n_layers, info.d_model, generator=torch.Generator().manual_seed(seed))
        made[name] = pl.PersonaVector(name, info, {"response_mean": directions})
    return made


def test_every_layer_is_read_as_one_layer_is(tiny_model, vectors):
    everywhere = project_at_every_layer(tiny_model, CHATS, vectors)
    for layer in range(tiny_model.cfg.n_layers):
        one = project_last_prompt_token(tiny_model, CHATS, vectors, dict.fromkeys(vectors, layer))
        for name in vectors:
            assert torch.equal(everywhere[name][layer], one[name])


def test_a_zero_direction_gives_zeros(tiny_model, vectors):
    directions = vectors["first"].directions.clone()
    directions[0] = 0
    vector = pl.PersonaVector("first", vectors["first"].model, {"response_mean": directions})
    found = project_at_every_layer(tiny_model, CHATS, {"first": vector})["first"]
    assert not found[0].any()
    assert found[1].all()


def test_other_models_and_prompts_that_await_no_answer_are_refused(tiny_model, tiny_folder, vectors):
    with pytest.raises(InvalidArgumentError, match="assistant is to answer"):
        project_at_every_layer(tiny_model, [CHATS[1][:2]], vectors)
    with pytest.raises(InvalidArgumentError, match="`vectors`"):
        project_at_every_layer(tiny_model, CHATS, {})
    other = pl.load_model(tiny_folder("qwen2"), dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError):
        project_at_every_layer(other, CHATS, vectors)
