"""One text where a list is expected would be asked letter by letter: it is refused wherever questions are taken."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, PersonaLensError, TraitFormatError
from persona_lens.texts import check_texts
from persona_lens.traits import authored
from tests.small_trait import LengthJudge, tiny_trait

QUESTION = "How are you?"


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.PersonaVector("loud", pl.describe_model(tiny_model), {"response_mean": torch.ones(3, 48)})


def call(name, model, vector, questions):
    trait, judge, little = tiny_trait(), LengthJudge(), pl.Sampling(4)
    return {
        "sweep_layers": lambda: pl.sweep_layers(model, trait, vector, questions=questions, judge=judge),
        "score_conditions": lambda: pl.score_conditions(model, judge, [pl.Condition()], questions, sampling=little),
        "calibrate": lambda: pl.calibrate(model, vector, target_kl=0.1, layer=1, questions=questions, sampling=little),
        "measure_ordinary_projections": lambda: pl.measure_ordinary_projections(
            model, vector, questions=questions, sampling=little
        ),
        "measure_shift": lambda: pl.measure_shift(model, model, vector, questions),
        "trait_dataset": lambda: pl.trait_dataset(model, trait, "normal", questions=questions, sampling=little),
        "sample_temperatures": lambda: pl.judges.sample_temperatures(model, questions, sampling=little),
        "judge_with_panel": lambda: pl.judges.judge_with_panel([judge], questions, ["x"] * len(questions)),
        "write_spot_check": lambda: pl.judges.write_spot_check("never.csv", questions, ["x"] * len(questions)),
    }[name]()


NAMES = [
    "sweep_layers", "score_conditions", "calibrate", "measure_ordinary_projections", "measure_shift", "trait_dataset",
    "sample_temperatures", "judge_with_panel", "write_spot_check",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_one_question_in_place_of_a_list_is_refused_before_any_model_runs(
    tiny_model, vector, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(tiny_model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    with pytest.raises(PersonaLensError, match=r"`questions` must be .* Got 'How are you\?'.*questions=\[\.\.\.\]"):
        call(name, tiny_model, vector, QUESTION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", ["extraction_questions", "evaluation_questions"])
def test_a_trait_refuses_one_question_in_place_of_a_list(field):
    with pytest.raises(TraitFormatError, match=f"`{field}` must hold at least one entry, in a list"):
        authored.check_texts(field, "Why?")


@given(texts=st.lists(st.text(), max_size=5), least=st.integers(0, 6))
def test_a_list_of_enough_texts_comes_back_as_it_is(texts, least):
    for given_texts in (texts, tuple(texts)):
        if len(texts) >= least:
            assert check_texts("texts", given_texts, least) == tuple(texts)
        else:
            with pytest.raises(InvalidArgumentError, match=f"at least {least}"):
                check_texts("texts", given_texts, least)


@pytest.mark.parametrize("wrong", ["text", [1], ["a", None], [["a"]]])
def test_what_is_no_text_is_refused_by_name(wrong):
    with pytest.raises(InvalidArgumentError, match="`texts`"):
        check_texts("texts", wrong)
