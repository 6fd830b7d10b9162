"""A choice of layer and coefficient, measured on questions that it was not made on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.evaluation.conditions import Condition, ConditionScores, score_conditions
from persona_lens.evaluation.sweep import LayerChoice, shift_at
from persona_lens.judges.judgement import Judge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.records import Record
from persona_lens.run import Run
from persona_lens.statistics import Interval
from persona_lens.statistics.crossed import mean_over_directions_interval
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.texts import check_texts
from persona_lens.vectors.persona_vector import PersonaVector


@checked
@dataclass(frozen=True)
class Confirmation(Record):
    """A choice of layer and coefficient, measured on questions that it was not made on.

    Args:
        layer: Zero-based block index.
        coefficient: Multiplies the raw vector.
        steered: Trait score when steered.
        baseline: Trait score unsteered.
        random: Trait score under random directions of the same norm; its interval, and that of ``above_random``, hold
            for other directions as well as for other questions.
        rise: Steered less unsteered, paired by question.
        above_random: Steered less random, paired by question; over directions too.
        coherence: Coherence when steered.
        baseline_coherence: Coherence unsteered.
        random_coherence: Coherence under random directions.
        examples: Question, unsteered response, steered response.
        n_questions: Questions; the intervals are bootstrapped over them.
        n_responses: Responses sampled.
        n_unscored: Responses without a score.
    """

    layer: int
    coefficient: float
    steered: Interval
    baseline: Interval
    random: Interval
    rise: Interval
    above_random: Interval
    coherence: Interval
    baseline_coherence: Interval
    random_coherence: Interval
    examples: tuple[tuple[str, str, str], ...]
    n_questions: int
    n_responses: int
    n_unscored: int

    @property
    def is_clear(self) -> bool:
        """Whether steering lies above random directions with 95 % confidence."""
        return self.above_random.low > 0


@checked
def confirm_choice(
    model: HookedModel,
    vector: PersonaVector,
    choice: LayerChoice,
    *,
    questions: Sequence[str],
    judge: Judge,
    random_directions: int = 16,
    sampling: Sampling = Sampling(max_new_tokens=32, rollouts=4),
    run: Run = Run(),
) -> Confirmation:
    """Measure a chosen layer and coefficient on fresh questions, against no steering and random directions.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        vector: The vector that was swept.
        choice: From :meth:`SweepResult.choose_coherent` or :meth:`SweepResult.choose_by_score`.
        questions: Questions that were not in the sweep.
        judge: The sweep's judge.
        random_directions: Random directions of the vector's norm at that layer, at least two: what they do differs, so
            they are units of the intervals as the questions are.
        sampling: How responses are drawn: ``rollouts`` of each question steered and unsteered, one under each random
            direction. Its seed is that of the random directions too.
        run: Keeps finished shards and shows progress.

    Returns:
        Scores, differences and coherence with intervals over questions.

    Raises:
        ModelMismatchError: A vector of another model.
        HooksPresentError: The model carries hooks.
        InvalidArgumentError: No questions, or a value out of range.
    """
    vector.check_model(model)
    check_unsteered(model)
    questions = check_texts("questions", questions)
    if random_directions < 2:
        raise InvalidArgumentError.of("random_directions", "be at least 2", random_directions)
    randoms = sample_random_directions(
        vector.norms, model.cfg.d_model, random_directions, sampling.seed + Stream.CONFIRMATION
    )

    def score(conditions: Sequence[Condition], rollouts: int) -> ConditionScores:
        drawn = replace(sampling, rollouts=rollouts)
        return score_conditions(
            model, judge, conditions, questions, sampling=drawn, stream=(Stream.CONFIRMATION,), run=run
        )

    steered = shift_at(choice.layer, vector.direction(choice.layer), choice.coefficient)
    found = score([Condition(), steered], sampling.rollouts)
    random = score([shift_at(choice.layer, one[choice.layer], choice.coefficient) for one in randoms], 1)
    return Confirmation(
        layer=choice.layer,
        coefficient=choice.coefficient,
        steered=found.score(1),
        baseline=found.score(0),
        random=mean_over_directions_interval(random.by_question),
        rise=found.difference(1, 0),
        above_random=mean_over_directions_interval(found.by_question[1] - random.by_question),
        coherence=found.coherence(1),
        baseline_coherence=found.coherence(0),
        random_coherence=mean_over_directions_interval(random.coherence_by_question),
        examples=tuple(
            (question, plain[0], steered[0])
            for question, plain, steered in zip(questions, *found.responses[:2], strict=True)
        ),
        n_questions=len(questions),
        n_responses=found.scores.numel() + random.scores.numel(),
        n_unscored=found.n_unscored + random.n_unscored,
    )
