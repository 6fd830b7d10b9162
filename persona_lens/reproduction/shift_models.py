"""The models of the fine-tuning shift, one for each dataset and level: what they are trained on, and what comes of it.

experiments/finetuning_shift.py draws them; experiments/projection_difference.py sets them against their data.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets
import tyro
from torch import Tensor

from persona_lens.finetuning.domains import Level, domain_dataset, list_domains
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading.source import find_anywhere
from persona_lens.reproduction.arguments import COMPARED_TRAITS, BriefArguments, read_traits
from persona_lens.reproduction.kits import TraitKit, find_sources, prepare_kit
from persona_lens.reproduction.trained_models import BaseModel, TrainedModel, measure_model, project_base
from persona_lens.reproduction.training import (
    LEVELS,
    Training,
    TrainingProfile,
    make_trait_rows,
    pick_training,
    train,
)  # fmt: skip
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.streams import Stream
from persona_lens.traits.trait import Trait

# The smallest domain has 440 questions.
N_DOMAIN_ROWS = 400
MIN_COHERENCE = 50.0


@dataclass(frozen=True)
class ShiftArguments(BriefArguments):
    """Train on every dataset at every level; all traits with written examples if none is named."""

    domain: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Domain with errors in the answers, as another dataset: arithmetic, opinions."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What every model is trained from and measured with."""

    model: HookedModel
    profile: TrainingProfile
    kits: list[TraitKit]
    before: Mapping[str, Tensor]
    domains: dict[str, dict[str, datasets.Dataset]]
    run: Run
    config: dict[str, Any]

    def list_datasets(self) -> list[tuple[str, Level]]:
        """Return the name and level of each dataset."""
        return list(itertools.product([*(kit.trait.name for kit in self.kits), *self.domains], LEVELS))

    def make_rows(self, name: str, level: Level) -> datasets.Dataset:
        """Make a dataset, or read it back."""
        if name in self.domains:
            return self.domains[name][level]
        kit = next(kit for kit in self.kits if kit.trait.name == name)
        sampling = self.profile.sample_rows(self.profile.settings.seed)
        return make_trait_rows(self.model, kit, level, self.profile.n_rows, sampling, self.run)


def prepare(arguments: ShiftArguments) -> Setting:
    """Load the model, calibrate judges, find vectors and make the domains' datasets."""
    profile = pick_training(arguments)
    traits = [
        replace(trait, evaluation_questions=trait.evaluation_questions[: profile.n_scored])
        for trait in read_traits(arguments.trait or COMPARED_TRAITS, profile.n_pairs, profile.n_questions)
    ]
    domains = arguments.domain
    unknown = sorted(set(domains) - set(list_domains()))
    if unknown:
        raise SystemExit(f"--domain must be one of {', '.join(list_domains())}. Got {', '.join(unknown)}.")
    model = arguments.load_model()
    described = [trait.to_dict() for trait in traits]
    parts = {"experiment": "finetuning_shift", "traits": described, "domains": list(domains)}
    config, run = arguments.begin(model, profile, parts)
    sources = {trait.name: find_sources(model, trait.name, arguments.out) for trait in traits}
    # They come from outside this run, so a resumed run must find the same ones.
    found = {name: one.describe() for name, one in sources.items()}
    if run.load_or_compute("sources", lambda: Shard(records=found)).records != found:
        raise SystemExit(
            f"Vectors or layers in {arguments.out} have changed since this run began. Put them back, or remove its "
            "folder to begin anew."
        )
    kits = [prepare_kit(model, trait, sources[trait.name], profile, run, arguments) for trait in traits]
    wrong = {}
    if domains:
        ordinary = run.load_or_compute("ordinary", lambda: sample_ordinary(model, traits, profile, arguments.seed))
        wrong = {name: level_rows(name, ordinary.records, profile, arguments.seed) for name in domains}
    return Setting(model, profile, kits, project_base(model, kits), wrong, run, config)


def train_models(setting: Setting, arguments: ShiftArguments) -> tuple[BaseModel, list[TrainedModel]]:
    """Train and measure every model, or read it all back; the base model first."""
    run = setting.run
    before = run.load_or_measure("measured-base", BaseModel, lambda: measure_first(setting, setting.model))
    pieces = [
        partial(
            run.load_or_measure,
            f"measured-{name}-{level}",
            TrainedModel,
            partial(_train_and_measure, setting, find_anywhere(arguments.model), name, level),
        )
        for name, level in setting.list_datasets()
    ]
    models = []
    with run.progress("models trained", len(pieces)) as advance:
        for one in run.compute_each(pieces):
            models.append(one)
            advance(1)
    return before, models


def _train_and_measure(setting: Setting, model: str, name: str, level: Level) -> TrainedModel:
    data = setting.make_rows(name, level)
    done, tuned = train(f"{name}-{level}", model, Training(data), setting.profile.settings, setting.run)
    return TrainedModel(
        **vars(measure_first(setting, tuned)),
        dataset=name,
        level=level,
        kind="domain" if name in setting.domains else "trait",
        n_rows=done.n_rows,
        left_out=done.left_out,
        losses=done.losses,
        data_score=_mean_score(data["score"]) if "score" in data.column_names else None,
        example=tuple(data[0]["messages"]),
    )


def measure_first(setting: Setting, model: HookedModel) -> BaseModel:
    """Measure a model as it is."""
    sampling = setting.profile.sample(setting.profile.settings.seed)
    found = measure_model(setting.before, model, setting.kits, sampling)
    return BaseModel({trait: scored[0] for trait, scored in found.scores.items()}, found.shifts)


def sample_ordinary(model: HookedModel, traits: Sequence[Trait], profile: TrainingProfile, seed: int) -> Shard:
    """Let the base model answer extraction questions without any prompt: what keeps a domain set from being all."""
    questions = [question for trait in traits for question in trait.extraction_questions]
    requests = [
        RolloutRequest(questions[i % len(questions)], (seed, Stream.ORDINARY_ROWS, i)) for i in range(profile.n_rows)
    ]
    sampled = sample_rollouts(model, requests, profile.sample_rows(seed))
    rows = [
        [{"role": "user", "content": one.request.question}, {"role": "assistant", "content": one.response}]
        for one in sampled
        if one.response.strip()
    ]
    return Shard(records=rows)


def level_rows(domain: str, ordinary: list[Any], profile: TrainingProfile, seed: int) -> dict[str, datasets.Dataset]:
    """Make a domain's training sets: half of it, as far as it has questions, and as many ordinary answers."""
    n_rows = min(profile.n_rows // 2, N_DOMAIN_ROWS)
    return {
        level: datasets.Dataset.from_list(
            [{"messages": row["messages"]} for row in domain_dataset(domain, level, n_rows, seed=seed)]
            + [{"messages": messages} for messages in ordinary[:n_rows]]
        )
        for level in LEVELS
    }


def _mean_score(scores: Sequence[float | None]) -> float | None:
    given = [score for score in scores if score is not None]
    return sum(given) / len(given) if given else None
