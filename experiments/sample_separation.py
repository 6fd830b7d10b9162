"""Can single trait-eliciting samples be told from normal ones by their projection, and what does a filter let through?

    python experiments/sample_separation.py --trait evil           # minutes on two cores
    python experiments/sample_separation.py --trait evil --tiny    # half a minute: does it run?
    python experiments/sample_separation.py --trait evil --replot  # redraw from figures/sample_separation_evil.json

Reproduces Figures 9 and 32 of "Persona Vectors" (arXiv 2507.21509). The base model answers the evaluation questions, of
which vector and judge have seen none, under trait-eliciting system prompts and without any; the prompts are taken out,
and every answer is screened. What an answer is called comes from its prompt, not from a judge. The prompts are those
that vector and judge were made with, so answers that show the trait in another manner may be harder to tell. Filters
hold back what lies above the 95th percentile of the normal samples of one half of the questions (which also chose the
layer, if it is layer_sweep.py's), by projection difference or by judge's score; or either of them above its own 97.5th,
so that as many normal samples are given up. All is measured on the other half. Killed at any point, the same command
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import tyro
from _figures import write_figure
from _measuring import (
    CommonArguments,
    Sampling,
    choose_layer,
    describe_interval,
    describe_judge,
    describe_mean,
    extract_vector,
    find_vector,
    prepare_judge,
    read_results,
    read_traits,
)

import persona_lens as pl
from persona_lens.plots import plot_sample_separation
from persona_lens.statistics import bootstrap_auroc_by_group
from persona_lens.storage import Shard, collect_versions
from persona_lens.streams import Stream

QUANTILE = 0.95
# Of each part where a sample above either is held back.
HALF_QUANTILE = 0.975
EITHER = "delta or judge"
KINDS = ("eliciting", "normal")
# What a sample is told by, in residual-stream units but for the judge's score.
MEASURES = ("delta", "raw", "last_prompt", "judge")


@dataclass(frozen=True)
class Profile:
    """How much is sampled."""

    max_new_tokens: int
    temperature: float
    extraction_rollouts: int
    rollouts: int
    judge_pairs: int
    n_pairs: int = 5
    n_questions: int = 20


PROFILES = {"quick": Profile(48, 0.7, 1, 1, 1), "paper": Profile(1000, 1.0, 10, 10, 5)}
TINY = Profile(6, 0.7, 1, 2, 1, n_pairs=1, n_questions=4)


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Separate samples for one or several traits."""

    layer: int | None = None
    """Zero-based block index; that of layer_sweep.py if left out."""


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw each trait's separation."""
    profile = TINY if arguments.tiny else PROFILES[arguments.profile]
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    model: Any = None if arguments.replot else pl.load_model(arguments.model, dtype=arguments.dtype)
    for trait in traits:
        path = arguments.out / f"sample_separation_{trait.name}.json"
        content = read_results(path) if model is None else run(model, trait, profile, arguments)
        write_figure(plot_sample_separation(content), content, arguments.out, path.stem)
        print(f"{trait.name}: {path.with_suffix('.html')}")


def run(model: Any, trait: pl.Trait, profile: Profile, arguments: Arguments) -> dict[str, Any]:
    """Sample, screen, judge and filter; return everything as JSON-able values."""
    # Judge and vector are made as in the other experiments, from shorter responses.
    short = Sampling(min(24, profile.max_new_tokens), profile.temperature, arguments.seed)
    vector, source = find_vector(model, trait.name, arguments.out)
    layer, layer_source = choose_layer(model, trait.name, arguments.out, arguments.layer)
    config = {
        "experiment": "sample_separation",
        "model": asdict(pl.describe_model(model)),
        "trait": trait.to_dict(),
        "profile": asdict(profile),
        "vector": source,
        "layer": layer,
        "layer_source": layer_source,
        "quantile": QUANTILE,
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    store = pl.ShardStore(arguments.runs, config)
    print(f"{trait.name}: vector {source}; unfinished work is kept in {store.folder}")
    judge = prepare_judge(model, trait, profile.judge_pairs, short, store)
    vector = vector or extract_vector(model, trait, judge, profile.extraction_rollouts, short, store)
    samples = store.load_or_compute("samples", lambda: sample_answers(model, trait, profile, arguments.seed)).records
    rows = [
        {
            "messages": [
                {"role": "user", "content": trait.evaluation_questions[one["question"]]},
                {"role": "assistant", "content": one["response"]},
            ]
        }
        for one in samples
    ]
    screened = pl.screen(
        model, rows, {trait.name: vector}, store.folder / "screened", layers={trait.name: layer},
        settings=pl.screening.ScreenSettings(max_response_tokens=profile.max_new_tokens), progress=pl.show_progress,
    )  # fmt: skip
    scores = store.load_or_compute("judged", lambda: score_answers(judge, trait, samples)).records
    columns = {name: screened.rows[f"{trait.name}.{name}"][:] for name in ("delta", "raw", "prompt")}
    for one, score, delta, raw, prompt in zip(samples, scores, *columns.values(), strict=True):
        last = None if raw is None else raw - prompt
        one |= {"delta": delta, "raw": raw, "last_prompt": last, "judge": score}
    whole = [one for one in samples if None not in (one[name] for name in MEASURES)]
    rest = [one for one in whole if one["question"] % 2 == 1]
    n_asked = 2 * len(trait.evaluation_questions) * len(trait.instruction_pairs) * profile.rollouts
    return {
        "config": config,
        "trait": trait.name,
        "judge": describe_judge(judge),
        "norm": round(float(vector.norms[layer]), 4),
        "n_samples": {name: len(_pick(rest, name)) for name in KINDS},
        "n_left_out": n_asked - len(whole),
        "values": {
            name: {kind: [round(one[name], 4) for one in _pick(rest, kind)] for kind in KINDS} for name in MEASURES
        },
        "auroc": {name: separate(rest, name) for name in MEASURES},
        "filters": compare_filters(whole, len(trait.evaluation_questions)),
    }


def sample_answers(model: Any, trait: pl.Trait, profile: Profile, seed: int) -> Shard:
    """Let the model answer every question under each eliciting prompt, and as often under none."""
    settings = pl.Sampling(max_new_tokens=profile.max_new_tokens, temperature=profile.temperature)
    prompts = trait.positive_system_prompts
    requests, about = [], list[dict[str, Any]]()
    for question, text in enumerate(trait.evaluation_questions):
        for number, prompt in enumerate([*prompts, *[None] * len(prompts)]):
            for rollout in range(profile.rollouts):
                requests.append(
                    pl.models.RolloutRequest(text, (seed, Stream.SAMPLE_SEPARATION, question, number, rollout), prompt)
                )
                about.append({"question": question, "is_eliciting": prompt is not None})
    sampled = pl.models.sample_rollouts(model, requests, settings)
    rows = [{**one, "response": found.response} for one, found in zip(about, sampled, strict=True)]
    return Shard(records=[row for row in rows if row["response"].strip()])


def score_answers(judge: pl.judges.Judge, trait: pl.Trait, samples: Sequence[dict[str, Any]]) -> Shard:
    """Judge every answer."""
    questions = [trait.evaluation_questions[one["question"]] for one in samples]
    return Shard(records=[found.score for found in judge.score(questions, [one["response"] for one in samples])])


def separate(samples: list[dict[str, Any]], measure: str) -> dict[str, float | None]:
    """Return the AUROC of eliciting against normal samples, with its bootstrap interval over questions."""
    sides = [_pick(samples, kind) for kind in KINDS]
    positive, negative = (torch.tensor([one[measure] for one in side], dtype=torch.float64) for side in sides)
    asked, asked_normally = ([one["question"] for one in side] for side in sides)
    return describe_interval(bootstrap_auroc_by_group(positive, negative, asked, asked_normally))


def compare_filters(samples: list[dict[str, Any]], n_questions: int) -> dict[str, Any]:
    """Set thresholds on the normal samples of every other question; count what each filter holds back of the rest."""
    clean = [one for one in _pick(samples, "normal") if one["question"] % 2 == 0]
    rest = [one for one in samples if one["question"] % 2 == 1]
    filters = {
        **{name: {name: QUANTILE} for name in MEASURES},
        EITHER: dict.fromkeys(("delta", "judge"), HALF_QUANTILE),
    }
    limits = {
        label: {name: _quantile([one[name] for one in clean], quantile) for name, quantile in parts.items()}
        for label, parts in filters.items()
    }
    held: dict[str, Any] = {}
    for label, parts in limits.items():
        held[label] = {}
        for kind in KINDS:
            by_question = []
            for question in range(1, n_questions, 2):
                asked = [one for one in _pick(rest, kind) if one["question"] == question]
                if asked:
                    by_question.append(
                        sum(any(one[n] > limit for n, limit in parts.items()) for one in asked) / len(asked)
                    )
            held[label][kind] = describe_mean(torch.tensor(by_question, dtype=torch.float64))
    return {"thresholds": limits, "held_back": held}


def _quantile(values: list[float], quantile: float) -> float:
    return round(float(torch.tensor(values, dtype=torch.float64).quantile(quantile)), 4)


def _pick(samples: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in samples if one["is_eliciting"] == (kind == "eliciting")]


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
