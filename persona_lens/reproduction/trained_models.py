"""What a trained model is measured by: its scores under every trait, and its shift along every vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from persona_lens.evaluation.conditions import Condition, score_conditions
from persona_lens.finetuning.shift import measure_shift
from persona_lens.judges.likelihood import LikelihoodCalibration
from persona_lens.models.engine.sampling import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.records import Record
from persona_lens.reproduction.kits import TraitKit
from persona_lens.reproduction.layer_sweep import ScoreAndCoherence
from persona_lens.run import Run
from persona_lens.statistics import Interval, bootstrap_pearson_r
from persona_lens.streams import Stream


@dataclass(frozen=True)
class KitJudge:
    """The judge that a trait is scored by."""

    name: str
    calibration: LikelihoodCalibration


@dataclass(frozen=True)
class Kit:
    """What a trait is measured with: vector and layer with where they are from, and the vector's norm there."""

    vector: str
    layer: int
    layer_source: str
    judge: KitJudge
    norm: float


@dataclass(frozen=True)
class ScoredModel(ScoreAndCoherence):
    """A model's responses, scored; ``configuration`` names what intervened while they were sampled."""

    configuration: str
    by_question: tuple[float, ...]
    example: str


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
    """Whether a model's text is coherent enough under every trait for its scores to mean something."""
    return all(one.coherence.estimate >= min_coherence for one in measured.values())


def describe_kit(kit: TraitKit) -> Kit:
    """Return what a trait's measurements rest on."""
    return Kit(
        vector=kit.sources.vector_source,
        layer=kit.layer,
        layer_source=kit.sources.layer_source,
        judge=KitJudge(kit.judge.name, kit.judge.calibration),
        norm=float(kit.vector.norms[kit.layer]),
    )


def measure_model(
    base: HookedModel,
    tuned: HookedModel,
    kits: Sequence[TraitKit],
    sampling: Sampling,
    run: Run,
    interventions: Mapping[str, Intervention] | None = None,
) -> MeasuredModel:
    """Score a model on every trait's evaluation questions and measure its shift along every vector.

    Args:
        base: The model before training.
        tuned: The model.
        kits: The traits.
        sampling: How its responses are drawn.
        run: Keeps finished shards.
        interventions: By name, what is done while it answers, each another condition; left out, nothing.
    """
    ways = {"": NOTHING} if interventions is None else interventions
    scores: dict[str, tuple[ScoredModel, ...]] = {}
    shifts: dict[str, Shift] = {}
    for index, kit in enumerate(kits):
        questions = kit.trait.evaluation_questions
        found = score_conditions(
            tuned, kit.judge, [Condition(done, name=name) for name, done in ways.items()], questions,
            sampling=sampling, stream=(Stream.FINETUNED_SCORES + index,), run=run,
        )  # fmt: skip
        scores[kit.trait.name] = tuple(
            ScoredModel(
                found.score(i), found.coherence(i), name, tuple(found.by_question[i].tolist()),
                found.responses[i][0][0],
            )
            for i, name in enumerate(ways)
        )  # fmt: skip
        shift = measure_shift(base, tuned, kit.vector, questions)
        shifts[kit.trait.name] = Shift(kit.layer, shift.interval(kit.layer), tuple(shift.mean.tolist()))
    return MeasuredModel(scores, shifts)


def correlate_pairs(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Correlate two measurements of the same models where both are there; NaN for fewer than three."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a == a and b == b]
    found = Interval.missing()
    if len(pairs) >= 3:
        found = bootstrap_pearson_r(*(torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True)))
    return Correlation(**vars(found), n=len(pairs))
