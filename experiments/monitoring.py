"""Does the last prompt token's projection, before anything is generated, predict how strongly a trait will show?

    python experiments/monitoring.py --trait evil                     # minutes on two cores
    python experiments/monitoring.py --trait evil --tiny              # seconds: does it run?
    python experiments/monitoring.py --trait evil --profile paper     # the paper's numbers of rollouts; for a GPU
    python experiments/monitoring.py --trait evil --replot            # redraw from figures/monitoring_evil.json

Reproduces Figures 4 and 14 and Table 2 of "Persona Vectors" (arXiv 2507.21509): eight system prompts graded from
suppressing to promoting (graded_prompts.json), and prompts that begin with examples of the trait. The vector and the
layer are those of layer_sweep.py where its files fit; that layer was chosen by steering, partly on the same questions,
and by no correlation. Killed at any point, the same command goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from _figures import write_figure
from _measuring import (
    CommonArguments,
    Sampling,
    choose_layer,
    describe_judge,
    extract_vector,
    find_vector,
    prepare_judge,
    read_results,
    read_traits,
)

import persona_lens as pl
from persona_lens.models.engine.sampling import SampleRequest, sample_stream
from persona_lens.models.text.chat import Message, build_messages, encode_prompt, stop_token_ids
from persona_lens.monitoring import GradedProjections, MonitoringCorrelation, project_last_prompt_token
from persona_lens.plots import plot_monitoring
from persona_lens.storage import Shard, collect_versions
from persona_lens.streams import Stream

# r overall and within conditions, Qwen2.5-7B-Instruct.
PAPER = {
    "evil": {"system prompts": (0.747, 0.511), "shots": (0.755, 0.735)},
    "sycophancy": {"system prompts": (0.798, 0.669), "shots": (0.817, 0.813)},
    "hallucination": {"system prompts": (0.830, 0.245), "shots": (0.634, 0.400)},
}


@dataclass(frozen=True)
class Profile:
    """How much is sampled; an example is kept if the judge scores it above ``min_example_score``."""

    temperature: float
    max_new_tokens: int
    extraction_rollouts: int
    rollouts: int
    judge_pairs: int
    shots: tuple[int, ...]
    n_prompts: int = 8
    n_pairs: int = 5
    n_questions: int = 20
    min_example_score: float = 50.0


PROFILES = {
    "quick": Profile(0.7, 24, 1, 2, 1, (0, 2, 4, 8)),
    "paper": Profile(1.0, 1000, 10, 10, 5, (0, 5, 10, 15, 20)),
}
TINY = Profile(0.7, 6, 1, 1, 1, (0, 1, 2, 99), n_prompts=3, n_pairs=1, n_questions=4, min_example_score=0.0)


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Correlate projections with scores for one or several traits."""

    layer: int | None = None
    """Zero-based block index; else the one that layer_sweep.py chose, else the middle one."""
    prompts: Path = Path(__file__).parent / "graded_prompts.json"
    """System prompts by trait, from suppressing to promoting."""


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw each trait's correlation."""
    profile = TINY if arguments.tiny else PROFILES[arguments.profile]
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    graded = json.loads(arguments.prompts.read_text(encoding="utf-8"))
    missing = [trait.name for trait in traits if trait.name not in graded]
    if missing and not arguments.replot:
        raise SystemExit(f"--prompts must name a file with prompts for {missing}. {arguments.prompts} has none.")
    model = None if arguments.replot else pl.load_model(arguments.model, dtype=arguments.dtype)
    for trait in traits:
        path = arguments.out / f"monitoring_{trait.name}.json"
        prompts = graded.get(trait.name, [])[: profile.n_prompts]
        content = read_results(path) if model is None else run(model, trait, prompts, profile, arguments)
        settings = {name: GradedProjections.from_json(one) for name, one in content["settings"].items()}
        found = {name: MonitoringCorrelation.from_json(one) for name, one in content["correlations"].items()}
        figure = plot_monitoring(settings, found, labels=content["conditions"], paper=content["paper"])
        write_figure(figure, content, arguments.out, path.stem)
        print(
            f"{trait.name}: {path.with_suffix('.html')}", *(f"{name}: {one}" for name, one in found.items()), sep="\n"
        )


def run(model: Any, trait: pl.Trait, prompts: list[str], profile: Profile, arguments: Arguments) -> dict[str, Any]:
    """Sample and project every condition; return everything as JSON-able values."""
    sampling = Sampling(profile.max_new_tokens, profile.temperature, arguments.seed)
    vector, source = find_vector(
        model, trait.name, arguments.out, rollouts=profile.extraction_rollouts, **asdict(sampling)
    )
    layer, layer_source = choose_layer(model, trait.name, arguments.out, arguments.layer)
    config = {
        "experiment": "monitoring",
        "model": asdict(pl.describe_model(model)),
        "trait": trait.to_dict(),
        "profile": asdict(profile),
        "prompts": prompts,
        "vector": source,
        "layer": layer,
        "layer_source": layer_source,
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    store = pl.ShardStore(arguments.runs, config)
    print(f"{trait.name}: vector {source}; layer {layer} ({layer_source}); unfinished work is kept in {store.folder}")
    judge = prepare_judge(model, trait, profile.judge_pairs, sampling, store)
    if vector is None:
        vector = extract_vector(model, trait, judge, profile.extraction_rollouts, sampling, store)
    examples = store.load_or_compute("examples", lambda: find_examples(model, judge, profile, arguments.seed)).records
    openings, skipped = build_openings(model, trait, prompts, examples, profile)
    graded: dict[str, Any] = {}
    n_unscored = 0
    for index, (setting, by_condition) in enumerate(openings.items()):
        rows: list[tuple[float, float, str, str]] = []
        with pl.show_progress(f"{setting} (conditions)", len(by_condition)) as advance:
            for at, (condition, opening) in enumerate(by_condition.items()):
                stream = (arguments.seed, Stream.MONITORING, index, at)

                def compute(opening: list[Message] = opening, stream: tuple[int, ...] = stream) -> Shard:
                    return measure_condition(model, judge, vector, layer, opening, profile, stream)

                shard = store.load_or_compute(f"condition-{index}-{at:02d}", compute).tensors
                n_unscored += int(shard["scores"].isnan().sum())
                means = shard["scores"].nanmean(dim=-1).tolist()
                measured = zip(shard["projections"].tolist(), means, trait.evaluation_questions, strict=True)
                rows += [(x, y, condition, question) for x, y, question in measured if y == y]  # without NaN
                advance(1)
        x, y, conditions, questions = zip(*rows, strict=True)
        graded[setting] = GradedProjections(
            trait.name, vector.model, layer, torch.tensor(x), torch.tensor(y), conditions, questions
        )
    return {
        "config": config,
        "trait": trait.name,
        "judge": describe_judge(judge),
        "vector": {"counts": asdict(vector.counts), "provenance": vector.provenance},
        "conditions": {
            "system prompts": {str(i): f"{i}: {prompt}" for i, prompt in enumerate(prompts, start=1)},
            "shots": {name: f"{name} example(s)" for name in openings["shots"]},
        },
        "examples": examples,
        "skipped": skipped,
        "n_unscored_responses": n_unscored,
        "settings": {name: one.to_json() for name, one in graded.items()},
        "correlations": {name: one.measure(seed=arguments.seed).to_json() for name, one in graded.items()},
        "paper": PAPER.get(trait.name, {}),
    }


def find_examples(model: Any, judge: pl.judges.LikelihoodJudge, profile: Profile, seed: int) -> Shard:
    """Answer the extraction questions under the positive prompts; keep each question's best answer if it is one."""
    trait = judge.trait
    requests = [
        pl.models.RolloutRequest(question, (seed, Stream.MONITORING_EXAMPLES, p, q), system)
        for q, question in enumerate(trait.extraction_questions)
        for p, system in enumerate(trait.positive_system_prompts)
    ]
    settings = pl.Sampling(max_new_tokens=profile.max_new_tokens, temperature=profile.temperature)
    sampled = pl.models.sample_rollouts(model, requests, settings)
    judged = judge.score_trait([s.request.question for s in sampled], [s.response for s in sampled])
    best: dict[str, tuple[float, str]] = {}
    for rollout, one in zip(sampled, judged, strict=True):
        if one.score is not None and one.score > max(
            profile.min_example_score, best.get(rollout.request.question, (0.0,))[0]
        ):
            best[rollout.request.question] = (one.score, rollout.response.strip())
    return Shard(records=[{"question": q, "response": text, "score": score} for q, (score, text) in best.items()])


def build_openings(
    model: Any, trait: pl.Trait, prompts: list[str], examples: list[dict[str, Any]], profile: Profile
) -> tuple[dict[str, dict[str, list[Message]]], dict[str, str]]:
    """Return by setting and condition what stands before the question, and which numbers of shots were left out."""
    systems: dict[str, list[Message]] = {
        str(i): [Message(role="system", content=prompt)] for i, prompt in enumerate(prompts, start=1)
    }
    shots: dict[str, list[Message]] = {}
    skipped: dict[str, str] = {}
    for n in profile.shots:
        opening = [
            message
            for one in examples[:n]
            for message in (
                Message(role="user", content=one["question"]),
                Message(role="assistant", content=one["response"]),
            )
        ]
        longest = max(
            len(encode_prompt(model.tokenizer, [*opening, *build_messages(question)]).tokens)
            for question in trait.evaluation_questions
        )
        if n > len(examples):
            skipped[str(n)] = f"only {len(examples)} examples score above {profile.min_example_score:g}"
        elif longest + profile.max_new_tokens > model.cfg.n_ctx:
            skipped[str(n)] = f"{longest} tokens do not fit the context"
        else:
            shots[str(n)] = opening
    return {"system prompts": systems, "shots": shots}, skipped


def measure_condition(
    model: Any,
    judge: pl.judges.LikelihoodJudge,
    vector: pl.PersonaVector,
    layer: int,
    opening: list[Message],
    profile: Profile,
    stream: tuple[int, ...],
) -> Shard:
    """Project the prompts of a condition, then sample and judge their responses."""
    questions = judge.trait.evaluation_questions
    conversations: list[list[Message]] = [[*opening, *build_messages(question)] for question in questions]
    vectors: Mapping[str, pl.PersonaVector] = {"trait": vector}
    projections = project_last_prompt_token(model, conversations, vectors, {"trait": layer})["trait"]
    prompts = [encode_prompt(model.tokenizer, conversation).tokens for conversation in conversations]
    requests = [
        SampleRequest(prompt, (*stream, q, r)) for q, prompt in enumerate(prompts) for r in range(profile.rollouts)
    ]
    settings = pl.Sampling(
        max_new_tokens=profile.max_new_tokens,
        temperature=profile.temperature,
        stop_tokens=stop_token_ids(model.tokenizer),
    )
    sampled = dict(sample_stream(model, requests, settings))
    texts = [model.tokenizer.decode(sampled[i].tokens, skip_special_tokens=True) for i in range(len(requests))]
    judged = judge.score_trait([q for q in questions for _ in range(profile.rollouts)], texts)
    scores = torch.tensor([float("nan") if one.score is None else one.score for one in judged])
    return Shard({"projections": projections, "scores": scores.reshape(len(questions), -1)}, texts)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
