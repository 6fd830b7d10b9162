import dataclasses
import json
import math

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
from persona_lens.evaluation import sweep as sweep_module
from persona_lens.evaluation.sweep import LayerChoice
from persona_lens.statistics import Interval
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.tensors.operations import Add
from tests.small_trait import FixedJudge, tiny_trait


class LengthJudge:
    """Scores a response by its letters: a real function of the text, cheap and without a model."""

    name = "length"

    def score(self, questions, responses):
        return [
            pl.Judgement(float(sum(map(ord, r)) % 101), float(len(r) % 101)) if r else pl.Judgement(None, None, "empty")
            for r in responses
        ]


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", max_new_tokens=6)


@pytest.fixture(scope="module")
def sweep(tiny_model, vector):
    return pl.sweep_layers(
        tiny_model, tiny_trait(), vector, coefficients=(1.0, 3.0), judge=LengthJudge(), rollouts=2, max_new_tokens=5
    )


def test_a_sweep_has_a_score_for_every_setting(sweep):
    assert sweep.scores.shape == (3, 2, 4)
    assert sweep.null_scores.shape == (2, 1, 2, 4)
    assert sweep.null_layers == (1,)
    assert sweep.baseline_scores.shape == (4,)


def test_each_setting_is_steered_as_if_it_were_alone(tiny_model, vector, sweep):
    """The oracle: one configuration, sampled by itself."""
    site = pl.SiteIntervention(2, Add(vector.direction(2), 3.0))
    requests = [
        pl.RolloutRequest(question, (0, Stream.SWEEP, q, 0), interventions=(site,))
        for q, question in enumerate(sweep.questions)
    ]
    alone = pl.sample_rollouts(tiny_model, requests, pl.SamplingSettings(max_new_tokens=5))
    assert sweep.responses[2][1] == tuple(rollout.response for rollout in alone)


def test_a_sweep_survives_the_round_trip_through_json(sweep):
    again = pl.SweepResult.from_json(json.loads(json.dumps(sweep.to_json(), allow_nan=False)))
    torch.testing.assert_close(again.scores, sweep.scores, atol=1e-3, rtol=0, equal_nan=True)
    assert again.responses == sweep.responses
    assert again.model == sweep.model
    with pytest.raises(FileFormatError, match="scores"):
        pl.SweepResult.from_json({k: v for k, v in sweep.to_json().items() if k != "scores"})


def with_grid(sweep, scores, coherences):
    content = sweep.to_json()
    content["scores"] = [[[s] * 4 for s in row] for row in scores]
    content["coherences"] = [[[c] * 4 for c in row] for row in coherences]
    return pl.SweepResult.from_json(content)


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


def test_a_confirmation_measures_rise_and_margin(tiny_model, vector):
    choice = LayerChoice("by hand", 1, 2.0, Interval(1.0, 1.0, 1.0), Interval(1.0, 1.0, 1.0))
    result = pl.confirm_choice(
        tiny_model, vector, choice, questions=("Fresh?", "Newer?"), judge=LengthJudge(), rollouts=2,
        random_directions=2, max_new_tokens=4,
    )  # fmt: skip
    assert result.n_responses == (1 + 1 + 2) * 2 * 2
    assert result.rise.estimate == pytest.approx(result.steered.estimate - result.baseline.estimate, abs=1e-3)
    assert result.above_random.estimate == pytest.approx(result.steered.estimate - result.random.estimate, abs=1e-3)
    assert pl.Confirmation.from_json(json.loads(json.dumps(result.to_json()))).layer == 1


def test_responses_without_a_score_are_counted(tiny_model, vector):
    judge = FixedJudge((None, None, "x"), (None, None, "x"))
    result = pl.sweep_layers(
        tiny_model, tiny_trait(), vector, coefficients=(1.0,), layers=[0], judge=judge, max_new_tokens=2
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
        ({"rollouts": 0}, InvalidArgumentError, "`rollouts`"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_runs(tiny_model, vector, kwargs, error, match, monkeypatch):
    monkeypatch.setattr("persona_lens.evaluation.sweep.sample_rollouts", None)
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
            return [pl.Judgement(None, None, "no opinion") for _ in questions]

    silent = pl.sweep_layers(
        tiny_model, tiny_trait(), vector, layers=1, coefficients=(1.0,), judge=SilentJudge(), max_new_tokens=2,
        random_directions=1,
    )  # fmt: skip
    assert silent.n_unscored == 3 * 4
    assert silent.choose_coherent() is None
    again = pl.SweepResult.from_json(json.loads(json.dumps(silent.to_json(), allow_nan=False)))
    assert "nan" in repr(again)
    assert len(again.plot().data) > 0


def measure(model, sweep, *sites):
    """The oracle: one configuration sampled by itself, scored by LengthJudge, averaged over two rollouts."""
    requests = [
        pl.RolloutRequest(question, (0, Stream.SWEEP, q, r), interventions=sites)
        for q, question in enumerate(sweep.questions)
        for r in range(2)
    ]
    sampled = pl.sample_rollouts(model, requests, pl.SamplingSettings(max_new_tokens=5))
    judged = LengthJudge().score([s.request.question for s in sampled], [s.response for s in sampled])
    rows = torch.tensor([[float("nan") if v is None else v for v in (j.score, j.coherence)] for j in judged])
    return rows.view(len(sweep.questions), 2, 2).nanmean(dim=1).unbind(dim=-1)


def test_scores_baseline_and_null_are_each_those_of_their_own_configuration(tiny_model, vector, sweep):
    randoms = sample_random_directions(vector.norms, 48, 2, 0)
    cases = [((), sweep.baseline_scores, sweep.baseline_coherences)]
    for j, coefficient in enumerate((1.0, 3.0)):
        for i in range(3):
            site = pl.SiteIntervention(i, Add(vector.direction(i), coefficient))
            cases.append(((site,), sweep.scores[i, j], sweep.coherences[i, j]))
        for d in range(2):
            site = pl.SiteIntervention(1, Add(randoms[d][1], coefficient))
            cases.append(((site,), sweep.null_scores[d, 0, j], sweep.null_coherences[d, 0, j]))
    for sites, scores, coherences in cases:
        expected = measure(tiny_model, sweep, *sites)
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
    made = pl.SweepResult.from_json(content)
    assert made.coherence_interval(0, 1.0).estimate == made.coherence_interval(0, 3.0).estimate == 60
    assert (made.choose_by_score().coefficient, made.choose_coherent(50.0).coefficient) == (1.0, 3.0)


CHOICE = LayerChoice("by hand", 1, 2.0, Interval(1.0, 1.0, 1.0), Interval(1.0, 1.0, 1.0))


def test_a_confirmation_sets_each_number_in_its_place(tiny_model, vector, monkeypatch):
    """Four configurations (nothing, the vector, two random directions) of two questions, as they were measured."""
    scores = torch.tensor([[10.0, 14.0], [50.0, 60.0], [20.0, 30.0], [40.0, 30.0]])[..., None]
    coherences = torch.tensor([[90.0, 92.0], [60.0, 70.0], [80.0, 70.0], [60.0, 60.0]])[..., None]
    texts = [[f"{way} {q}" for q in "ab"] for way in ("plain", "steered", "random", "random")]
    configurations = []

    def run(model, given, *rest):
        configurations.extend(given)
        return scores, coherences, texts, 3

    monkeypatch.setattr("persona_lens.evaluation.sweep._run_configurations", run)
    found = pl.confirm_choice(
        tiny_model, vector, CHOICE, questions=("a?", "b?"), judge=LengthJudge(), random_directions=2
    )
    estimates = {name: value["estimate"] for name, value in found.to_json().items() if isinstance(value, dict)}
    assert estimates == {
        "steered": 55, "baseline": 12, "random": 30, "rise": 43, "above_random": 25,
        "coherence": 65, "baseline_coherence": 91, "random_coherence": 67.5,
    }  # fmt: skip
    assert found.examples == (("a?", "plain a", "steered a"), ("b?", "plain b", "steered b"))
    assert (found.n_questions, found.n_responses, found.n_unscored) == (2, 8, 3)
    assert configurations[0].interventions == ()
    directions = [c.interventions[0].intervention.direction for c in configurations[1:]]
    assert torch.equal(directions[0], vector.direction(1))
    for direction in directions:
        torch.testing.assert_close(direction.norm(), vector.norms[1])
    assert len({tuple(direction.tolist()) for direction in directions}) == 3


def test_an_effect_is_clear_only_if_its_whole_interval_lies_above_random(tiny_model, vector):
    result = pl.confirm_choice(
        tiny_model, vector, CHOICE, questions=("a?", "b?"), judge=LengthJudge(), rollouts=1, max_new_tokens=2
    )
    for low, is_clear in ((-1.0, False), (0.0, False), (0.5, True)):
        made = dataclasses.replace(result, above_random=Interval(5.0, low, 10.0))
        assert made.is_clear is is_clear


def test_a_vector_of_another_model_is_refused(tiny_model, vector):
    other = dataclasses.replace(vector, model=dataclasses.replace(vector.model, fingerprint="0" * 16))
    with pytest.raises(ModelMismatchError):
        pl.sweep_layers(tiny_model, tiny_trait(), other, judge=LengthJudge())
    with pytest.raises(ModelMismatchError):
        pl.confirm_choice(tiny_model, other, CHOICE, questions=("a?",), judge=LengthJudge())


def test_one_question_gives_means_without_intervals_instead_of_an_error():
    one = torch.tensor([float("nan"), 42.0])
    interval = sweep_module._interval(one)
    assert math.isnan(interval.low)
    assert math.isnan(sweep_module._paired(one, one).estimate)
    assert sweep_module._interval(torch.tensor([40.0, 44.0])).estimate == 42.0


def test_one_store_keeps_several_choices_and_sweeps_apart(tiny_model, vector, tmp_path):
    point = Interval(1.0, 1.0, 1.0)
    store = pl.ShardStore(tmp_path, {})
    given = {"judge": LengthJudge(), "rollouts": 1, "random_directions": 1, "max_new_tokens": 4}
    for layer, coefficient in ((0, 1.0), (2, 1.0), (2, 3.0)):
        choice = LayerChoice("made", layer, coefficient, point, point)
        alone = pl.confirm_choice(tiny_model, vector, choice, questions=("Who?", "How?"), **given)
        kept = pl.confirm_choice(tiny_model, vector, choice, questions=("Who?", "How?"), store=store, **given)
        assert kept.to_json() == alone.to_json()
    for steered_with in (vector, -1.0 * vector):
        options = given | {"coefficients": (1.0,), "layers": (1,)}
        alone = pl.sweep_layers(tiny_model, tiny_trait(), steered_with, **options)
        kept = pl.sweep_layers(tiny_model, tiny_trait(), steered_with, store=store, **options)
        assert kept.responses == alone.responses


def test_a_steered_model_is_not_swept(tiny_model, vector):
    steer = pl.steering_hooks(vector, layer=1, coefficient=1.0)
    with tiny_model.hooks(fwd_hooks=steer), pytest.raises(HooksPresentError):
        pl.sweep_layers(tiny_model, tiny_trait(), vector, judge=LengthJudge())
