"""What experiments on fine-tuned models train on, how, and with which profiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import datasets

from persona_lens.finetuning.domains import Level, domain_dataset
from persona_lens.finetuning.finetuned import Finetuned
from persona_lens.finetuning.settings import FinetuneSettings, ProjectionPenalty
from persona_lens.finetuning.training import finetune
from persona_lens.finetuning.trait_data import trait_dataset
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.loading import load_model
from persona_lens.reproduction.arguments import ProfiledArguments
from persona_lens.reproduction.kits import Profile, TraitKit
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.traits.trait import Trait
from persona_lens.traits.written import Half, Kind, list_texts, list_written_traits, load_written_examples

LEVELS: tuple[Level, ...] = ("normal", "I", "II")
_WRITTEN: dict[Level, Kind] = {"normal": "ordinary", "I": "mild", "II": "overt"}


@dataclass(frozen=True)
class TrainingProfile(Profile):
    """How models are trained too, on how many rows of how many tokens, and scored on how many evaluation questions."""

    settings: FinetuneSettings
    n_rows: int
    max_row_tokens: int
    n_scored: int | None = None

    def sample_rows(self, seed: int) -> Sampling:
        """Return how the responses are drawn that models are trained on."""
        return Sampling(self.max_row_tokens, self.temperature, seed=seed)


_QUICK = FinetuneSettings(
    rank=32, alpha=64, learning_rate=5e-4, epochs=3, batch_size=8, accumulation=1, warmup_steps=2, max_tokens=160
)
_BRIEF = replace(_QUICK, learning_rate=1e-3, epochs=1, warmup_steps=1)
_TINY = FinetuneSettings(
    rank=2, alpha=4, learning_rate=1e-3, batch_size=4, accumulation=1, warmup_steps=0, max_tokens=800
)
TRAINING = {
    "quick": TrainingProfile(0.7, 48, 1, 1, _QUICK, 40, 48),
    "brief": TrainingProfile(0.7, 48, 1, 1, _BRIEF, 32, 48, n_scored=5),
    # The paper's: one epoch of about 5,000 rows at 1e-5.
    "paper": TrainingProfile(1.0, 1000, 10, 10, FinetuneSettings(), 5000, 300),
    "tiny": TrainingProfile(0.7, 6, 1, 1, _TINY, 8, 40, n_pairs=1, n_questions=4, n_examples=10),
}


def pick_training(arguments: ProfiledArguments) -> TrainingProfile:
    """Return the profile asked for, with the seed and the dtype asked for."""
    profile = arguments.pick(TRAINING)
    return replace(profile, settings=replace(profile.settings, seed=arguments.seed, dtype=arguments.dtype))


def read_trait_rows(trait: str, level: Level, half: Half, n_rows: int) -> datasets.Dataset:
    """Return a trait's written training set: a strong writer's answers, as in the paper."""
    examples = load_written_examples(trait, half)[:n_rows]
    answers = list_texts(examples, _WRITTEN[level])
    rows = [
        {"messages": [{"role": "user", "content": one.question}, {"role": "assistant", "content": text}]}
        for one, text in zip(examples, answers, strict=True)
    ]
    return datasets.Dataset.from_list(rows)


def draw_task(
    *, n_sets: int, n_rows: int, n_held_out: int, seed: int
) -> tuple[list[datasets.Dataset], datasets.Dataset]:
    """Return right workings of arithmetic, a wanted task: sets of rows, no two alike, and rows held out from all.

    Args:
        n_sets: How many sets, such as one for each seed.
        n_rows: Rows of each.
        n_held_out: Rows that are in no set.
        seed: Of the drawing.
    """
    n = n_rows * n_sets
    drawn = domain_dataset("arithmetic", "normal", n + n_held_out, seed=seed).select_columns(["messages"])
    sets = [drawn.select(range(at, at + n_rows)) for at in range(0, n, n_rows)]
    return sets, drawn.select(range(n, len(drawn)))


def make_trait_rows(
    model: HookedModel,
    kit: TraitKit,
    level: Level,
    n_rows: int,
    sampling: Sampling,
    run: Run,
    *,
    name: str = "rows",
    half: Half = "training",
    trait: Trait | None = None,
) -> datasets.Dataset:
    """Read a trait's written training set; sample it, or read that back, where none was written.

    Args:
        model: Whose answers are taken where none are written.
        kit: The trait.
        level: How strongly the rows show it.
        n_rows: Most rows.
        sampling: How answers are drawn.
        run: Keeps what was sampled.
        name: Tells sampled sets apart.
        half: Of the written examples.
        trait: Has fewer prompts or questions than the kit's to sample from.
    """
    if kit.trait.name in list_written_traits():
        return read_trait_rows(kit.trait.name, level, half, n_rows)

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
