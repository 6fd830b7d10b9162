"""What experiments on fine-tuned models train on, how, and with which profiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import datasets

from persona_lens.finetuning.domains import Level
from persona_lens.finetuning.settings import FinetuneSettings, ProjectionPenalty
from persona_lens.finetuning.training import Finetuned, finetune
from persona_lens.finetuning.trait_data import trait_dataset
from persona_lens.models.engine.sampling import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.loading import load_model
from persona_lens.reproduction.arguments import CommonArguments
from persona_lens.reproduction.kits import Profile, TraitKit
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.traits.trait import Trait

LEVELS: tuple[Level, ...] = ("normal", "I", "II")


@dataclass(frozen=True)
class TrainingProfile(Profile):
    """How models are trained too, on how many rows of how many tokens."""

    settings: FinetuneSettings
    n_rows: int
    max_row_tokens: int

    def sample_rows(self, seed: int) -> Sampling:
        """Return how the responses are drawn that models are trained on."""
        return Sampling(self.max_row_tokens, self.temperature, seed=seed)


_QUICK = FinetuneSettings(
    rank=32, alpha=64, learning_rate=5e-4, epochs=2, batch_size=8, accumulation=1, warmup_steps=2, max_tokens=160
)
_TINY = FinetuneSettings(
    rank=2, alpha=4, learning_rate=1e-3, batch_size=4, accumulation=1, warmup_steps=0, max_tokens=800
)
TRAINING = {
    "quick": TrainingProfile(0.7, 24, 1, 1, 1, _QUICK, 96, 48),
    # The paper's: one epoch of about 5,000 rows at 1e-5.
    "paper": TrainingProfile(1.0, 1000, 10, 10, 5, FinetuneSettings(), 5000, 300),
    "tiny": TrainingProfile(0.7, 6, 1, 1, 1, _TINY, 8, 40, n_pairs=1, n_questions=4),
}


def pick_training(arguments: CommonArguments) -> TrainingProfile:
    """Return the profile asked for, with the seed and the dtype asked for."""
    profile = arguments.pick(TRAINING)
    return replace(profile, settings=replace(profile.settings, seed=arguments.seed, dtype=arguments.dtype))


def make_trait_rows(
    model: HookedModel,
    kit: TraitKit,
    level: Level,
    n_rows: int,
    sampling: Sampling,
    run: Run,
    *,
    name: str = "rows",
    trait: Trait | None = None,
) -> datasets.Dataset:
    """Sample a trait's training set, or read it back; ``trait`` may have fewer prompts or questions than the kit's."""

    def compute() -> Shard:
        rows = trait_dataset(model, trait or kit.trait, level, n_rows, judge=kit.judge, sampling=sampling)
        return Shard(records=rows.to_list())

    return datasets.Dataset.from_list(run.load_or_compute(f"{name}-{kit.trait.name}-{level}", compute).records)


@dataclass(frozen=True, eq=False)
class Training:
    """One way to train."""

    rows: datasets.Dataset
    intervention: Intervention = NOTHING
    penalty: ProjectionPenalty | None = None
    system: str | None = None


def train(
    name: str, model: str, training: Training, settings: FinetuneSettings, run: Run
) -> tuple[Finetuned, HookedModel]:
    """Train a model beside the run's shards, unless it is trained already; return it with what training said."""
    done = finetune(
        model, training.rows, run.folder / "adapters" / name, settings=settings,
        intervention=training.intervention, penalty=training.penalty, system=training.system, run=run,
    )  # fmt: skip
    return done, load_model(model, adapter=done.folder, dtype=settings.dtype)
