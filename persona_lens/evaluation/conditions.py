"""Conditions and their scores: what every comparison of this package is made of.

A condition says what is done to the residual stream, what stands before the question, and which model answers. All
conditions are asked the same questions and see the same random numbers, so that differences between them are
differences of the conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.judgement import Judge, identify_judge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.rollouts import Rollout, RolloutRequest, sample_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention, check_interventions
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import describe_model
from persona_lens.models.text.chat import Message
from persona_lens.models.text.templates import TemplateArguments, freeze_arguments, write_arguments
from persona_lens.records import Record, format_table
from persona_lens.run import Run
from persona_lens.statistics import Interval
from persona_lens.statistics.missing import difference_interval, mean_interval
from persona_lens.storage import Shard
from persona_lens.streams import Stream
from persona_lens.texts import check_texts

# Conditions sampled and judged between two saves: so many, or as many as have so many responses, so that large work has
# parts to share. Fixed, because a shard is computed as one stream: with another cut, rows would share other batches.
_CONDITIONS_AT_ONCE = 24
_RESPONSES_AT_ONCE = 512


@checked
@dataclass(frozen=True, eq=False)
class Condition:
    """Under what a model answers.

    Args:
        intervention: What is done to the residual stream while it answers.
        system: System prompt; None leaves it to the chat template.
        examples: Turns between system prompt and question.
        model: Who answers, such as a fine-tuned model; None for the model that is given to :func:`score_conditions`.
        name: For results and figures.
        template_arguments: What the chat template reads besides the messages, such as ``{"enable_thinking": False}``;
            they go before those that the model was loaded with.
    """

    intervention: Intervention = NOTHING
    system: str | None = None
    examples: tuple[Message, ...] = ()
    model: HookedModel | None = None
    name: str = ""
    template_arguments: TemplateArguments | None = None

    def describe(self) -> dict[str, Any]:
        """Return all that its responses depend on, as JSON-able values."""
        described = {
            "intervention": self.intervention.digest,
            "system": self.system,
            "examples": list(self.examples),
            "model": None if self.model is None else describe_model(self.model).to_json(),
        }
        # Left out without any, so that what was kept before there were any is still found.
        arguments = write_arguments(self.template_arguments)
        return described | ({"template_arguments": arguments} if arguments else {})


@checked
@dataclass(frozen=True, eq=False, repr=False)
class ConditionScores(Record):
    """Trait score and coherence of every response under every condition.

    Args:
        conditions: The conditions' names.
        questions: Questions asked; the units over which intervals are bootstrapped.
        judge: The judge's name.
        scores: Trait scores, 0 to 100; NaN where the judge gave none.
        coherences: Coherence, 0 to 100, likewise.
        responses: The responses' texts, by condition, question and rollout; of a model that thinks, what was judged.
        n_unfinished: Responses that are thoughts without an end, and so without an answer.
    """

    conditions: tuple[str, ...]
    questions: tuple[str, ...]
    judge: str
    scores: Float[Tensor, "condition question rollout"]
    coherences: Float[Tensor, "condition question rollout"]
    responses: tuple[tuple[tuple[str, ...], ...], ...]
    n_unfinished: int = 0

    @property
    def by_question(self) -> Float[Tensor, "condition question"]:
        """Scores averaged over rollouts; NaN where none is there."""
        return self.scores.nanmean(dim=-1)

    @property
    def coherence_by_question(self) -> Float[Tensor, "condition question"]:
        """Coherence averaged over rollouts; NaN where none is there."""
        return self.coherences.nanmean(dim=-1)

    @property
    def n_unscored(self) -> int:
        """Responses without a score."""
        return int(self.scores.isnan().sum())

    def score(self, condition: int) -> Interval:
        """Return a condition's mean score with its bootstrap interval over questions."""
        return mean_interval(self.by_question[self._check_condition("condition", condition)])

    def coherence(self, condition: int) -> Interval:
        """Return a condition's mean coherence with its bootstrap interval over questions."""
        return mean_interval(self.coherence_by_question[self._check_condition("condition", condition)])

    def difference(self, condition: int, other: int) -> Interval:
        """Return how much higher a condition scores than another, paired by question."""
        pair = self._check_condition("condition", condition), self._check_condition("other", other)
        return difference_interval(*(self.by_question[one] for one in pair))

    def _check_condition(self, name: str, index: int) -> int:
        n_conditions = len(self.conditions)
        if not -n_conditions <= index < n_conditions:
            raise InvalidArgumentError.of(name, f"be below {n_conditions}, as there are so many conditions", index)
        return index

    def __repr__(self) -> str:
        shown = ", ".join(f"{name or i} {self.score(i)}" for i, name in enumerate(self.conditions[:4]))
        more = ", …" if len(self.conditions) > 4 else ""
        return (
            f"ConditionScores({len(self.conditions)} conditions × {len(self.questions)} questions × "
            f"{self.scores.shape[-1]} rollouts; {shown}{more})"
        )

    def _repr_html_(self) -> str:
        rows = [(name or str(i), self.score(i), self.coherence(i)) for i, name in enumerate(self.conditions)]
        return format_table(f"Scored by the {self.judge}", rows, ("condition", "score", "coherence"))


@checked
def score_conditions(
    model: HookedModel,
    judge: Judge,
    conditions: Sequence[Condition],
    questions: Sequence[str],
    *,
    sampling: Sampling = Sampling(),
    stream: Sequence[int] = (Stream.CONDITIONS,),
    run: Run = Run(),
) -> ConditionScores:
    """Sample and judge conditions × questions × rollouts.

    All rows are one stream of full batches, each row with its own condition. Killed at any point, the same call goes on
    where it was, if ``run`` keeps shards.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered: who answers where a condition names no other model.
        judge: Scores the responses.
        conditions: At least one.
        questions: At least one.
        sampling: How responses are drawn; ``rollouts`` of each question under each condition.
        stream: Tells these draws from those of other work with the same seed.
        run: Keeps finished shards, shows progress and says who computes them.

    Returns:
        Scores, coherences and texts.

    Raises:
        InvalidArgumentError: No condition, no question, an intervention that does not fit, or a template argument that
            the chat template does not read.
        ModelMismatchError: An intervention made from vectors of another model.
        HooksPresentError: A model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> ways = [pl.Condition(name="unsteered"), pl.Condition(pl.steer(vector, layer=14))]  # doctest: +SKIP
        >>> pl.score_conditions(model, judge, ways, trait.evaluation_questions)  # doctest: +SKIP
    """
    questions = check_texts("questions", questions)
    if not conditions:
        raise InvalidArgumentError.of("conditions", "be a list of at least one", conditions)
    models = {id(one): one for one in (model, *(c.model for c in conditions)) if one is not None}
    for index, one in models.items():
        check_unsteered(one)
        for condition in conditions:
            if id(condition.model or model) == index:
                freeze_arguments(one.tokenizer, condition.template_arguments)
        check_interventions(one, [c.intervention for c in conditions if id(c.model or model) == index])
    n_responses = len(questions) * sampling.rollouts  # of each
    at_once = min(_CONDITIONS_AT_ONCE, max(1, _RESPONSES_AT_ONCE // n_responses))
    # What the shards depend on, so that one store serves several vectors and choices.
    part = run.part(
        {
            "work": "conditions",
            "model": describe_model(model).to_json(),
            "judge": identify_judge(judge),
            "conditions": [condition.describe() for condition in conditions],
            "questions": list(questions),
            "sampling": sampling.to_json(),
            "stream": list(stream),
            "at_once": at_once,
        }
    )
    chunks = {at: conditions[at : at + at_once] for at in range(0, len(conditions), at_once)}
    pieces = [
        partial(
            part.load_or_compute,
            f"conditions-{at:06d}",
            partial(_score_chunk, model, judge, chunk, questions, sampling, stream),
        )
        for at, chunk in chunks.items()
    ]
    shards = []
    with run.progress("responses", len(conditions) * n_responses) as advance:
        for chunk, shard in zip(chunks.values(), run.compute_each(pieces), strict=True):
            shards.append(shard)
            advance(len(chunk) * n_responses)
    return ConditionScores(
        conditions=tuple(condition.name for condition in conditions),
        questions=tuple(questions),
        judge=judge.name,
        scores=torch.cat([shard.tensors["scores"] for shard in shards]),
        coherences=torch.cat([shard.tensors["coherences"] for shard in shards]),
        responses=tuple(
            tuple(tuple(texts) for texts in condition) for shard in shards for condition in shard.records["responses"]
        ),
        n_unfinished=sum(shard.records.get("n_unfinished", 0) for shard in shards),
    )


@checked
def rescore(scores: ConditionScores, judge: Judge) -> ConditionScores:
    """Let another judge score the same responses; coherence stays where the judge says nothing of it.

    Args:
        scores: Responses with another judge's scores.
        judge: Its opinion is asked.

    Example:
        >>> import persona_lens as pl
        >>> second = pl.evaluation.rescore(scores, other_judge)  # doctest: +SKIP
    """
    found = score_responses(judge, scores.conditions, scores.questions, scores.responses)
    found = replace(found, n_unfinished=scores.n_unfinished)
    return replace(found, coherences=torch.where(found.coherences.isnan(), scores.coherences, found.coherences))


@checked
def score_responses(
    judge: Judge, conditions: Sequence[str], questions: Sequence[str], responses: Sequence[Sequence[Sequence[str]]]
) -> ConditionScores:
    """Let a judge score responses that were sampled elsewhere.

    Args:
        judge: Scores them.
        conditions: The conditions' names.
        questions: What was asked.
        responses: By condition, question and rollout, as many rollouts of each.

    Returns:
        Scores and coherences ``"condition question rollout"``, 0 to 100; NaN where the judge gave none.

    Raises:
        InvalidArgumentError: Responses that do not fit questions and conditions.

    Example:
        >>> import persona_lens as pl
        >>> judge = pl.judges.default_judge(model, pl.load_trait("evil"))  # doctest: +SKIP
        >>> pl.evaluation.score_responses(judge, ["mine"], ["Who are you?"], [[["A friend."]]])  # doctest: +SKIP
    """
    n_rollouts = {len(texts) for condition in responses for texts in condition}
    n_asked = {len(condition) for condition in responses}
    if len(responses) != len(conditions) or n_asked != {len(questions)} or len(n_rollouts) != 1:
        rule = (
            f"hold as many responses to each of {len(questions)} questions under each of {len(conditions)} conditions"
        )
        raise InvalidArgumentError.of("responses", rule, (len(responses), sorted(n_asked), sorted(n_rollouts)))
    shape = (len(conditions), len(questions), *n_rollouts)
    asked = [question for _ in conditions for question in questions for _ in range(shape[-1])]
    judged = judge.score(asked, [text for condition in responses for texts in condition for text in texts])
    return ConditionScores(
        conditions=tuple(conditions),
        questions=tuple(questions),
        judge=judge.name,
        scores=_collect([one.score for one in judged], shape),
        coherences=_collect([one.coherence for one in judged], shape),
        responses=tuple(tuple(tuple(texts) for texts in condition) for condition in responses),
    )


def _collect(values: Sequence[float | None], shape: Sequence[int]) -> Tensor:
    """Return a tensor of scores, NaN where there is none."""
    return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float32).reshape(tuple(shape))


def _score_chunk(
    model: HookedModel,
    judge: Judge,
    conditions: Sequence[Condition],
    questions: Sequence[str],
    sampling: Sampling,
    stream: Sequence[int],
) -> Shard:
    asked: list[tuple[HookedModel, RolloutRequest]] = [
        (
            condition.model or model,
            # The seed leaves the condition out: all conditions see the same random numbers.
            RolloutRequest(
                question,
                (sampling.seed, *stream, q, r),
                condition.system,
                condition.examples,
                condition.intervention,
                condition.template_arguments,
            ),
        )
        for condition in conditions
        for q, question in enumerate(questions)
        for r in range(sampling.rollouts)
    ]
    sampled: dict[int, Rollout] = {}
    for answering in {id(one): one for one, _ in asked}.values():
        rows = [index for index, (one, _) in enumerate(asked) if one is answering]
        sampled |= zip(rows, sample_rollouts(answering, [asked[row][1] for row in rows], sampling), strict=True)
    texts = [sampled[row].response for row in range(len(asked))]
    rest = iter(texts)
    responses = [[[next(rest) for _ in range(sampling.rollouts)] for _ in questions] for _ in conditions]
    found = score_responses(judge, [condition.name for condition in conditions], questions, responses)
    n_unfinished = sum(rollout.is_unfinished for rollout in sampled.values())
    records = {"responses": responses} | ({"n_unfinished": n_unfinished} if n_unfinished else {})
    return Shard({"scores": found.scores, "coherences": found.coherences}, records)
