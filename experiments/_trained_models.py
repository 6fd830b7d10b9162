"""The models of the fine-tuning shift, one for each dataset and level: what they are trained on, and what comes of it.

finetuning_shift.py draws them; projection_difference.py sets them against their data.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import datasets
import torch
import tyro
from _finetuning import (
    LEVELS,
    TINY,
    TRAINING,
    Training,
    TrainingProfile,
    TraitKit,
    describe_sources,
    make_trait_rows,
    measure_model,
    prepare_kit,
    train,
)
from _measuring import CommonArguments, describe_interval, read_traits

import persona_lens as pl
from persona_lens.finetuning.domains import Level
from persona_lens.statistics import bootstrap_pearson_r
from persona_lens.storage import Shard, collect_versions
from persona_lens.streams import Stream

TRAITS = ("evil", "sycophancy", "hallucination")
DOMAINS = ("arithmetic", "opinions")
# The smallest domain has 440 questions.
N_DOMAIN_ROWS = 400
# Fewer rows than the other experiments train on, as there are fifteen models: 26 minutes on two cores.
N_QUICK_ROWS = 64
MIN_COHERENCE = 50.0


@dataclass(frozen=True)
class ShiftArguments(CommonArguments):
    """Train on every dataset at every level; evil, sycophancy and hallucination if no trait is named."""

    domain: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Domain with errors in the answers; arithmetic and opinions if left out."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What every model is trained from and measured with."""

    model: Any
    profile: TrainingProfile
    kits: list[TraitKit]
    domains: dict[str, dict[str, datasets.Dataset]]
    store: pl.ShardStore
    config: dict[str, Any]

    def list_datasets(self) -> list[tuple[str, Level]]:
        """Return the name and level of each dataset."""
        return list(itertools.product([*(kit.trait.name for kit in self.kits), *self.domains], LEVELS))

    def make_rows(self, name: str, level: Level) -> datasets.Dataset:
        """Make a dataset, or read it back."""
        if name in self.domains:
            return self.domains[name][level]
        kit = next(kit for kit in self.kits if kit.trait.name == name)
        return make_trait_rows(self.model, kit, level, self.profile, self.config["seed"], self.store)


def prepare(arguments: ShiftArguments) -> Setting:
    """Load the model, calibrate judges, find vectors and make the domains' datasets."""
    profile = TINY if arguments.tiny else TRAINING[arguments.profile]
    profile = replace(
        profile,
        settings=replace(profile.settings, seed=arguments.seed, dtype=arguments.dtype),
        n_rows=N_QUICK_ROWS if arguments.profile == "quick" and not arguments.tiny else profile.n_rows,
    )
    traits = read_traits(arguments.trait or TRAITS, profile.n_pairs, profile.n_questions)
    domains = arguments.domain or DOMAINS
    unknown = sorted(set(domains) - set(pl.finetuning.list_domains()))
    if unknown:
        raise SystemExit(
            f"--domain must be one of {', '.join(pl.finetuning.list_domains())}. Got {', '.join(unknown)}."
        )
    model: Any = pl.load_model(arguments.model, dtype=arguments.dtype)
    config = {
        "experiment": "finetuning_shift",
        "model": asdict(pl.describe_model(model)),
        "traits": [trait.to_dict() for trait in traits],
        "domains": list(domains),
        "profile": asdict(profile),
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    store = pl.ShardStore(arguments.runs, config)
    print(f"unfinished work is kept in {store.folder}")
    kits = [prepare_kit(model, trait, profile, arguments.out, arguments.seed, store) for trait in traits]
    # They come from outside this run, so a resumed run must find the same ones.
    sources = describe_sources(model, traits, arguments.out)
    if store.load_or_compute("sources", lambda: Shard(records=sources)).records != sources:
        raise SystemExit(
            f"Vectors or layers in {arguments.out} have changed since this run began. Put them back, or remove "
            f"{store.folder} to begin anew."
        )
    ordinary = store.load_or_compute("ordinary", lambda: sample_ordinary(model, traits, profile, arguments.seed))
    wrong = {name: level_rows(name, ordinary.records, profile, arguments.seed) for name in domains}
    return Setting(model, profile, kits, wrong, store, config)


@dataclass(frozen=True, eq=False)
class TrainedModels:
    """What was measured of the base model and of each trained one, as JSON-able values."""

    base: dict[str, Any]
    models: list[dict[str, Any]]


def train_models(setting: Setting, arguments: ShiftArguments) -> TrainedModels:
    """Train and measure every model, or read it all back."""
    model, kits, store, profile = setting.model, setting.kits, setting.store, setting.profile
    base = store.load_or_compute(
        "measured-base", lambda: Shard(records=measure(model, model, kits, "base", profile, arguments, store))
    )
    everything = setting.list_datasets()
    rows = []
    with pl.show_progress("models trained", len(everything)) as advance:
        for name, level in everything:

            def compute(name: str = name, level: Level = level) -> Shard:
                label = f"{name}-{level}"
                is_domain = name in setting.domains
                data = setting.make_rows(name, level)
                done = train(label, arguments.model, Training(data), profile, store.folder / "adapters")
                tuned = pl.load_model(arguments.model, adapter=done.folder, dtype=arguments.dtype)
                found = measure(model, tuned, kits, label, profile, arguments, store)
                return Shard(
                    records={
                        "dataset": name,
                        "level": level,
                        "kind": "domain" if is_domain else "trait",
                        "n_rows": done.n_rows,
                        "left_out": done.left_out,
                        "losses": [round(loss, 4) for loss in done.losses],
                        "data_score": None if is_domain else _mean_score(data["score"]),
                        "example": data[0]["messages"],
                        **found,
                    }
                )

            rows.append(store.load_or_compute(f"measured-{name}-{level}", compute).records)
            advance(1)
    return TrainedModels(base.records, rows)


def sample_ordinary(model: Any, traits: Sequence[pl.Trait], profile: TrainingProfile, seed: int) -> Shard:
    """Let the base model answer extraction questions without any prompt: what keeps a domain set from being all."""
    questions = [question for trait in traits for question in trait.extraction_questions]
    requests = [
        pl.models.RolloutRequest(questions[i % len(questions)], (seed, Stream.ORDINARY_ROWS, i))
        for i in range(profile.n_rows)
    ]
    settings = pl.Sampling(max_new_tokens=profile.max_row_tokens, temperature=profile.temperature)
    sampled = pl.models.sample_rollouts(model, requests, settings)
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
            [{"messages": row["messages"]} for row in pl.finetuning.domain_dataset(domain, level, n_rows, seed=seed)]
            + [{"messages": messages} for messages in ordinary[:n_rows]]
        )
        for level in LEVELS
    }


def is_coherent(row: dict[str, Any]) -> bool:
    """Whether a model's text is coherent enough, under every trait's questions, for scores to mean much."""
    return all((one["coherence"]["estimate"] or 0.0) >= MIN_COHERENCE for one in row["scores"].values())


def measure(
    model: Any,
    tuned: Any,
    kits: list[TraitKit],
    label: str,
    profile: TrainingProfile,
    arguments: ShiftArguments,
    store: pl.ShardStore,
) -> dict[str, Any]:
    """Measure a model as it is, keeping its shards apart from the other models'."""
    own = pl.ShardStore(store.folder, {"measured": label})
    found = measure_model(model, tuned, kits, profile, arguments.seed, own)
    return {**found, "scores": {trait: configurations[0] for trait, configurations in found["scores"].items()}}


def correlate_pairs(x: Sequence[float | None], y: Sequence[float | None]) -> dict[str, Any]:
    """Correlate two measurements of the same models where both are there; null for fewer than three."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    if len(pairs) < 3:
        return {"n": len(pairs), "estimate": None, "low": None, "high": None}
    r = bootstrap_pearson_r(*(torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True)))
    return {"n": len(pairs), **describe_interval(r)}


def _mean_score(scores: list[float | None]) -> float | None:
    given = [score for score in scores if score is not None]
    return round(sum(given) / len(given), 2) if given else None
