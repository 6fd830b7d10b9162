"""By how much a vector beats random directions of equal coherence: the search for their length, and the margin."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.evaluation import ConditionScores, measure_null_margin
from persona_lens.evaluation.null_margin import _SCALES, interpolate_strength
from persona_lens.vectors import NullMargin
from tests.small_trait import LengthJudge, tiny_trait

QUESTIONS = ("a?", "b?", "c?", "d?")


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", max_new_tokens=6)


def fake(seen, strangeness=20.0, score=lambda name: 40.0):
    """Responses whose coherence is 100 less a multiple of the length that is added; the vector's counts twofold."""

    def score_conditions(model, judge, conditions, questions, *, sampling, stream, run):
        seen.append((conditions, tuple(questions), sampling.rollouts))
        rows = []
        for one in conditions:
            (step,) = one.intervention.steps
            length = float(step.operation.direction.norm()) * abs(step.operation.coefficient)
            rows.append(100 - strangeness * length * (2 if one.name == "steered" else 1))
        shape = (len(conditions), len(questions), sampling.rollouts)
        coherences = torch.tensor(rows)[:, None, None].expand(shape).clone()
        scores = torch.tensor([score(one.name) for one in conditions])[:, None, None].expand(shape).clone()
        scores = scores + torch.arange(len(questions))[None, :, None]  # paired by question
        texts = tuple(tuple(("x",) * sampling.rollouts for _ in questions) for _ in conditions)
        names = tuple(one.name for one in conditions)
        return ConditionScores(names, tuple(questions), judge.name, scores, coherences, texts)

    return score_conditions


def measure(tiny_model, vector, **options):
    options = {"layer": 1, "coefficient": 1.5, "judge": LengthJudge(), "questions": QUESTIONS} | options
    return measure_null_margin(tiny_model, tiny_trait(), vector, **options)


@pytest.mark.parametrize("coefficient", [1.5, -1.5])
def test_random_directions_are_lengthened_to_the_vectors_coherence_on_questions_that_do_not_measure(
    tiny_model, vector, monkeypatch, coefficient
):
    seen = []
    length = 1.5 * float(vector.norms[1])
    by_name = {"steered": 70.0}
    monkeypatch.setattr(
        "persona_lens.evaluation.null_margin.score_conditions",
        fake(seen, 10 / length, lambda name: by_name.get(name, 45.0)),
    )
    found = measure(tiny_model, vector, coefficient=coefficient, random_directions=5)
    assert found.scale == pytest.approx(2.0)  # the vector is as strange as a random direction of twice its length
    assert found.coherence == pytest.approx(found.null_coherence)
    assert found.margin.estimate == pytest.approx(25.0 if coefficient > 0 else -25.0)
    assert found.margin.low <= found.margin.estimate <= found.margin.high
    assert (found.judge, found.layer, found.coefficient) == (LengthJudge().name, 1, coefficient)
    finding, measuring = ("a?", "c?"), ("b?", "d?")
    assert [(len(conditions), questions, rollouts) for conditions, questions, rollouts in seen] == [
        (1, finding, 2), (4 * len(_SCALES), finding, 1), (1, measuring, 2), (5, measuring, 1)
    ]  # fmt: skip
    steered = seen[2][0][0].intervention.steps[0].operation
    assert torch.equal(steered.direction, vector.direction(1))
    assert steered.coefficient == coefficient
    null = [one.intervention.steps[0] for one in seen[3][0]]
    assert {step.layer for step in null} == {1}
    assert len({tuple(step.operation.direction.tolist()) for step in null}) == 5
    for step in null:
        torch.testing.assert_close(step.operation.direction.norm(), torch.tensor(length))


def test_where_no_length_is_as_strange_the_two_coherences_show_it(tiny_model, vector, monkeypatch):
    slight = 1 / (1.5 * float(vector.norms[1]))

    def lenient(*arguments, **options):
        found = fake([], slight)(*arguments, **options)
        strange = torch.tensor([50.0 if name == "steered" else 0.0 for name in found.conditions])
        return dataclasses.replace(found, coherences=found.coherences - strange[:, None, None])

    monkeypatch.setattr("persona_lens.evaluation.null_margin.score_conditions", lenient)
    found = measure(tiny_model, vector)
    assert found.scale == _SCALES[-1]
    assert found.null_coherence - found.coherence == pytest.approx(48.0)


def test_it_is_measured_and_comes_back_from_its_file(tiny_model, vector, tmp_path):
    options = {"random_directions": 2, "sampling": pl.Sampling(max_new_tokens=3)}
    found = measure(tiny_model, vector, **options)
    assert _SCALES[0] <= found.scale <= _SCALES[-1]
    assert found == measure(tiny_model, vector, **options)
    found.save(tmp_path / "null.json")
    assert NullMargin.load(tmp_path / "null.json") == found


class SilentJudge(LengthJudge):
    """Says nothing of coherence."""

    def score(self, questions, responses):
        return [dataclasses.replace(one, coherence=None) for one in super().score(questions, responses)]


def test_what_cannot_be_compared_is_refused(tiny_model, vector):
    other = dataclasses.replace(vector, model=dataclasses.replace(vector.model, fingerprint="0" * 16))
    with pytest.raises(ModelMismatchError):
        measure(tiny_model, other)
    with pytest.raises(pl.errors.LayerOutOfRangeError):
        measure(tiny_model, vector, layer=3)
    for name, options in {
        "coefficient": {"coefficient": 0.0},
        "questions": {"questions": QUESTIONS[:3]},
        "random_directions": {"random_directions": 1},
        "judge": {"judge": SilentJudge(), "sampling": pl.Sampling(max_new_tokens=2)},
    }.items():
        with pytest.raises(InvalidArgumentError, match=f"`{name}`"):
            measure(tiny_model, vector, **options)


def test_a_judge_that_scores_nothing_under_random_directions_is_named(tiny_model, vector, monkeypatch):
    def silent(*arguments, **options):
        found = fake([])(*arguments, **options)
        unknown = torch.tensor([0.0 if name == "steered" else torch.nan for name in found.conditions])
        return dataclasses.replace(found, coherences=found.coherences + unknown[:, None, None])

    monkeypatch.setattr("persona_lens.evaluation.null_margin.score_conditions", silent)
    with pytest.raises(InvalidArgumentError, match="`judge` must say how coherent responses under random directions"):
        measure(tiny_model, vector)


@pytest.mark.parametrize(("strengths", "coherences"), [([], []), ([1.0, 2.0], [50.0])])
def test_no_coherence_to_find_a_strength_by_is_refused(strengths, coherences):
    with pytest.raises(InvalidArgumentError, match="`coherences`"):
        interpolate_strength(strengths, coherences, 60.0)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=5), st.floats(0, 100))
def test_the_strength_of_a_coherence_lies_where_it_is_first_passed(coherences, target):
    strengths = [2.0**level for level in range(len(coherences))]
    found = interpolate_strength(strengths, coherences, target)
    passed = next((index for index, one in enumerate(coherences) if one <= target), None)
    if passed is None:
        assert found == strengths[-1]
    elif passed == 0:
        assert found == strengths[0]
    else:
        assert strengths[passed - 1] <= found <= strengths[passed] * (1 + 1e-9)


def test_between_two_levels_the_strength_is_taken_in_proportion():
    assert interpolate_strength([1.0, 4.0], [80.0, 40.0], 60.0) == pytest.approx(2.0)
