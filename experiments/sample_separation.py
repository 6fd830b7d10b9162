"""Can single trait-eliciting samples be told from normal ones by their projection, and what does a filter let through?

    python experiments/sample_separation.py --trait evil           # minutes on two cores

Reproduces Figures 9 and 32 of "Persona Vectors" (arXiv 2507.21509). The base model answers the evaluation questions, of
which vector and judge have seen none, under trait-eliciting system prompts and without any; the prompts are taken out,
and every answer is screened. What an answer is called comes from its prompt, not from a judge: one
that does not do what its prompt asks counts as one that does. Filters hold back what lies above the 95th percentile of
the normal samples of one half of the questions (which also chose the layer, if it is layer_sweep.py's), by projection
difference or by judge's score; or either of them above its own 97.5th, so that as many normal samples are given up.
All is measured on the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from results.sample_separation import FilterComparison, SampleSeparation

import persona_lens as pl
from persona_lens.judges import Judge
from persona_lens.models import HookedModel, RolloutRequest, sample_rollouts
from persona_lens.reproduction.arguments import LayerArguments, read_traits, run_each_trait
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.kits import Profile, find_sources, prepare_kit
from persona_lens.screening import ScreenSettings
from persona_lens.statistics import Interval, bootstrap_auroc_by_group
from persona_lens.statistics.missing import mean_interval
from persona_lens.storage import Shard
from persona_lens.streams import Stream

QUANTILE = 0.95
# Of each part where a sample above either is held back.
HALF_QUANTILE = 0.975
EITHER = "delta or judge"
KINDS = ("eliciting", "normal")
# What a sample is told by, in residual-stream units but for the judge's score.
MEASURES = ("delta", "raw", "last_prompt", "judge")


PROFILES = {
    "quick": Profile(0.7, 48, 1, 1),
    "paper": Profile(1.0, 1000, 10, 10),
    "tiny": Profile(0.7, 6, 1, 2, n_pairs=1, n_questions=4, n_examples=10),
}


def main(arguments: LayerArguments) -> None:
    """Run or redraw each trait."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    run_each_trait(SampleSeparation, "sample_separation", traits, profile, arguments, run)


def run(model: HookedModel, trait: pl.Trait, profile: Profile, arguments: LayerArguments) -> SampleSeparation:
    """Sample, screen, judge and filter."""
    sources = find_sources(model, trait.name, arguments.out, layer=arguments.layer)
    parts = {"experiment": "sample_separation", "trait": trait.to_dict(), "quantile": QUANTILE, **sources.describe()}
    config, run = arguments.begin(model, profile, parts)
    kit = prepare_kit(model, trait, sources, profile, run, arguments)
    sampling = profile.sample(arguments.seed)
    samples = run.load_or_compute("samples", lambda: sample_answers(model, trait, sampling)).records
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
        model, rows, {trait.name: kit.vector}, run.folder / "screened", layers={trait.name: kit.layer},
        settings=ScreenSettings(max_response_tokens=profile.max_new_tokens), run=run,
    )  # fmt: skip
    scores = run.load_or_compute("judged", lambda: score_answers(kit.judge, trait, samples)).records
    columns = {name: screened.rows[f"{trait.name}.{name}"][:] for name in ("delta", "raw", "prompt")}
    for one, score, delta, raw, prompt in zip(samples, scores, *columns.values(), strict=True):
        last = None if raw is None else raw - prompt
        one |= {"delta": delta, "raw": raw, "last_prompt": last, "judge": score}
    whole = [one for one in samples if None not in (one[name] for name in MEASURES)]
    rest = [one for one in whole if one["question"] % 2 == 1]
    n_asked = 2 * len(trait.evaluation_questions) * len(trait.instruction_pairs) * profile.rollouts
    return SampleSeparation(
        config=config,
        trait=trait.name,
        judge=kit.judge_note,
        norm=float(kit.vector.norms[kit.layer]),
        n_samples={name: len(_pick(rest, name)) for name in KINDS},
        n_left_out=n_asked - len(whole),
        values={name: {kind: tuple(one[name] for one in _pick(rest, kind)) for kind in KINDS} for name in MEASURES},
        auroc={name: separate(rest, name) for name in MEASURES},
        filters=compare_filters(whole, len(trait.evaluation_questions)),
    )


def sample_answers(model: HookedModel, trait: pl.Trait, sampling: pl.Sampling) -> Shard:
    """Let the model answer every question under each eliciting prompt, and as often under none."""
    prompts = trait.positive_system_prompts
    requests, about = [], list[dict[str, Any]]()
    for question, text in enumerate(trait.evaluation_questions):
        for number, prompt in enumerate([*prompts, *[None] * len(prompts)]):
            for rollout in range(sampling.rollouts):
                seed = (sampling.seed, Stream.SAMPLE_SEPARATION, question, number, rollout)
                requests.append(RolloutRequest(text, seed, prompt))
                about.append({"question": question, "is_eliciting": prompt is not None})
    sampled = sample_rollouts(model, requests, sampling)
    rows = [{**one, "response": found.response} for one, found in zip(about, sampled, strict=True)]
    return Shard(records=[row for row in rows if row["response"].strip()])


def score_answers(judge: Judge, trait: pl.Trait, samples: Sequence[dict[str, Any]]) -> Shard:
    """Judge every answer."""
    questions = [trait.evaluation_questions[one["question"]] for one in samples]
    return Shard(records=[found.score for found in judge.score(questions, [one["response"] for one in samples])])


def separate(samples: list[dict[str, Any]], measure: str) -> Interval:
    """Return the AUROC of eliciting against normal samples, with its bootstrap interval over questions."""
    sides = [_pick(samples, kind) for kind in KINDS]
    positive, negative = (torch.tensor([one[measure] for one in side], dtype=torch.float64) for side in sides)
    asked, asked_normally = ([one["question"] for one in side] for side in sides)
    return bootstrap_auroc_by_group(positive, negative, asked, asked_normally)


def compare_filters(samples: list[dict[str, Any]], n_questions: int) -> FilterComparison:
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
    held: dict[str, dict[str, Interval]] = {}
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
            held[label][kind] = mean_interval(torch.tensor(by_question, dtype=torch.float64))
    return FilterComparison(limits, held)


def _quantile(values: list[float], quantile: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(quantile))


def _pick(samples: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in samples if one["is_eliciting"] == (kind == "eliciting")]


if __name__ == "__main__":
    enter(main, LayerArguments, __doc__)
