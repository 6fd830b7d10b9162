from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.models.engine.rollouts import sample_recorded_rollouts
from persona_lens.space import RoleAnswers, sample_roles
from persona_lens.storage import Shard, load_shard, save_shard
from persona_lens.traits import Role
from tests.space.made import along, make_answers

ROLES = [Role("assistant", "assistant", "Helps.", ("Help.", "Assist.")), Role("cat", "non-human", "Meows.", ("Meow.",))]
QUESTIONS = ("Who?", "What for?", "Why?")
SAMPLING = pl.Sampling(max_new_tokens=6, seed=3)


@pytest.fixture(scope="module")
def answers(tiny_model):
    return sample_roles(tiny_model, ROLES, QUESTIONS, sampling=SAMPLING)


def test_every_role_answers_every_question_under_each_of_its_prompts(answers):
    assert answers.means.shape == (2, 3, 3, 48)
    assert [len(said) for row in answers.texts for said in row] == [2, 2, 2, 1, 1, 1]


def test_means_are_those_of_reading_the_answers_again(tiny_model, answers):
    (text,) = answers.texts[1][0]
    messages = [{"role": "system", "content": "Meow."}, {"role": "user", "content": "Who?"}]
    spans = pl.models.encode_conversation(
        tiny_model.tokenizer, [*messages, {"role": "assistant", "content": text}], n_ctx=256
    )
    ((_, read),) = pl.models.pool_residual_stream(tiny_model, [spans])
    if "\ufffd" not in text:  # else the text is not what was sampled
        assert torch.allclose(read.response_mean, answers.means[1, 0], atol=1e-3)


def test_prompts_take_turns_where_not_all_are_asked(tiny_model, answers):
    each = sample_roles(tiny_model, ROLES, QUESTIONS, prompts_each=1, sampling=SAMPLING)
    assert [len(said) for row in each.texts for said in row] == [1] * 6
    assert each.texts[0][0][0] == answers.texts[0][0][0]  # the first prompt, with the same random numbers
    assert each.texts[1] == answers.texts[1]


def test_finished_roles_are_not_asked_again(tiny_model, answers, tmp_path, monkeypatch):
    run = pl.Run(pl.ShardStore(tmp_path, {}))
    first = sample_roles(tiny_model, ROLES[:1], QUESTIONS, sampling=SAMPLING, run=run)
    monkeypatch.setattr("persona_lens.space.answers._ask", lambda *_: pytest.fail("asked again"))
    again = sample_roles(tiny_model, ROLES[:1], QUESTIONS, sampling=SAMPLING, run=run)
    assert torch.equal(first.means, again.means)
    assert torch.equal(first.means[0], answers.means[0])


def test_answers_survive_a_file(answers, tmp_path):
    answers.save(tmp_path / "answers.safetensors")
    back = RoleAnswers.load(tmp_path / "answers.safetensors")
    assert torch.equal(back.means, answers.means)
    assert (back.texts, back.roles, back.model, back.empty) == (
        answers.texts,
        answers.roles,
        answers.model,
        answers.empty,
    )
    pl.PersonaVector("x", answers.model, {"response_mean": torch.ones(3, 48)}).save(tmp_path / "vector.safetensors")
    with pytest.raises(FileFormatError, match="role answers"):
        RoleAnswers.load(tmp_path / "vector.safetensors")


def test_answers_of_other_roles_stand_beside_these(answers):
    both = answers.take(["cat"]) + answers.take(["assistant"])
    assert both.roles == ("cat", "assistant")
    assert torch.equal(both.assistant, answers.assistant)
    with pytest.raises(InvalidArgumentError, match="no role twice"):
        answers + answers
    with pytest.raises(InvalidArgumentError, match="same questions"):
        answers + answers.ask([0, 1])


def test_answers_without_text_are_counted_where_they_were(tiny_model, monkeypatch):
    drawn = iter(range(100))

    def sample(model, requests, sampling):  # the assistant's second answer to the first question is empty
        found = sample_recorded_rollouts(model, requests, sampling)
        return [replace(one, response=" ") if next(drawn) == 1 else one for one in found]

    monkeypatch.setattr("persona_lens.space.answers.sample_recorded_rollouts", sample)
    answers = sample_roles(tiny_model, ROLES, QUESTIONS, sampling=SAMPLING)
    assert answers.empty == ((1, 0, 0), (0, 0, 0))
    assert answers.n_empty == 1
    assert answers.take(["cat"]).n_empty == answers.characters.n_empty == answers.ask([1, 2]).n_empty == 0
    assert answers.ask([2, 0]).empty == ((0, 1), (0, 0))
    assert (answers.take(["cat"]) + answers.take(["assistant"])).empty == ((0, 0, 0), (1, 0, 0))


@pytest.mark.parametrize("name", ["model", "roles", "kinds", "questions", "texts", "empty", "provenance"])
def test_a_file_that_lacks_a_part_or_whose_parts_do_not_fit_is_refused(answers, tmp_path, name):
    path = tmp_path / "answers.safetensors"
    answers.save(path)
    shard = load_shard(path)
    kept = {key: value for key, value in shard.records.items() if key != name}
    wrong = {"model": {"name": "x"}, "provenance": 3}.get(name, [])
    for records, said in ((kept, f"'{name}'"), (kept | {name: wrong}, "path")):
        save_shard(path, Shard(shard.tensors, records))
        with pytest.raises(FileFormatError, match=said):
            RoleAnswers.load(path)


def test_what_is_not_there_is_refused():
    made = make_answers(along(0, 1.0, 2.0), along(0, 3.0)[0])
    with pytest.raises(InvalidArgumentError, match="role9"):
        made.take(["role9"])
    with pytest.raises(InvalidArgumentError, match="at"):
        made.ask([99])
    with pytest.raises(InvalidArgumentError, match="assistant"):
        _ = made.characters.assistant


@pytest.mark.parametrize(
    ("options", "named"),
    [({"questions": ["Who?"]}, "questions"), ({"roles": [ROLES[0], ROLES[0]]}, "roles"), ({"roles": []}, "roles"),
     ({"prompts_each": 0}, "prompts_each")],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_the_model_runs(tiny_model, options, named):
    given = {"roles": ROLES, "questions": QUESTIONS} | options
    with pytest.raises(InvalidArgumentError, match=named):
        sample_roles(tiny_model, **given)
