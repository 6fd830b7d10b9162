import dataclasses

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import ArgumentTypeError, HooksPresentError, InvalidArgumentError, ModelMismatchError
from persona_lens.evaluation import Condition, ConditionScores
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.statistics import bootstrap_mean
from persona_lens.tensors import Ablate, Add
from tests.small_trait import FixedJudge, LengthJudge
from tests.tiny import save_tiny

QUESTIONS = ("Why?", "When?", "Who?")
SAMPLING = pl.Sampling(max_new_tokens=5, rollouts=2, seed=3)
EXAMPLES = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})


def direction(seed):
    return torch.randn(48, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return pl.load_model(save_tiny(tmp_path_factory.mktemp("other"), "llama", seed=7), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def conditions(other_model):
    shift = pl.Intervention.of(1, Add(direction(0), 3.0))
    return [
        Condition(name="plain"),
        Condition(shift, name="shifted"),
        Condition(shift + pl.Intervention.of(2, Ablate(direction(1))), system="Be brief.", name="both"),
        Condition(examples=EXAMPLES, name="shown"),
        Condition(model=other_model, name="another"),
    ]


@pytest.fixture(scope="module")
def scored(tiny_model, conditions):
    return pl.score_conditions(tiny_model, LengthJudge(), conditions, QUESTIONS, sampling=SAMPLING, stream=(9, 1))


def test_each_condition_is_answered_as_if_it_were_alone(tiny_model, conditions, scored):
    """The oracle: one condition's requests, made by hand and sampled by themselves."""
    for c, condition in enumerate(conditions):
        requests = [
            RolloutRequest(
                question, (3, 9, 1, q, r), condition.system, condition.examples, intervention=condition.intervention
            )
            for q, question in enumerate(QUESTIONS)
            for r in range(2)
        ]
        alone = sample_rollouts(condition.model or tiny_model, requests, SAMPLING)
        texts = [rollout.response for rollout in alone]
        assert [text for row in scored.responses[c] for text in row] == texts
        judged = LengthJudge().score(QUESTIONS, texts)
        expected = torch.tensor([float("nan") if one.score is None else one.score for one in judged]).view(3, 2)
        torch.testing.assert_close(scored.scores[c], expected, equal_nan=True)
    assert len({scored.responses[c] for c in range(len(conditions))}) == len(conditions)


def test_scores_are_averaged_over_rollouts_and_bootstrapped_over_questions(scored):
    made = dataclasses.replace(
        scored,
        scores=torch.tensor([[[0.0, 10.0], [20.0, float("nan")], [30.0, 40.0]]]),
        coherences=torch.full((1, 3, 2), 50.0),
        conditions=("one",),
        responses=scored.responses[:1],
    )
    assert made.by_question.tolist() == [[5.0, 20.0, 35.0]]
    assert made.score(0) == bootstrap_mean(torch.tensor([5.0, 20.0, 35.0]))
    assert made.score(0).estimate == 20.0
    assert made.coherence(0).estimate == 50.0
    assert made.n_unscored == 1


def test_the_difference_of_a_condition_from_itself_is_nothing(scored):
    assert (scored.difference(1, 1).low, scored.difference(1, 1).high) == (0.0, 0.0)


def test_what_was_scored_survives_the_round_trip(scored, tmp_path):
    scored.save(tmp_path / "scores.json")
    again = ConditionScores.load(tmp_path / "scores.json")
    assert again.responses == scored.responses
    assert torch.equal(again.scores.nan_to_num(-1.0), scored.scores.nan_to_num(-1.0))


def test_a_killed_run_goes_on_where_it_was(tiny_model, conditions, scored, tmp_path, monkeypatch):
    monkeypatch.setattr("persona_lens.evaluation.conditions._CONDITIONS_AT_ONCE", 2)
    asked = []

    class DyingJudge(LengthJudge):
        def score(self, questions, responses):
            asked.append(len(questions))
            if len(asked) == 2:
                raise KeyboardInterrupt
            return super().score(questions, responses)

    run = pl.Run(pl.ShardStore(tmp_path, {}))
    given = {"sampling": SAMPLING, "stream": (9, 1), "run": run}
    with pytest.raises(KeyboardInterrupt):
        pl.score_conditions(tiny_model, DyingJudge(), conditions, QUESTIONS, **given)
    resumed = pl.score_conditions(tiny_model, DyingJudge(), conditions, QUESTIONS, **given)
    assert asked == [12, 12, 12, 6]  # the first two conditions were not asked again
    assert resumed.responses == scored.responses


def test_responses_without_a_score_are_counted(tiny_model):
    judge = FixedJudge((None, None, "x"), (None, None, "x"))
    found = pl.score_conditions(tiny_model, judge, [Condition()], QUESTIONS, sampling=pl.Sampling(max_new_tokens=2))
    assert found.n_unscored == 3
    assert found.score(0).is_missing


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"conditions": []}, InvalidArgumentError, "`conditions`"),
        ({"questions": ()}, InvalidArgumentError, "`questions`"),
        ({"questions": "Why?"}, ArgumentTypeError, "`questions`"),
        ({"conditions": [Condition(pl.Intervention.of(0, Add(torch.ones(47), 1.0)))]}, InvalidArgumentError, "width"),
        (
            {"conditions": [Condition(pl.Intervention(fingerprint="0" * 16))]},
            ModelMismatchError,
            "made from vectors of this model",
        ),
    ],
)
def test_bad_arguments_are_refused_before_the_model_runs(tiny_model, change, error, match, monkeypatch):
    monkeypatch.setattr("persona_lens.evaluation.conditions.sample_rollouts", None)
    given = {"conditions": [Condition()], "questions": QUESTIONS} | change
    with pytest.raises(error, match=match):
        pl.score_conditions(tiny_model, LengthJudge(), **given)


def test_a_hooked_model_answers_no_condition(tiny_model, other_model):
    shift = pl.interventions.intervention_hooks(pl.Intervention.of(0, Add(direction(0), 1.0)))
    for hooked, condition in ((tiny_model, Condition()), (other_model, Condition(model=other_model))):
        with hooked.hooks(fwd_hooks=shift), pytest.raises(HooksPresentError):
            pl.score_conditions(tiny_model, LengthJudge(), [Condition(), condition], QUESTIONS)


def test_another_judge_scores_the_same_responses_and_leaves_coherence_where_it_has_none(tiny_model):
    class Es:
        name = "letters e"

        def score(self, questions, responses):
            self.asked = list(zip(questions, responses, strict=True))
            return [pl.judges.Judgement(float(text.count("e")), None) for text in responses]

    sampling = pl.Sampling(max_new_tokens=5, rollouts=2)
    ways = [pl.Condition(name="a"), pl.Condition(system="Be.")]
    first = pl.score_conditions(tiny_model, LengthJudge(), ways, ["p?", "q?"], sampling=sampling)
    judge = Es()
    second = pl.evaluation.rescore(first, judge)
    assert [question for question, _ in judge.asked] == ["p?", "p?", "q?", "q?"] * 2
    for c, condition in enumerate(first.responses):
        for q, texts in enumerate(condition):
            assert second.scores[c, q].tolist() == [float(text.count("e")) for text in texts]
    assert torch.equal(second.coherences, first.coherences)
    assert (second.judge, second.conditions, second.responses) == ("letters e", first.conditions, first.responses)


def test_responses_that_were_sampled_elsewhere_are_scored_as_those_sampled_here():
    responses = [[["a", "bbb"], ["cc", "d"]], [["", "e"], ["ff", "ggg"]]]
    found = pl.evaluation.score_responses(LengthJudge(), ["one", "two"], ["Why?", "Who?"], responses)
    assert found.conditions == ("one", "two")
    assert found.scores.shape == found.coherences.shape == (2, 2, 2)
    assert found.responses == tuple(tuple(map(tuple, condition)) for condition in responses)
    judged = LengthJudge().score(["Who?"], ["cc"])[0]
    assert float(found.scores[0, 1, 0]) == judged.score
    assert bool(found.scores[1, 0, 0].isnan())  # the empty one
    again = pl.evaluation.rescore(found, LengthJudge())
    torch.testing.assert_close(again.scores, found.scores, equal_nan=True)
    torch.testing.assert_close(again.coherences, found.coherences, equal_nan=True)


@pytest.mark.parametrize(
    "responses",
    [[[["a"], ["b"]]], [[["a"]], [["b"]]], [[["a"], ["b", "c"]], [["d"], ["e"]]], [[["a"], []], [["d"], ["e"]]]],
)
def test_responses_that_do_not_fit_their_questions_and_conditions_are_refused(responses):
    with pytest.raises(InvalidArgumentError, match="`responses` must hold as many responses to each of 2 questions"):
        pl.evaluation.score_responses(LengthJudge(), ["one", "two"], ["Why?", "Who?"], responses)
