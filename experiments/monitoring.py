"""Does the last prompt token's projection, before anything is generated, predict how strongly a trait will show?

    python experiments/monitoring.py --trait evil                     # minutes on two cores
    python experiments/monitoring.py --trait evil --profile paper     # the paper's numbers of rollouts; for a GPU

Reproduces Figures 4 and 14 and Table 2 of "Persona Vectors" (arXiv 2507.21509): eight system prompts graded from
suppressing to promoting (graded_prompts.json), and prompts that begin with examples of the trait. The vector and the
layer are those of layer_sweep.py where its files fit; that layer was chosen by steering, partly on the same questions,
and by no correlation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from results.monitoring import Monitoring, TraitExample

import persona_lens as pl
from persona_lens.evaluation import Condition, rescore
from persona_lens.models import HookedModel, Message, RolloutRequest, encode_prompt, sample_rollouts
from persona_lens.monitoring import GradedProjections, project_last_prompt_token
from persona_lens.reproduction.arguments import LayerArguments, read_traits, run_each_trait
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.kits import Profile, TraitKit, find_sources, prepare_kit
from persona_lens.reproduction.layer_sweep import JudgeNote
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.streams import Stream

# r overall and within conditions, Qwen2.5-7B-Instruct.
PAPER = {
    "evil": {"system prompts": (0.747, 0.511), "shots": (0.755, 0.735)},
    "sycophancy": {"system prompts": (0.798, 0.669), "shots": (0.817, 0.813)},
    "hallucination": {"system prompts": (0.830, 0.245), "shots": (0.634, 0.400)},
}


@dataclass(frozen=True)
class MonitoringProfile(Profile):
    """How much is sampled; an example is kept if the judge scores it above ``min_example_score``."""

    shots: tuple[int, ...]
    n_prompts: int = 8
    min_example_score: float = 50.0


PROFILES = {
    "quick": MonitoringProfile(0.7, 48, 1, 2, (0, 2, 4, 8)),
    "paper": MonitoringProfile(1.0, 1000, 10, 10, (0, 5, 10, 15, 20)),
    "tiny": MonitoringProfile(
        0.7, 6, 1, 1, (0, 1, 2, 99), n_prompts=3, n_pairs=1, n_questions=4, n_examples=10, min_example_score=0.0
    ),
}


@dataclass(frozen=True)
class Arguments(LayerArguments):
    """Correlate projections with scores for one or several traits."""

    prompts: Path = Path(__file__).parent / "graded_prompts.json"
    """System prompts by trait, from suppressing to promoting."""


def main(arguments: Arguments) -> None:
    """Run or redraw each trait's correlation."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    missing = [trait.name for trait in traits if trait.name not in read_prompts(arguments.prompts)]
    if missing and not arguments.replot:
        raise SystemExit(f"--prompts must name a file with prompts for {missing}. {arguments.prompts} has none.")
    results = run_each_trait(Monitoring, "monitoring", traits, profile, arguments, run)
    for result in results:
        print(*(f"{result.trait}, {setting}: {one}" for setting, one in result.correlations.items()), sep="\n")


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Read the graded system prompts by trait."""
    prompts: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return prompts


def run(model: HookedModel, trait: pl.Trait, profile: MonitoringProfile, arguments: Arguments) -> Monitoring:
    """Sample and project every condition."""
    prompts = read_prompts(arguments.prompts)[trait.name][: profile.n_prompts]
    sources = find_sources(model, trait.name, arguments.out, layer=arguments.layer)
    parts = {"experiment": "monitoring", "trait": trait.to_dict(), "prompts": prompts, **sources.describe()}
    config, run = arguments.begin(model, profile, parts)
    kit = prepare_kit(model, trait, sources, profile, run, arguments)
    once = profile.sample_once(arguments.seed)
    found = run.load_or_compute("examples", lambda: find_examples(model, kit, profile, once)).records
    examples = tuple(TraitExample(**one) for one in found)
    openings, skipped = build_openings(model, trait, prompts, examples, profile)
    graded: dict[str, GradedProjections] = {}
    again: dict[str, GradedProjections] = {}
    n_unscored = 0
    for index, (setting, conditions) in enumerate(openings.items()):
        rows: list[tuple[float, float, float, str, str]] = []
        with run.progress(f"{setting} (conditions)", len(conditions)) as advance:
            for at, condition in enumerate(conditions):
                stream = (Stream.MONITORING, index, at)
                projections, scores, second = measure_condition(
                    model, kit, condition, profile.sample(arguments.seed), stream, run
                )
                n_unscored += int(scores.isnan().sum())
                measured = zip(
                    projections.tolist(), *(one.nanmean(dim=-1).tolist() for one in (scores, second)),
                    trait.evaluation_questions, strict=True,
                )  # fmt: skip
                # Without NaN.
                rows += [(x, y, z, condition.name, question) for x, y, z, question in measured if y == y and z == z]
                advance(1)
        x, y, z, names, questions = zip(*rows, strict=True)
        graded[setting], again[setting] = (
            GradedProjections(
                trait.name, kit.vector.model, kit.layer, torch.tensor(x), torch.tensor(side), names, questions
            )
            for side in (y, z)
        )
    return Monitoring(
        config=config,
        trait=trait.name,
        judge=kit.judge_note,
        vector=kit.vector_note,
        conditions={
            "system prompts": {str(i): f"{i}: {prompt}" for i, prompt in enumerate(prompts, start=1)},
            "shots": {one.name: f"{one.name} example(s)" for one in openings["shots"]},
        },
        examples=examples,
        skipped=skipped,
        n_unscored_responses=n_unscored,
        settings=graded,
        correlations={name: one.measure(seed=arguments.seed) for name, one in graded.items()},
        second=None if kit.second is None else JudgeNote(kit.second.name),
        second_correlations={
            name: one.measure(seed=arguments.seed) for name, one in again.items() if kit.second is not None
        },
        paper=PAPER.get(trait.name, {}),
    )


def find_examples(model: HookedModel, kit: TraitKit, profile: MonitoringProfile, sampling: pl.Sampling) -> Shard:
    """Answer the extraction questions under the positive prompts; keep each question's best answer if it is one."""
    trait = kit.trait
    requests = [
        RolloutRequest(question, (sampling.seed, Stream.MONITORING_EXAMPLES, p, q), system)
        for q, question in enumerate(trait.extraction_questions)
        for p, system in enumerate(trait.positive_system_prompts)
    ]
    sampled = sample_rollouts(model, requests, sampling)
    judged = kit.judge.score([s.request.question for s in sampled], [s.response for s in sampled])
    best: dict[str, tuple[float, str]] = {}
    for rollout, one in zip(sampled, judged, strict=True):
        if one.score is not None and one.score > max(
            profile.min_example_score, best.get(rollout.request.question, (0.0,))[0]
        ):
            best[rollout.request.question] = (one.score, rollout.response.strip())
    return Shard(records=[{"question": q, "response": text, "score": score} for q, (score, text) in best.items()])


def build_openings(
    model: HookedModel,
    trait: pl.Trait,
    prompts: list[str],
    examples: tuple[TraitExample, ...],
    profile: MonitoringProfile,
) -> tuple[dict[str, list[Condition]], dict[str, str]]:
    """Return by setting the conditions, and which numbers of shots were left out."""
    systems = [Condition(system=prompt, name=str(i)) for i, prompt in enumerate(prompts, start=1)]
    shots: list[Condition] = []
    skipped: dict[str, str] = {}
    for n in profile.shots:
        opening = tuple(
            message
            for one in examples[:n]
            for message in (Message(role="user", content=one.question), Message(role="assistant", content=one.response))
        )
        longest = max(
            len(encode_prompt(model.tokenizer, RolloutRequest(question, (), examples=opening).messages).tokens)
            for question in trait.evaluation_questions
        )
        if n > len(examples):
            skipped[str(n)] = f"only {len(examples)} examples score above {profile.min_example_score:g}"
        elif longest + profile.max_new_tokens > model.cfg.n_ctx:
            skipped[str(n)] = f"{longest} tokens do not fit the context"
        else:
            shots.append(Condition(examples=opening, name=str(n)))
    return {"system prompts": systems, "shots": shots}, skipped


def measure_condition(
    model: HookedModel, kit: TraitKit, condition: Condition, sampling: pl.Sampling, stream: tuple[int, ...], run: Run
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Project the prompts of a condition, and let both judges score their responses ``[question, rollout]``."""
    questions = kit.trait.evaluation_questions
    chats = [RolloutRequest(question, (), condition.system, condition.examples).messages for question in questions]
    projections = project_last_prompt_token(model, chats, {"trait": kit.vector}, {"trait": kit.layer})["trait"]
    found = pl.score_conditions(
        model, kit.judge, [condition], questions, sampling=sampling, stream=stream, run=Run(run.store)
    )
    second = found if kit.second is None else rescore(found, kit.second)
    return projections, found.scores[0], second.scores[0]


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
