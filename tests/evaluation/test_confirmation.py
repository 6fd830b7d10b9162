import dataclasses

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.evaluation import ConditionScores, Confirmation, LayerChoice
from persona_lens.statistics import Interval
from tests.small_trait import LengthJudge, tiny_trait


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", max_new_tokens=6)


CHOICE = LayerChoice("by hand", 1, 2.0, Interval(1.0, 1.0, 1.0), Interval(1.0, 1.0, 1.0))


def test_a_confirmation_measures_rise_and_margin(tiny_model, vector):
    choice = LayerChoice("by hand", 1, 2.0, Interval(1.0, 1.0, 1.0), Interval(1.0, 1.0, 1.0))
    result = pl.confirm_choice(
        tiny_model, vector, choice, questions=("Fresh?", "Newer?"), judge=LengthJudge(), random_directions=2,
        sampling=pl.Sampling(max_new_tokens=4, rollouts=2),
    )  # fmt: skip
    assert result.n_responses == (1 + 1) * 2 * 2 + 2 * 2
    assert result.rise.estimate == pytest.approx(result.steered.estimate - result.baseline.estimate, abs=1e-3)
    assert result.above_random.estimate == pytest.approx(result.steered.estimate - result.random.estimate, abs=1e-3)
    assert Confirmation.from_json(result.to_json()) == result


def test_a_confirmation_sets_each_number_in_its_place(tiny_model, vector, monkeypatch):
    """Nothing and the vector, then two random directions, each of two questions, as they were measured."""
    scores = torch.tensor([[10.0, 14.0], [50.0, 60.0], [20.0, 30.0], [40.0, float("nan")]])[..., None]
    coherences = torch.tensor([[90.0, 92.0], [60.0, 70.0], [80.0, 70.0], [60.0, 60.0]])[..., None]
    texts = tuple(tuple((f"{way} {q}",) for q in "ab") for way in ("plain", "steered", "random", "random"))
    conditions, rollouts = [], []

    def score(model, judge, given, questions, *, sampling, **rest):
        rows = slice(len(conditions), len(conditions) + len(given))
        conditions.extend(given)
        rollouts.append(sampling.rollouts)
        names = ("",) * len(given)
        return ConditionScores(names, tuple(questions), judge.name, scores[rows], coherences[rows], texts[rows])

    monkeypatch.setattr("persona_lens.evaluation.confirmation.score_conditions", score)
    found = pl.confirm_choice(
        tiny_model, vector, CHOICE, questions=("a?", "b?"), judge=LengthJudge(), random_directions=2
    )
    intervals = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    estimates = {name: value.estimate for name, value in intervals.items() if isinstance(value, Interval)}
    assert estimates == {
        "steered": 55, "baseline": 12, "random": 30, "rise": 43, "above_random": 25,
        "coherence": 65, "baseline_coherence": 91, "random_coherence": 67.5,
    }  # fmt: skip
    assert rollouts == [4, 1]
    assert found.examples == (("a?", "plain a", "steered a"), ("b?", "plain b", "steered b"))
    assert (found.n_questions, found.n_responses, found.n_unscored) == (2, 8, 1)
    assert not conditions[0].intervention
    directions = [condition.intervention.steps[0].operation.direction for condition in conditions[1:]]
    assert torch.equal(directions[0], vector.direction(1))
    for direction in directions:
        torch.testing.assert_close(direction.norm(), vector.norms[1])
    assert len({tuple(direction.tolist()) for direction in directions}) == 3


def test_an_effect_is_clear_only_if_its_whole_interval_lies_above_random(tiny_model, vector):
    result = pl.confirm_choice(
        tiny_model, vector, CHOICE, questions=("a?", "b?"), judge=LengthJudge(), sampling=pl.Sampling(max_new_tokens=2)
    )
    for low, is_clear in ((-1.0, False), (0.0, False), (0.5, True)):
        made = dataclasses.replace(result, above_random=Interval(5.0, low, 10.0))
        assert made.is_clear is is_clear


@pytest.mark.parametrize(("swept", "given"), [('{"tools": []}', None), ("", {"tools": []})])
def test_other_template_arguments_than_the_sweeps_are_refused(tiny_model, vector, swept, given):
    choice = dataclasses.replace(CHOICE, template_arguments=swept)
    with pytest.raises(InvalidArgumentError, match="those of the sweep"):
        pl.confirm_choice(
            tiny_model, vector, choice, questions=("Fresh?",), judge=LengthJudge(), template_arguments=given
        )


def test_a_vector_of_another_model_is_refused(tiny_model, vector):
    other = dataclasses.replace(vector, model=dataclasses.replace(vector.model, fingerprint="0" * 16))
    with pytest.raises(ModelMismatchError):
        pl.confirm_choice(tiny_model, other, CHOICE, questions=("a?",), judge=LengthJudge())
