import dataclasses
import json

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import (
    FileFormatError,
    HooksPresentError,
    InvalidArgumentError,
    LayerOutOfRangeError,
    ModelMismatchError,
)
from persona_lens.evaluation import LayerChoice, RandomNull, SweepResult
from persona_lens.interventions import NOTHING
from persona_lens.judges import Judgement
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.statistics import Interval
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.tensors.operations import Add
from tests.small_trait import FixedJudge, LengthJudge, tiny_trait

SAMPLING = pl.Sampling(max_new_tokens=5, rollouts=2)
SHORT = pl.Sampling(max_new_tokens=2)


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", max_new_tokens=6)


@pytest.fixture(scope="module")
def sweep(tiny_model, vector):
    return pl.sweep_layers(
        tiny_model, tiny_trait(), vector, coefficients=(1.0, 3.0), judge=LengthJudge(), sampling=SAMPLING
    )


def test_a_sweep_has_a_score_for_every_setting(sweep):
    assert sweep.scores.shape == (3, 2, 4)
    assert sweep.null_scores.shape == (2, 1, 2, 4)
    assert sweep.null_layers == (1,)
    assert sweep.baseline_scores.shape == (4,)


def test_each_setting_is_steered_as_if_it_were_alone(tiny_model, vector, sweep):
    """The oracle: one setting, sampled by itself."""
    shift = pl.Intervention.of(2, Add(vector.direction(2), 3.0))
    requests = [
        RolloutRequest(question, (0, Stream.SWEEP, q, 0), intervention=shift)
        for q, question in enumerate(sweep.questions)
    ]
    alone = sample_rollouts(tiny_model, requests, SAMPLING)
    assert sweep.responses[2][1] == tuple(rollout.response for rollout in alone)


def test_a_sweep_survives_the_round_trip_through_json(sweep):
    again = SweepResult.from_json(json.loads(json.dumps(sweep.to_json(), allow_nan=False)))
    assert torch.equal(again.scores.nan_to_num(-1.0), sweep.scores.nan_to_num(-1.0))
    assert again.responses == sweep.responses
    assert again.model == sweep.model
    with pytest.raises(FileFormatError, match="scores"):
        SweepResult.from_json({k: v for k, v in sweep.to_json().items() if k != "scores"})


def with_grid(sweep, scores, coherences):
    content = sweep.to_json()
    content["scores"] = [[[s] * 4 for s in row] for row in scores]
    content["coherences"] = [[[c] * 4 for c in row] for row in coherences]
    return SweepResult.from_json(content)


def test_the_papers_rule_takes_the_highest_score_and_the_other_keeps_the_floor(sweep):
    made = with_grid(sweep, [[10, 20], [30, 90], [60, 40]], [[90, 90], [90, 20], [60, 90]])
    best, coherent = made.choose_by_score(), made.choose_coherent(50.0)
    assert (best.layer, best.coefficient, best.score.estimate) == (1, 3.0, 90)
    assert (coherent.layer, coherent.coefficient, coherent.score.estimate) == (2, 1.0, 60)
    assert made.choose_coherent(95.0) is None


def test_a_setting_without_scores_is_never_chosen(sweep):
    made = with_grid(sweep, [[10, None], [20, None], [5, None]], [[90, 90], [90, 90], [90, 90]])
    assert (made.choose_by_score().layer, made.choose_by_score().coefficient) == (1, 1.0)


def test_a_setting_under_which_the_model_mostly_says_nothing_is_not_coherent(sweep):
    made = with_grid(sweep, [[10, 90]] * 3, [[90, 90]] * 3)
    coherences = made.coherences.clone()
    coherences[:, 1, 0] = float("nan")  # one of four questions: more than a fifth
    made = dataclasses.replace(made, coherences=coherences)
    assert made.choose_coherent().coefficient == sweep.coefficients[0]
    assert made.choose_by_score().coefficient == sweep.coefficients[1]


def test_responses_without_a_score_are_counted(tiny_model, vector):
    judge = FixedJudge((None, None, "x"), (None, None, "x"))
    result = pl.sweep_layers(
        tiny_model, tiny_trait(), vector, coefficients=(1.0,), layers=[0], judge=judge, sampling=SHORT
    )
    assert result.n_unscored == (1 + 1 + 2) * 4


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"layers": [3]}, LayerOutOfRangeError, r"\[0, 3\)"),
        ({"layers": -1}, LayerOutOfRangeError, r"\[0, 3\)"),
        ({"questions": ()}, InvalidArgumentError, "`questions`"),
        ({"coefficients": ()}, InvalidArgumentError, "`coefficients`"),
        ({"coefficients": (1.0, 1.0)}, InvalidArgumentError, "differ"),
        ({"coefficients": (float("nan"),)}, InvalidArgumentError, "finite"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_runs(tiny_model, vector, kwargs, error, match, monkeypatch):
    monkeypatch.setattr("persona_lens.evaluation.sweep.score_conditions", None)
    with pytest.raises(error, match=match):
        pl.sweep_layers(tiny_model, tiny_trait(), vector, judge=LengthJudge(), **kwargs)


def test_a_sweep_shows_itself(sweep):
    assert "best layer" in repr(sweep)
    assert "<table>" in sweep._repr_html_()
    figure = sweep.plot()
    assert figure.layout.yaxis.title.text.startswith("trait score")
    assert figure.layout.xaxis2.title.text.startswith("layer")


def test_a_judge_that_scores_nothing_leaves_a_result_that_says_so(tiny_model, vector):
    class SilentJudge:
        name = "silent"

        def score(self, questions, responses):
            return [Judgement(None, None, "no opinion") for _ in questions]

    silent = pl.sweep_layers(
        tiny_model, tiny_trait(), vector, layers=1, coefficients=(1.0,), judge=SilentJudge(), sampling=SHORT,
        null=RandomNull(directions=2),
    )  # fmt: skip
    assert silent.n_unscored == 4 * 4
    assert silent.choose_coherent() is None
    again = SweepResult.from_json(json.loads(json.dumps(silent.to_json(), allow_nan=False)))
    assert "not defined" in repr(again)
    assert len(again.plot().data) > 0


def measure(model, sweep, intervention):
    """The oracle: one setting sampled by itself, scored by LengthJudge, averaged over two rollouts."""
    requests = [
        RolloutRequest(question, (0, Stream.SWEEP, q, r), intervention=intervention)
        for q, question in enumerate(sweep.questions)
        for r in range(2)
    ]
    sampled = sample_rollouts(model, requests, SAMPLING)
    judged = LengthJudge().score([s.request.question for s in sampled], [s.response for s in sampled])
    rows = torch.tensor([[float("nan") if v is None else v for v in (j.score, j.coherence)] for j in judged])
    return rows.view(len(sweep.questions), 2, 2).nanmean(dim=1).unbind(dim=-1)


def test_scores_baseline_and_null_are_each_those_of_their_own_configuration(tiny_model, vector, sweep):
    randoms = sample_random_directions(vector.norms, 48, 2, 0)
    cases = [(NOTHING, sweep.baseline_scores, sweep.baseline_coherences)]
    for j, coefficient in enumerate((1.0, 3.0)):
        for i in range(3):
            shift = pl.Intervention.of(i, Add(vector.direction(i), coefficient))
            cases.append((shift, sweep.scores[i, j], sweep.coherences[i, j]))
        for d in range(2):
            shift = pl.Intervention.of(1, Add(randoms[d][1], coefficient))
            cases.append((shift, sweep.null_scores[d, 0, j], sweep.null_coherences[d, 0, j]))
    for intervention, scores, coherences in cases:
        expected = measure(tiny_model, sweep, intervention)
        torch.testing.assert_close(scores, expected[0], equal_nan=True)
        torch.testing.assert_close(coherences, expected[1], equal_nan=True)
    assert not torch.equal(sweep.scores[0], sweep.scores[2])
    assert not torch.equal(sweep.null_scores[0], sweep.null_scores[1])


def test_the_evaluation_questions_are_asked_unless_others_are_given(sweep):
    assert sweep.questions == tiny_trait().evaluation_questions


def test_the_null_of_a_coefficient_is_its_own(sweep):
    for j, coefficient in enumerate((1.0, 3.0)):
        expected = float(sweep.null_scores[:, :, j].nanmean())
        assert sweep.null_interval(coefficient).estimate == pytest.approx(expected, abs=1e-3)


def test_a_coherence_that_may_lie_under_the_floor_is_not_surely_coherent(sweep):
    """A mean of 60 over questions that differ widely against the same mean over questions that do not."""
    content = sweep.to_json()
    content["scores"] = [[[90.0] * 4, [50.0] * 4]] * 3
    content["coherences"] = [[[100.0, 100.0, 20.0, 20.0], [60.0, 61.0, 59.0, 60.0]]] * 3
    made = SweepResult.from_json(content)
    assert made.coherence_interval(0, 1.0).estimate == made.coherence_interval(0, 3.0).estimate == 60
    assert (made.choose_by_score().coefficient, made.choose_coherent(50.0).coefficient) == (1.0, 3.0)


def test_a_vector_of_another_model_is_refused(tiny_model, vector):
    other = dataclasses.replace(vector, model=dataclasses.replace(vector.model, fingerprint="0" * 16))
    with pytest.raises(ModelMismatchError):
        pl.sweep_layers(tiny_model, tiny_trait(), other, judge=LengthJudge())


def test_one_store_keeps_several_choices_and_sweeps_apart(tiny_model, vector, tmp_path):
    point = Interval(1.0, 1.0, 1.0)
    run = pl.Run(pl.ShardStore(tmp_path, {}))
    given = {"judge": LengthJudge(), "sampling": pl.Sampling(max_new_tokens=4)}
    for layer, coefficient in ((0, 1.0), (2, 1.0), (2, 3.0)):
        options = given | {"questions": ("Who?", "How?"), "random_directions": 2}
        choice = LayerChoice("made", layer, coefficient, point, point)
        alone = pl.confirm_choice(tiny_model, vector, choice, **options)
        kept = pl.confirm_choice(tiny_model, vector, choice, run=run, **options)
        assert kept.to_json() == alone.to_json()
    for steered_with in (vector, -1.0 * vector):
        options = given | {"coefficients": (1.0,), "layers": (1,), "null": RandomNull(2)}
        alone = pl.sweep_layers(tiny_model, tiny_trait(), steered_with, **options)
        kept = pl.sweep_layers(tiny_model, tiny_trait(), steered_with, run=run, **options)
        assert kept.responses == alone.responses


def test_a_coefficient_that_no_decimal_holds_survives_the_round_trip(tiny_model, vector):
    made = pl.sweep_layers(
        tiny_model, tiny_trait(), vector, judge=LengthJudge(), layers=[1], coefficients=(1 / 3,), sampling=SHORT
    )
    again = SweepResult.from_json(json.loads(json.dumps(made.to_json())))
    assert again.score_interval(1, 1 / 3) == made.score_interval(1, 1 / 3)


def test_a_steered_model_is_not_swept(tiny_model, vector):
    steer = pl.steering_hooks(vector, layer=1, coefficient=1.0)
    with tiny_model.hooks(fwd_hooks=steer), pytest.raises(HooksPresentError):
        pl.sweep_layers(tiny_model, tiny_trait(), vector, judge=LengthJudge())


def test_random_directions_can_be_tried_on_the_first_questions_alone(tiny_model):
    vector = pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", sampling=pl.Sampling(4))
    given = {"layers": (1,), "coefficients": (1.0,), "judge": LengthJudge(), "sampling": pl.Sampling(4)}
    whole, few = (
        pl.sweep_layers(tiny_model, tiny_trait(), vector, null=RandomNull(2, questions=n), **given) for n in (None, 1)
    )
    assert (whole.null_scores.shape[-1], few.null_scores.shape[-1]) == (4, 1)
    assert torch.equal(few.null_scores, whole.null_scores[..., :1])
    assert torch.equal(few.scores, whole.scores)


@pytest.mark.parametrize(("given", "name"), [({"directions": 1}, "directions"), ({"questions": 0}, "questions")])
def test_a_null_of_one_direction_or_no_question_is_refused(given, name):
    with pytest.raises(InvalidArgumentError, match=name):
        RandomNull(**given)
