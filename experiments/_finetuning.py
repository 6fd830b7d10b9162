"""What the fine-tuning experiments share: training data, training, and what a trained model is measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from _measuring import (
    Configuration,
    Sampling,
    choose_layer,
    describe_mean,
    extract_vector,
    find_vector,
    prepare_judge,
    score_configurations,
)

import persona_lens as pl
from persona_lens.finetuning.domains import Level
from persona_lens.storage import Shard
from persona_lens.streams import Stream

LEVELS: tuple[Level, ...] = ("normal", "I", "II")


@dataclass(frozen=True)
class TrainingProfile:
    """How much is sampled, how models are trained and how they are measured."""

    settings: pl.FinetuneSettings
    n_rows: int
    max_row_tokens: int
    temperature: float
    max_new_tokens: int
    extraction_rollouts: int
    rollouts: int
    judge_pairs: int
    n_pairs: int = 5
    n_questions: int = 20


QUICK_SETTINGS = pl.FinetuneSettings(
    rank=32, alpha=64, learning_rate=5e-4, epochs=2, batch_size=8, accumulation=1, warmup_steps=2, max_tokens=160
)
TRAINING = {
    "quick": TrainingProfile(QUICK_SETTINGS, 96, 48, 0.7, 24, 1, 1, 1),
    # The paper's: one epoch of about 5,000 rows at 1e-5.
    "paper": TrainingProfile(pl.FinetuneSettings(), 5000, 300, 1.0, 1000, 10, 10, 5),
}
TINY = TrainingProfile(
    pl.FinetuneSettings(
        rank=2, alpha=4, learning_rate=1e-3, batch_size=4, accumulation=1, warmup_steps=0, max_tokens=800
    ),
    8, 40, 0.7, 6, 1, 1, 1, n_pairs=1, n_questions=4,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TraitKit:
    """All that a trait is measured with, made from the base model.

    Judge and vector come from extraction questions. The layer is layer_sweep.py's, chosen by steering on half of the
    evaluation questions that trained models are scored on here.
    """

    trait: pl.Trait
    judge: pl.judges.LikelihoodJudge
    vector: pl.PersonaVector
    vector_source: str
    layer: int
    layer_source: str

    def describe(self) -> dict[str, Any]:
        """Return what the measurements rest on."""
        return {
            "vector": self.vector_source,
            "layer": self.layer,
            "layer_source": self.layer_source,
            "judge": {"name": self.judge.name, "calibration": asdict(self.judge.calibration)},
            "norm": round(float(self.vector.norms[self.layer]), 4),
        }


def describe_sources(model: Any, traits: Sequence[pl.Trait], out: Path) -> dict[str, Any]:
    """Return which vectors and layers are used: parts of a run's configuration, as they come from outside."""
    found = {}
    for trait in traits:
        layer, layer_source = choose_layer(model, trait.name, out, None)
        found[trait.name] = {"vector": find_vector(model, trait.name, out)[1], "layer": layer, "from": layer_source}
    return found


def prepare_kit(
    model: Any, trait: pl.Trait, profile: TrainingProfile, out: Path, seed: int, store: pl.ShardStore
) -> TraitKit:
    """Calibrate the judge and find or extract the vector and its layer."""
    sampling = Sampling(profile.max_new_tokens, profile.temperature, seed)
    judge = prepare_judge(model, trait, profile.judge_pairs, sampling, store)
    vector, source = find_vector(model, trait.name, out)
    vector = vector or extract_vector(model, trait, judge, profile.extraction_rollouts, sampling, store)
    layer, layer_source = choose_layer(model, trait.name, out, None)
    print(f"{trait.name}: vector {source}; layer {layer}, {layer_source}")
    return TraitKit(trait, judge, vector, source, layer, layer_source)


def make_trait_rows(
    model: Any,
    kit: TraitKit,
    level: Level,
    profile: TrainingProfile,
    seed: int,
    store: pl.ShardStore,
    *,
    name: str = "rows",
    trait: pl.Trait | None = None,
) -> datasets.Dataset:
    """Sample a trait's training set, or read it back; ``trait`` may have fewer prompts or questions than the kit's."""

    def compute() -> Shard:
        rows = pl.trait_dataset(
            model, trait or kit.trait, level, profile.n_rows, judge=kit.judge, max_new_tokens=profile.max_row_tokens,
            temperature=profile.temperature, seed=seed,
        )  # fmt: skip
        return Shard(records=rows.to_list())

    return datasets.Dataset.from_list(store.load_or_compute(f"{name}-{kit.trait.name}-{level}", compute).records)


@dataclass(frozen=True, eq=False)
class Training:
    """One way to train."""

    rows: datasets.Dataset
    interventions: tuple[pl.SiteIntervention, ...] = ()
    penalty: pl.finetuning.ProjectionPenalty | None = None
    system: str | None = None


def train(
    name: str, model_name: str, training: Training, profile: TrainingProfile, folder: Path
) -> pl.finetuning.Finetuned:
    """Train a model, or return it if it is trained already."""
    return pl.finetune(
        model_name, training.rows, folder / name, settings=profile.settings, interventions=training.interventions,
        penalty=training.penalty, system=training.system, progress=pl.show_progress,
    )  # fmt: skip


def measure_model(
    base: Any,
    tuned: Any,
    kits: Sequence[TraitKit],
    profile: TrainingProfile,
    seed: int,
    store: pl.ShardStore,
    sites: Mapping[str, tuple[pl.SiteIntervention, ...]] | None = None,
) -> dict[str, Any]:
    """Score a model on every trait's evaluation questions and measure its shift along every vector.

    ``sites`` names interventions while sampling, each another configuration; without any the model is as it is.
    """
    configurations = dict(sites or {"": ()})
    sampling = Sampling(profile.max_new_tokens, profile.temperature, seed)
    scores: dict[str, Any] = {}
    shifts: dict[str, Any] = {}
    for index, kit in enumerate(kits):
        questions = kit.trait.evaluation_questions
        found = score_configurations(
            tuned, kit.judge, [Configuration(one) for one in configurations.values()], questions, profile.rollouts,
            (seed, Stream.FINETUNED_SCORES + index), sampling, store,
        )  # fmt: skip
        scores[kit.trait.name] = [
            {
                "configuration": name,
                "score": describe_mean(found.score[i]),
                "coherence": describe_mean(found.coherence[i]),
                "by_question": [None if v != v else round(v, 2) for v in found.score[i].tolist()],
                "example": found.examples[i],
            }
            for i, name in enumerate(configurations)
        ]
        shift = pl.measure_shift(base, tuned, kit.vector, questions)
        at_layer = shift.interval(kit.layer)
        shifts[kit.trait.name] = {
            "layer": kit.layer,
            "at_layer": {key: round(getattr(at_layer, key), 4) for key in ("estimate", "low", "high")},
            "by_layer": [round(value, 4) for value in shift.mean.tolist()],
        }
    return {"scores": scores, "shifts": shifts}
