"""What a trained model is measured by: its scores under every trait, and its shift along every vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.evaluation.conditions import rescore, score_responses
from persona_lens.finetuning.shift import FinetuningShift, project_questions
from persona_lens.judges.coherent import CoherentJudge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.records import Record
from persona_lens.reproduction.kits import TraitKit
from persona_lens.reproduction.layer_sweep import JudgeNote, ScoreAndCoherence
from persona_lens.statistics import Interval, bootstrap_pearson_difference_by_group, bootstrap_pearson_r_by_group
from persona_lens.streams import Stream


@dataclass(frozen=True)
class Kit:
    """What a trait is measured with: vector and layer with where they are from, and the vector's norm there.

    ``second`` is the judge that scores the same responses again, if there is one.
    """

    vector: str
    layer: int
    layer_source: str
    judge: JudgeNote
    norm: float
    second: JudgeNote | None = None


@dataclass(frozen=True)
class ScoredModel(ScoreAndCoherence):
    """A model's responses, scored; ``configuration`` names what intervened while they were sampled.

    ``second`` is the second judge's mean score of the same responses, where there is one.
    """

    configuration: str
    by_question: tuple[float, ...]
    example: str
    second: Interval | None = field(default=None, kw_only=True)
    second_by_question: tuple[float, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Shift:
    """A trained model's shift along a trait's vector, at the trait's layer and at every layer."""

    layer: int
    at_layer: Interval
    by_layer: tuple[float, ...]


@dataclass(frozen=True)
class MeasuredModel(Record):
    """A model's scores, one for each intervention, and its shift, by trait."""

    scores: dict[str, tuple[ScoredModel, ...]]
    shifts: dict[str, Shift]


@dataclass(frozen=True)
class BaseModel(Record):
    """The model before training, by trait."""

    scores: dict[str, ScoredModel]
    shifts: dict[str, Shift]


@dataclass(frozen=True)
class TrainedModel(BaseModel):
    """A model trained on one dataset at one level, by trait; ``data_score`` is the judge's mean of a trait's rows."""

    dataset: str
    level: str
    kind: str
    n_rows: int
    left_out: dict[str, int]
    losses: tuple[float, ...]
    data_score: float | None
    example: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Correlation(Interval):
    """A correlation over ``n`` models or datasets; too few give NaN."""

    n: int = field(kw_only=True)


def is_coherent(measured: Mapping[str, ScoreAndCoherence], min_coherence: float) -> bool:
    """Whether a model's text is coherent enough for its scores to mean something, wherever that was measured."""
    return find_coherence(measured) >= min_coherence


def find_coherence(measured: Mapping[str, ScoreAndCoherence]) -> float:
    """Return a model's least coherence on any trait's questions where it was measured; NaN where it was nowhere."""
    found = [one.coherence.estimate for one in measured.values() if not one.coherence.is_missing]
    return min(found, default=float("nan"))


def describe_kit(kit: TraitKit) -> Kit:
    """Return what a trait's measurements rest on."""
    return Kit(
        vector=kit.sources.vector_source,
        layer=kit.layer,
        layer_source=kit.sources.layer_source,
        judge=kit.judge_note,
        norm=float(kit.vector.norms[kit.layer]),
        second=None if kit.second is None else JudgeNote(kit.second.name),
    )


def project_base(base: HookedModel, kits: Sequence[TraitKit]) -> dict[str, Tensor]:
    """Project the model before training once, for all that are trained from it: by trait, ``"layer question"``."""
    return {kit.trait.name: project_questions(base, kit.vector, kit.trait.evaluation_questions) for kit in kits}


def measure_model(
    before: Mapping[str, Tensor],
    tuned: HookedModel,
    kits: Sequence[TraitKit],
    sampling: Sampling,
    interventions: Mapping[str, Intervention] | None = None,
) -> MeasuredModel:
    """Score a model on every trait's evaluation questions and measure its shift along every vector.

    Coherence is the model's and no trait's, and takes three readings of each response: it is measured on the first
    trait's questions alone.

    Args:
        before: Projections of the model before training, from :func:`project_base`.
        tuned: The model.
        kits: The traits.
        sampling: How its responses are drawn.
        interventions: By name, what is done while it answers, each another condition; left out, nothing.
    """
    ways = {"": NOTHING} if interventions is None else interventions
    responses = _sample_all(tuned, kits, list(ways.values()), sampling)
    scores: dict[str, tuple[ScoredModel, ...]] = {}
    shifts: dict[str, Shift] = {}
    for index, kit in enumerate(kits):
        questions = kit.trait.evaluation_questions
        judge = kit.judge.judge if index > 0 and isinstance(kit.judge, CoherentJudge) else kit.judge
        found = score_responses(judge, list(ways), questions, responses[index])
        again = None if kit.second is None else rescore(found, kit.second)
        scores[kit.trait.name] = tuple(
            ScoredModel(
                found.score(i), found.coherence(i), name, tuple(found.by_question[i].tolist()),
                found.responses[i][0][0],
                second=None if again is None else again.score(i),
                second_by_question=() if again is None else tuple(again.by_question[i].tolist()),
            )
            for i, name in enumerate(ways)
        )  # fmt: skip
        after = project_questions(tuned, kit.vector, questions)
        shift = FinetuningShift(kit.trait.name, after - before[kit.trait.name])
        shifts[kit.trait.name] = Shift(kit.layer, shift.interval(kit.layer), tuple(shift.mean.tolist()))
    return MeasuredModel(scores, shifts)


def _sample_all(
    tuned: HookedModel, kits: Sequence[TraitKit], ways: Sequence[Intervention], sampling: Sampling
) -> list[list[list[list[str]]]]:
    """Return responses by trait, way, question and rollout; all as one stream, as a trait's few would fill no batch."""
    places = [
        (index, way, q, r)
        for index, kit in enumerate(kits)
        for way in range(len(ways))
        for q in range(len(kit.trait.evaluation_questions))
        for r in range(sampling.rollouts)
    ]
    requests = [
        RolloutRequest(
            kits[index].trait.evaluation_questions[q],
            (sampling.seed, Stream.FINETUNED_SCORES + index, q, r),
            intervention=ways[way],
        )
        for index, way, q, r in places
    ]
    texts = iter(one.response for one in sample_rollouts(tuned, requests, sampling))
    return [
        [[[next(texts) for _ in range(sampling.rollouts)] for _ in kit.trait.evaluation_questions] for _ in ways]
        for kit in kits
    ]


def correlate_pairs(x: Sequence[float], y: Sequence[float], datasets: Sequence[str]) -> Correlation:
    """Correlate two measurements of the same models where both are there; NaN for models of fewer than three datasets.

    Models of one dataset are not independent, so datasets are what is resampled.
    """
    rows = [(a, b, name) for a, b, name in zip(x, y, datasets, strict=True) if a == a and b == b]
    found = Interval.missing()
    if len({name for _, _, name in rows}) >= 3:
        first, second, groups = zip(*rows, strict=True)
        found = bootstrap_pearson_r_by_group(_to_tensor(first), _to_tensor(second), groups)
    return Correlation(**vars(found), n=len(rows))


def compare_correlations(
    x: Sequence[float], other: Sequence[float], y: Sequence[float], datasets: Sequence[str]
) -> Interval:
    """Return by how much ``x`` goes more with ``y`` than ``other`` does; missing for fewer than three datasets."""
    rows = [row for row in zip(x, other, y, datasets, strict=True) if all(one == one for one in row[:3])]
    if len({row[3] for row in rows}) < 3:
        return Interval.missing()
    first, second, third, groups = zip(*rows, strict=True)
    return bootstrap_pearson_difference_by_group(_to_tensor(first), _to_tensor(second), _to_tensor(third), groups)


def _to_tensor(values: Sequence[float]) -> Float[Tensor, " n"]:
    return torch.tensor(values, dtype=torch.float64)
