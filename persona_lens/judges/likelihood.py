"""LikelihoodJudge: a judge that needs no key and no second model.

It asks the unsteered model itself: is this response likelier under the trait's positive system prompts than under
its negative ones? That is a proxy for a reader's opinion, and a circular one as far as the same model and the same
instructions made the responses; results that rest on it say so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from persona_lens.checking import checked
from persona_lens.errors import ChatTemplateError, ContextLengthError, InvalidArgumentError
from persona_lens.judges.judgement import EMPTY, LONGER_THAN_CONTEXT, Judgement, check_pairs
from persona_lens.models.engine.likelihood import mean_log_likelihoods
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import describe_model
from persona_lens.models.text.chat import Message, build_messages, encode_conversation
from persona_lens.models.text.templates import read_settings
from persona_lens.records import Record
from persona_lens.run import Run
from persona_lens.statistics import Interval, bootstrap_auroc_by_group
from persona_lens.streams import Stream
from persona_lens.traits.trait import Trait

LIKELIHOOD_JUDGE = "likelihood judge (proxy)"
"""The judge's name."""

_MIN_WIDTH = 1e-3  # nats a token; rounding alone moves a likelihood by about this


@checked
@dataclass(frozen=True)
class LikelihoodCalibration(Record):
    r"""How raw log-likelihoods become scores from 0 to 100.

    .. math::
        \text{score} = 100\,\sigma(a d + b), \qquad
        \text{coherence} = 100\,\sigma\bigl(\ln 9 \cdot (1 - r)\bigr), \qquad
        r = \begin{cases} (m - \ell) / (m - q_{lo}) & \ell < m \\ (\ell - m) / (q_{hi} - m) & \ell \ge m \end{cases}

    ``d`` is the mean log-likelihood a token under the positive prompts less that under the negative ones, ``l`` the
    highest of these two and of that without a system prompt, so that the trait itself costs no coherence; ``m``,
    ``q_lo`` and ``q_hi`` are the median, 2.5 % and 97.5 % quantiles of ``l`` over the model's own neutral responses. So
    coherence is 90 for a typical response and 50 for one as odd as one in twenty of the model's own: too unlikely (word
    salad) or too likely (a loop). Denominators under 0.001 nats, as where all the model's own responses are the same,
    count as 0.001.

    Args:
        slope: ``a``, per nat.
        intercept: ``b``.
        typical: ``m``, in nats a token.
        low: ``q_lo``.
        high: ``q_hi``.
        n_positive: Positive responses that the slope was fitted on.
        n_negative: Negative responses likewise.
        n_neutral: Neutral responses that the quantiles come from.
        seed: Seed of the sampling.
    """

    slope: float
    intercept: float
    typical: float
    low: float
    high: float
    n_positive: int
    n_negative: int
    n_neutral: int
    seed: int

    def score(self, difference: float) -> float:
        """Return the trait score of a log-likelihood difference."""
        return 100.0 * _sigmoid(self.slope * difference + self.intercept)

    def coherence(self, log_likelihood: float) -> float:
        """Return the coherence of a log-likelihood under the prompt that fits best."""
        distance = log_likelihood - self.typical
        width = self.typical - self.low if distance < 0 else self.high - self.typical
        return 100.0 * _sigmoid(np.log(9.0) * (1.0 - abs(distance) / max(width, _MIN_WIDTH)))


@checked
@dataclass(frozen=True)
class JudgeSeparation(Record):
    """How well a judge tells positive from negative responses that it was not fitted on.

    Args:
        auroc: Probability that a positive response outscores a negative one, with its interval over questions.
        n_positive: Positive responses.
        n_negative: Negative responses.
        n_unscored: Responses without a score, left out.
    """

    auroc: Interval
    n_positive: int
    n_negative: int
    n_unscored: int


@checked
@dataclass(frozen=True, eq=False)
class LikelihoodJudge:
    """Scores responses by their likelihood under a trait's positive and negative system prompts.

    Make one with :func:`calibrate_likelihood_judge`.

    Args:
        model: The unsteered model.
        trait: The trait.
        n_pairs: How many of the trait's instruction pairs are used.
        calibration: How log-likelihoods become scores.
    """

    model: HookedModel
    trait: Trait
    n_pairs: int
    calibration: LikelihoodCalibration

    @property
    def name(self) -> str:
        """What the judge is."""
        return LIKELIHOOD_JUDGE

    @property
    def identity(self) -> str:
        """Changes whenever a score could."""
        info = describe_model(self.model)
        prompts = _trait_prompts(self.trait, self.n_pairs)
        kind = "likelihood, coherence by the best of the prompts"
        read_with = list(filter(None, [read_settings(self.model.tokenizer).arguments]))
        return json.dumps([kind, info.fingerprint, info.dtype, prompts, asdict(self.calibration), *read_with])

    def __repr__(self) -> str:
        n = self.calibration.n_positive + self.calibration.n_negative
        return (
            f"LikelihoodJudge({self.trait.name!r} on {self.model.cfg.model_name!r}, {self.n_pairs} instruction pairs, "
            f"calibrated on {n} responses)"
        )

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """Judge each response to its question.

        Returns:
            A score and a coherence each; a response that is empty, or too long for the model, gets a reason instead.

        Raises:
            InvalidArgumentError: Lists of unequal length.
            HooksPresentError: The model carries hooks, which would change the scores.
        """
        systems = [*_trait_prompts(self.trait, self.n_pairs), None]
        return [
            Judgement(None, None, row)
            if isinstance(row, str)
            else Judgement(
                self.calibration.score(_difference(row[:-1])), self.calibration.coherence(_best_likelihood(row))
            )
            for row in _log_likelihoods(self.model, systems, questions, responses)
        ]

    def score_trait(self, questions: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """Do as :meth:`score` without the coherence, which costs a forward pass of its own.

        Returns:
            A score each, the same as :meth:`score` gives; coherence is None.

        Raises:
            InvalidArgumentError, HooksPresentError: As :meth:`score`.
        """
        rows = _log_likelihoods(self.model, _trait_prompts(self.trait, self.n_pairs), questions, responses)
        return [
            Judgement(None, None, row)
            if isinstance(row, str)
            else Judgement(self.calibration.score(_difference(row)), None)
            for row in rows
        ]


@checked
def calibrate_likelihood_judge(
    model: HookedModel, trait: Trait, *, n_pairs: int = 2, sampling: Sampling = Sampling(), run: Run = Run()
) -> LikelihoodJudge:
    """Sample labelled responses to the extraction questions and fit a LikelihoodJudge on them.

    Positive and negative responses come from the trait's system prompts, neutral ones from none. The evaluation
    questions stay unseen, for :func:`measure_separation` and for whatever is judged later.

    Args:
        model: HookedTransformer or TransformerBridge.
        trait: The trait to judge.
        n_pairs: Instruction pairs to use, from the first.
        sampling: Of the responses; take the length and temperature of those that will be judged.
        run: Shows progress; keeps the calibration.

    Returns:
        The judge.

    Raises:
        InvalidArgumentError: ``n_pairs`` out of range, or too few responses that are not empty.
        HooksPresentError: The model carries hooks.
    """
    if not 1 <= n_pairs <= len(trait.instruction_pairs):
        rule = f"be in [1, {len(trait.instruction_pairs)}]"
        raise InvalidArgumentError.of("n_pairs", rule, n_pairs, "The trait has no more.")
    check_unsteered(model)
    work = {
        "work": "calibration, coherence by the best of the prompts",
        "model": describe_model(model).to_json(),
        "trait": trait.fingerprint,
        "n_pairs": n_pairs,
        "sampling": sampling.to_json(),
    }

    calibration = run.part(work).load_or_measure(
        "calibration", LikelihoodCalibration, lambda: _calibrate(model, trait, n_pairs, sampling, run)
    )
    return LikelihoodJudge(model, trait, n_pairs, calibration)


def _calibrate(model: HookedModel, trait: Trait, n_pairs: int, sampling: Sampling, run: Run) -> LikelihoodCalibration:
    rollouts, stream = sampling.rollouts, (sampling.seed, Stream.CALIBRATION)
    requests = request_labelled_responses(trait, trait.extraction_questions, n_pairs, rollouts, stream)
    groups = {
        "positive": requests[0],
        "negative": requests[1],
        "neutral": [
            RolloutRequest(question, (*stream, 2, q, r))
            for q, question in enumerate(trait.extraction_questions)
            for r in range(max(rollouts, 2))
        ],
    }
    # One stream and one judgement for all three, so that batches are full and each prompt is computed once.
    labels = [label for label, group in groups.items() for _ in group]
    with run.progress("calibrating the judge (responses)", len(labels)) as advance:
        sampled = sample_rollouts(model, [request for group in groups.values() for request in group], sampling, advance)
    systems = [*_trait_prompts(trait, n_pairs), None]
    rows = _log_likelihoods(model, systems, [r.request.question for r in sampled], [r.response for r in sampled])
    by_label = {
        label: [row for row, own in zip(rows, labels, strict=True) if own == label and not isinstance(row, str)]
        for label in groups
    }
    for label, values in by_label.items():
        if len(values) < 2:
            raise InvalidArgumentError(
                f"`trait` must draw at least 2 non-empty {label} responses to calibrate on. Got {len(values)}. "
                "Raise `rollouts`, or check the model's chat template."
            )
    differences = [np.array([_difference(row[:-1]) for row in by_label[label]]) for label in ("positive", "negative")]
    likelihoods = np.array([_best_likelihood(row) for row in by_label["neutral"]])
    slope, intercept = _fit_logistic(*differences)
    low, typical, high = np.quantile(likelihoods, [0.025, 0.5, 0.975])
    return LikelihoodCalibration(
        slope, intercept, float(typical), float(low), float(high),
        len(differences[0]), len(differences[1]), len(likelihoods), sampling.seed,
    )  # fmt: skip


@checked
def measure_separation(judge: LikelihoodJudge, *, sampling: Sampling = Sampling(), run: Run = Run()) -> JudgeSeparation:
    """Measure a judge on positive and negative responses to the evaluation questions, which it was not fitted on.

    Args:
        judge: The judge.
        sampling: Of the responses; take the length and temperature of those that will be judged. Its seed is that of
            the bootstrap too.
        run: Shows progress.

    Returns:
        The AUROC with its bootstrap interval over questions, and counts.
    """
    stream = (sampling.seed, Stream.SEPARATION)
    positive, negative = request_labelled_responses(
        judge.trait, judge.trait.evaluation_questions, judge.n_pairs, sampling.rollouts, stream
    )
    with run.progress("measuring the judge (responses)", len(positive) + len(negative)) as advance:
        sampled = sample_rollouts(judge.model, positive + negative, sampling, advance)
    judged = judge.score_trait([r.request.question for r in sampled], [r.response for r in sampled])
    rows = list(zip(sampled, judged, strict=True))
    sides = [
        [(row.request.question, judgement.score) for row, judgement in side if judgement.score is not None]
        for side in (rows[: len(positive)], rows[len(positive) :])
    ]
    n_positive, n_negative = map(len, sides)
    scores = [torch.tensor([score for _, score in side]) for side in sides]
    questions = [[question for question, _ in side] for side in sides]
    found = bootstrap_auroc_by_group(scores[0], scores[1], questions[0], questions[1], seed=sampling.seed)
    return JudgeSeparation(found, n_positive, n_negative, len(judged) - n_positive - n_negative)


def request_labelled_responses(
    trait: Trait, questions: Sequence[str], n_pairs: int, rollouts: int, stream: tuple[int, ...]
) -> tuple[list[RolloutRequest], list[RolloutRequest]]:
    """Ask the questions under the trait's first positive and under its first negative system prompts."""
    positive, negative = (
        [
            RolloutRequest(question, (*stream, side, p, q, r), system)
            for p, system in enumerate(systems[:n_pairs])
            for q, question in enumerate(questions)
            for r in range(rollouts)
        ]
        for side, systems in enumerate((trait.positive_system_prompts, trait.negative_system_prompts))
    )
    return positive, negative


def _trait_prompts(trait: Trait, n_pairs: int) -> list[str]:
    """Return the first positive and then the first negative system prompts."""
    return [*trait.positive_system_prompts[:n_pairs], *trait.negative_system_prompts[:n_pairs]]


def _difference(row: Sequence[float]) -> float:
    """Return the mean of the first half (positive prompts) less that of the second, in nats a token."""
    half = len(row) // 2
    return float(np.mean(row[:half]) - np.mean(row[half:]))


def _best_likelihood(row: Sequence[float]) -> float:
    """Return the highest mean log-likelihood of positive, negative and neutral prompts: text may fit any of them."""
    half = len(row) // 2
    return max(float(np.mean(row[:half])), float(np.mean(row[half:-1])), row[-1])


def _log_likelihoods(
    model: HookedModel, systems: Sequence[str | None], questions: Sequence[str], responses: Sequence[str]
) -> list[list[float] | str]:
    """Return each response's mean log-likelihood a token under each system prompt, or why it has none."""
    check_pairs(questions, responses)
    check_unsteered(model)
    rows: list[list[float] | str] = [EMPTY.reason] * len(responses)
    judged, conversations = [], []
    for i, response in enumerate(responses):
        if not response.strip():
            continue
        answer = Message(role="assistant", content=response)
        try:
            encoded = [
                encode_conversation(
                    model.tokenizer, [*build_messages(questions[i], system), answer], n_ctx=model.cfg.n_ctx
                )
                for system in systems
            ]
        except ContextLengthError:
            rows[i] = LONGER_THAN_CONTEXT
        except (ChatTemplateError, InvalidArgumentError):  # such as a marker of a thought with nothing behind it
            rows[i] = "not rendered by the judging model's chat template"
        else:
            judged.append(i)
            conversations += encoded
    likelihoods = iter(mean_log_likelihoods(model, conversations))
    for i in judged:
        found = [next(likelihoods) for _ in systems]
        rows[i] = found if all(map(math.isfinite, found)) else "log-likelihood that is not finite"
    return rows


def _fit_logistic(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Fit P(positive | d) = sigmoid(a d + b) with Platt's smoothed targets, which keep ``a`` finite.

    Reference:
        Platt (1999), "Probabilistic outputs for support vector machines".
    """
    values = np.concatenate([positive, negative])
    smoothed = [(len(positive) + 1) / (len(positive) + 2), 1 / (len(negative) + 2)]
    targets = np.repeat(smoothed, [len(positive), len(negative)])
    # Standardised, so that one scale of steps fits whatever the spread of the log-likelihoods.
    center, spread = values.mean(), values.std() or 1.0
    scaled = (values - center) / spread

    def loss(parameters: np.ndarray) -> float:
        logits = parameters[0] * scaled + parameters[1]
        return float(np.mean(np.logaddexp(0.0, logits) - targets * logits))

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), method="BFGS").x
    return float(slope / spread), float(intercept - slope * center / spread)


def _sigmoid(value: float) -> float:
    return float(1.0 / (1.0 + np.exp(-np.clip(value, -50.0, 50.0))))
