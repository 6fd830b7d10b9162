import dataclasses
import math

import numpy as np
import pytest
import torch

import persona_lens as pl
from persona_lens.errors import ChatTemplateError, HooksPresentError, InvalidArgumentError
from persona_lens.judges import likelihood
from persona_lens.judges.likelihood import LikelihoodCalibration
from persona_lens.models.engine.rollouts import Rollout
from persona_lens.streams import Stream
from tests.small_trait import tiny_trait

CALIBRATION = LikelihoodCalibration(
    slope=2.0, intercept=0.5, typical=-2.0, low=-3.0, high=-1.5, n_positive=1, n_negative=1, n_neutral=1, seed=0
)


@pytest.fixture(scope="module")
def judge(tiny_model):
    return pl.judges.calibrate_likelihood_judge(tiny_model, tiny_trait(), sampling=pl.Sampling(max_new_tokens=6))


def log_likelihood(model, question, system, response):
    """The oracle: one conversation, one ordinary forward pass."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    encoded = pl.models.encode_conversation(model.tokenizer, messages)
    with torch.no_grad():
        log_probabilities = model(torch.tensor([encoded.tokens]))[0].log_softmax(-1)
    targets = range(encoded.response_start, encoded.response_end)
    return np.mean([float(log_probabilities[t - 1, encoded.tokens[t]]) for t in targets])


def test_a_score_is_the_calibrated_likelihood_ratio_of_single_passes(tiny_model, judge):
    trait, calibration = judge.trait, judge.calibration
    questions, responses = ["Why?", "Why?", "When?"], ["LOUD!", "so so quiet", "x"]
    for question, response, found in zip(questions, responses, judge.score(questions, responses), strict=True):
        positive, negative = (
            np.mean([log_likelihood(tiny_model, question, system, response) for system in systems[: judge.n_pairs]])
            for systems in (trait.positive_system_prompts, trait.negative_system_prompts)
        )
        logit = calibration.slope * (positive - negative) + calibration.intercept
        assert found.score == pytest.approx(100 / (1 + math.exp(-logit)), abs=0.05)
        neutral = log_likelihood(tiny_model, question, None, response)
        # Text may fit any of the prompts: what shows the trait is not odd for that.
        assert found.coherence == pytest.approx(calibration.coherence(max(positive, negative, neutral)), abs=0.05)


def test_the_trait_alone_scores_the_same_without_coherence(judge):
    questions, responses = ["Why?", "Why?", "When?"], ["LOUD!", "  ", "so so quiet"]
    whole, trait_alone = judge.score(questions, responses), judge.score_trait(questions, responses)
    assert [j.score for j in trait_alone] == pytest.approx([j.score for j in whole], abs=1e-3)
    assert [j.coherence for j in trait_alone] == [None] * 3
    assert trait_alone[1].reason == whole[1].reason != ""
    with pytest.raises(InvalidArgumentError, match="questions"):
        judge.score_trait(questions, responses[:2])


def test_coherence_is_90_for_a_typical_response_and_50_at_the_edges_of_the_models_own():
    assert CALIBRATION.coherence(-2.0) == pytest.approx(90)
    assert CALIBRATION.coherence(-3.0) == pytest.approx(50)
    assert CALIBRATION.coherence(-1.5) == pytest.approx(50)
    assert CALIBRATION.coherence(-8.0) < 1
    assert CALIBRATION.coherence(-0.2) < 1


def test_where_the_models_own_responses_are_all_alike_only_these_are_coherent():
    alike = dataclasses.replace(CALIBRATION, low=-2.0, high=-2.0)
    for rounding in (0.0, 1e-6, -1e-6):
        assert alike.coherence(-2.0 + rounding) == pytest.approx(90, abs=0.1)
    assert alike.coherence(-2.1) < 1
    assert alike.coherence(-1.9) < 1


def test_a_higher_likelihood_ratio_is_a_higher_score():
    scores = [CALIBRATION.score(d) for d in (-500.0, -1.0, 0.0, 1.0, 500.0)]
    assert scores == sorted(scores)
    assert scores[0] >= 0
    assert scores[-1] <= 100


def test_the_fitted_slope_separates_and_stays_finite():
    positive, negative = np.array([0.3, 0.2, 0.25]), np.array([-0.1, -0.3, -0.2])
    slope, intercept = likelihood._fit_logistic(positive, negative)
    assert 0 < slope < 1e3
    assert slope * positive.min() + intercept > 0 > slope * negative.max() + intercept
    flipped, _ = likelihood._fit_logistic(negative, positive)
    assert flipped == pytest.approx(-slope, rel=1e-2)


def test_the_fit_is_that_of_scikit_style_logistic_regression_on_overlapping_data():
    """At the optimum, the mean predicted probability equals the mean target, and likewise weighted by the value."""
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(0.2, 0.3, 60), generator.normal(-0.2, 0.3, 40)
    slope, intercept = likelihood._fit_logistic(positive, negative)
    values = np.concatenate([positive, negative])
    targets = np.concatenate([np.full(60, 61 / 62), np.full(40, 1 / 42)])
    residuals = 1 / (1 + np.exp(-(slope * values + intercept))) - targets
    assert abs(residuals.mean()) < 1e-4
    assert abs((residuals * values).mean()) < 1e-4


def test_an_empty_response_gets_a_reason_and_the_others_their_scores(judge):
    found = judge.score(["Why?", "Why?", "Why?"], ["loud", "  ", "LOUD"])
    alone = judge.score(["Why?"], ["LOUD"])
    assert found[1] == pl.judges.Judgement(None, None, "empty response")
    assert found[2].score == pytest.approx(alone[0].score, abs=1e-3)
    assert judge.score([], []) == []


def test_a_response_that_is_too_long_or_cannot_be_rendered_gets_a_reason_and_the_others_their_scores(
    judge, monkeypatch
):
    found = judge.score(["Why?", "Why?"], ["long " * 200, "LOUD"])
    assert found[0] == pl.judges.Judgement(None, None, "longer than the judging model's context")
    assert found[1].score == pytest.approx(judge.score(["Why?"], ["LOUD"])[0].score, abs=1e-3)
    encode = likelihood.encode_conversation

    def fail(tokenizer, messages, **more):
        if messages[-1]["content"] == "odd":
            raise ChatTemplateError("no")
        return encode(tokenizer, messages, **more)

    monkeypatch.setattr(likelihood, "encode_conversation", fail)
    assert "chat template" in judge.score_trait(["Why?", "Why?"], ["odd", "LOUD"])[0].reason


def test_questions_and_responses_of_unequal_number_are_refused(judge):
    with pytest.raises(InvalidArgumentError, match="as many as `questions`, 2"):
        judge.score(["a", "b"], ["c"])


def test_a_steered_model_may_not_judge(tiny_model, judge):
    hook = ("blocks.1.hook_resid_post", lambda residual, hook: residual)
    with tiny_model.hooks(fwd_hooks=[hook]):
        with pytest.raises(HooksPresentError, match="unsteered model"):
            judge.score(["a"], ["b"])
        with pytest.raises(HooksPresentError):
            pl.judges.calibrate_likelihood_judge(tiny_model, tiny_trait())


@pytest.mark.parametrize("n_pairs", [0, 3])
def test_bad_arguments_are_refused_before_the_model_runs(n_pairs):
    with pytest.raises(InvalidArgumentError, match="`n_pairs`"):
        pl.judges.calibrate_likelihood_judge(torch.nn.Linear(1, 1), tiny_trait(), n_pairs=n_pairs)


def test_calibration_never_sees_the_evaluation_questions(tiny_model, judge):
    other = dataclasses.replace(tiny_trait(), evaluation_questions=("Something", "else"))
    again = pl.judges.calibrate_likelihood_judge(tiny_model, other, sampling=pl.Sampling(max_new_tokens=6))
    assert again.calibration == judge.calibration


def test_the_judge_is_a_judge_and_shows_itself_in_a_line(judge):
    assert isinstance(judge, pl.judges.Judge)
    assert "proxy" in judge.name
    assert repr(judge).startswith("LikelihoodJudge('loud' on ")
    assert len(repr(judge)) < 200


def test_the_identity_changes_with_the_instructions_and_the_calibration(judge):
    recalibrated = dataclasses.replace(judge, calibration=dataclasses.replace(judge.calibration, slope=9.0))
    fewer = dataclasses.replace(judge, n_pairs=1)
    assert len({judge.identity, recalibrated.identity, fewer.identity}) == 3
    assert dataclasses.replace(judge).identity == judge.identity


@pytest.mark.slow
def test_held_out_positive_and_negative_responses_of_the_embedded_model_separate(embedded_model):
    """A small run of what the experiment reports in full: 8 questions that the judge was not calibrated on."""
    trait = pl.load_trait("evil")
    trait = dataclasses.replace(
        trait, extraction_questions=trait.extraction_questions[:4], evaluation_questions=trait.evaluation_questions[:8]
    )
    judge = pl.judges.calibrate_likelihood_judge(
        embedded_model, trait, n_pairs=1, sampling=pl.Sampling(max_new_tokens=16, temperature=0.7)
    )
    separation = pl.judges.measure_separation(judge, sampling=pl.Sampling(max_new_tokens=16, temperature=0.7))
    assert separation.auroc.estimate > 0.75
    assert separation.n_positive + separation.n_negative + separation.n_unscored == 16


def test_the_calibration_is_fitted_on_responses_sampled_and_scored_one_by_one(tiny_model):
    """The oracle: the same labelled responses, each scored by ordinary passes; quantiles by NumPy."""
    trait = tiny_trait()
    found = pl.judges.calibrate_likelihood_judge(
        tiny_model, trait, n_pairs=1, sampling=pl.Sampling(max_new_tokens=6, seed=3)
    ).calibration
    stream = (3, Stream.CALIBRATION)
    positive, negative = trait.positive_system_prompts[0], trait.negative_system_prompts[0]
    values = []
    for side, (system, rollouts) in enumerate(((positive, 1), (negative, 1), (None, 2))):
        seeds = [(0, q, r) if system else (q, r) for q in range(4) for r in range(rollouts)]
        requests = [
            pl.models.RolloutRequest(trait.extraction_questions[seed[-2]], (*stream, side, *seed), system)
            for seed in seeds
        ]
        sampled = pl.models.sample_rollouts(tiny_model, requests, pl.Sampling(max_new_tokens=6))
        values.append(
            np.array(
                [
                    log_likelihood(tiny_model, s.request.question, positive, s.response)
                    - log_likelihood(tiny_model, s.request.question, negative, s.response)
                    if system
                    else max(
                        log_likelihood(tiny_model, s.request.question, one, s.response)
                        for one in (positive, negative, None)
                    )
                    for s in sampled
                ]
            )
        )
    assert (found.n_positive, found.n_negative, found.n_neutral, found.seed) == (4, 4, 8, 3)
    assert [found.low, found.typical, found.high] == pytest.approx(
        np.quantile(values[2], [0.025, 0.5, 0.975]), abs=1e-3
    )
    assert [found.slope, found.intercept] == pytest.approx(likelihood._fit_logistic(*values[:2]), rel=0.02, abs=0.02)


def test_labelled_responses_are_asked_for_under_the_first_pairs_each_with_its_own_draws():
    trait = tiny_trait()
    sides = likelihood.request_labelled_responses(trait, ("a", "b"), 1, 2, (7,))
    for side, systems in zip(sides, (trait.positive_system_prompts, trait.negative_system_prompts), strict=True):
        assert [(r.question, r.system) for r in side] == [(q, systems[0]) for q in ("a", "a", "b", "b")]
    seeds = {request.seed for side in sides for request in side}
    assert len(seeds) == 8
    assert {seed[0] for seed in seeds} == {7}


def answer_by_side(monkeypatch, answer):
    """Let every question be answered by what a test wants of it; return what was asked."""
    asked = []

    def sample(model, requests, sampling, advance):
        asked.extend(requests)
        return [Rollout(request, answer(request), (1,), "stop") for request in requests]

    monkeypatch.setattr(likelihood, "sample_rollouts", sample)
    return asked


def test_separation_is_that_of_responses_to_the_evaluation_questions(judge, monkeypatch):
    trait = judge.trait

    def answer(request):
        if request.system in trait.positive_system_prompts:
            return "" if request.question == "Why?" else "likelier"
        return "likelier" if request.question == "When?" else "unlikelier"

    scores = {"": None, "likelier": 70.0, "unlikelier": 30.0}
    asked = answer_by_side(monkeypatch, answer)
    monkeypatch.setattr(
        likelihood.LikelihoodJudge,
        "score_trait",
        lambda self, questions, responses: [pl.judges.Judgement(scores[r], None) for r in responses],
    )
    found = pl.judges.measure_separation(dataclasses.replace(judge, n_pairs=1))
    assert [r.question for r in asked] == [*trait.evaluation_questions] * 2
    assert not {r.seed[1] for r in asked} & {Stream.CALIBRATION}
    # Three positive responses at 70 against one negative at 70 and three at 30: 9 pairs won, 3 tied.
    assert found.auroc.estimate == pytest.approx((9 + 1.5) / 12)
    assert (found.n_positive, found.n_negative, found.n_unscored) == (3, 4, 1)


def test_the_interval_of_the_separation_does_not_shrink_with_answers_that_say_the_same(judge, monkeypatch):
    trait = judge.trait

    def answer(request):  # all answers to a question are alike, so more of them say nothing more
        number = trait.evaluation_questions.index(request.question)
        return f"{'+' if request.system in trait.positive_system_prompts else '-'}{number}"

    scores = {"+0": 90.0, "+1": 80.0, "+2": 45.0, "+3": 30.0, "-0": 10.0, "-1": 20.0, "-2": 50.0, "-3": 60.0}
    answer_by_side(monkeypatch, answer)
    monkeypatch.setattr(
        likelihood.LikelihoodJudge,
        "score_trait",
        lambda self, questions, responses: [pl.judges.Judgement(scores[r], None) for r in responses],
    )
    once, often = (pl.judges.measure_separation(judge, sampling=pl.Sampling(rollouts=n)).auroc for n in (1, 10))
    assert (often.low, often.high) == (once.low, once.high)


def test_a_trait_that_draws_no_text_cannot_be_calibrated_on(tiny_model, monkeypatch):
    trait = tiny_trait()
    answer_by_side(monkeypatch, lambda request: "" if request.system in trait.negative_system_prompts else "x")
    with pytest.raises(InvalidArgumentError, match="2 non-empty negative responses"):
        pl.judges.calibrate_likelihood_judge(tiny_model, trait)


def test_the_identity_changes_with_the_model(judge, tiny_folder):
    other = pl.load_model(tiny_folder("qwen2"), dtype="float32", device="cpu")
    half = pl.load_model(tiny_folder("llama"), dtype="bfloat16", device="cpu")
    identities = {dataclasses.replace(judge, model=model).identity for model in (judge.model, other, half)}
    assert len(identities) == 3


def test_a_response_whose_likelihood_is_no_number_gets_a_reason(tiny_folder):
    model = pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")
    model.ln_final.w.data[0] = float("inf")
    judge = pl.judges.LikelihoodJudge(model, tiny_trait(), 1, CALIBRATION)
    (found,) = judge.score(["Why?"], ["LOUD!"])
    assert found.score is None
    assert "not finite" in found.reason
