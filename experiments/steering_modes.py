"""One layer, all layers, ablation or capping: what moves a trait furthest for the least cost?

    python experiments/steering_modes.py --trait evil               # the layer of figures/layer_sweep_evil.json
    python experiments/steering_modes.py --trait evil --tiny
    python experiments/steering_modes.py --trait evil --replot      # redraw from figures/steering_modes_evil.json

Reproduces the inference half of Figure 26 of "Persona Vectors" (arXiv 2507.21509). Up: asked without a system prompt.
Down: asked under the trait's first positive system prompt, since without one there is little to lower. Steering at all
layers adds the vector's increments from layer to layer; ablation and capping act at all layers, capping with floors and
ceilings from quantiles of ordinary responses. Responses are changed from the last prompt token on; perplexity,
divergence and accuracy are measured with every token changed. Killed, the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import tyro
from _figures import write_figure
from _measuring import (
    CommonArguments,
    Configuration,
    Sampling,
    choose_layer,
    describe_judge,
    describe_mean,
    extract_vector,
    find_vector,
    prepare_judge,
    read_results,
    read_traits,
    score_configurations,
)

import persona_lens as pl
from persona_lens.evaluation.capability import measure_capability
from persona_lens.evaluation.multiple_choice import load_multiple_choice
from persona_lens.plots import plot_steering_modes
from persona_lens.storage import Shard, collect_versions
from persona_lens.streams import Stream

MIN_COHERENCE = 50.0
Way = Literal["up", "down"]


@dataclass(frozen=True)
class Profile:
    """How much is sampled; quantiles are how common the cap's bound is when steering up (down: 1 less that)."""

    temperature: float
    max_new_tokens: int
    extraction_rollouts: int
    rollouts: int
    judge_pairs: int
    coefficients: tuple[float, ...]
    quantiles: tuple[float, ...]
    n_items: int | None
    max_text_tokens: int
    n_pairs: int = 5
    n_questions: int = 20


PROFILES = {
    "quick": Profile(0.7, 24, 1, 2, 1, (1.0, 2.0, 3.0), (0.5, 0.99), 50, 32),
    "paper": Profile(1.0, 1000, 10, 10, 5, (0.5, 1.0, 1.5, 2.0, 2.5), (0.25, 0.5, 0.75, 0.9, 0.99), None, 128),
}
TINY = Profile(0.7, 6, 1, 1, 1, (1.0,), (0.9,), 4, 16, n_pairs=1, n_questions=4)


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Compare ways of steering for one or several traits."""

    layer: int | None = None
    """Zero-based block index for steering at one layer; else that of the layer sweep in --out, else the middle one."""


@dataclass(frozen=True, eq=False)
class Mode:
    """One setting of one method."""

    method: str
    way: Way
    strength: str
    sites: tuple[pl.SiteIntervention, ...] = ()


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw each trait's comparison."""
    profile = TINY if arguments.tiny else PROFILES[arguments.profile]
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    model: Any = None if arguments.replot else pl.load_model(arguments.model, dtype=arguments.dtype)
    for trait in traits:
        name = f"steering_modes_{trait.name}"
        path = arguments.out / f"{name}.json"
        content = read_results(path) if model is None else run(model, trait, profile, arguments)
        write_figure(plot_steering_modes(content), content, arguments.out, name)
        print(f"{trait.name}: {path.with_suffix('.html')}")


def list_modes(
    vector: pl.PersonaVector, ordinary: pl.OrdinaryProjections, layer: int, way: Way, profile: Profile
) -> list[Mode]:
    """Build every setting of one way, the unsteered model first."""
    modes = [Mode("unsteered", way, "")]
    for c in (size if way == "up" else -size for size in profile.coefficients):
        for method, where in (("one layer", layer), ("all layers", "all")):
            modes.append(Mode(method, way, f"{c:+g}", pl.steer(vector, layers=where, coefficient=c)))
    for q in profile.quantiles:
        if way == "up":
            capped = pl.cap(vector, floor=ordinary.quantile(q))
            modes.append(Mode("capping", way, f"floor {100 * q:g} %", capped))
        else:
            capped = pl.cap(vector, ceiling=ordinary.quantile(1 - q))
            modes.append(Mode("capping", way, f"ceiling {100 * (1 - q):g} %", capped))
    if way == "down":
        modes.append(Mode("ablation", way, "", pl.ablate(vector)))
    return modes


def run(model: Any, trait: pl.Trait, profile: Profile, arguments: Arguments) -> dict[str, Any]:
    """Score every setting and measure its cost; return everything as JSON-able values."""
    layer, layer_source = choose_layer(model, trait.name, arguments.out, arguments.layer)
    sampling = Sampling(profile.max_new_tokens, profile.temperature, arguments.seed)
    made = {"rollouts": profile.extraction_rollouts, **asdict(sampling)}
    vector, source = find_vector(model, trait.name, arguments.out, **made)
    # The layer was chosen on the other half of the evaluation questions.
    questions = trait.evaluation_questions[1::2]
    config = {
        "experiment": "steering_modes",
        "model": asdict(pl.describe_model(model)),
        "trait": trait.to_dict(),
        "layer": layer,
        "profile": asdict(profile),
        "vector": source,
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    store = pl.ShardStore(arguments.runs, config)
    print(f"{trait.name}: layer {layer} ({layer_source}), vector {source}; unfinished work is kept in {store.folder}")
    judge = prepare_judge(model, trait, profile.judge_pairs, sampling, store)
    vector = vector or extract_vector(model, trait, judge, profile.extraction_rollouts, sampling, store)
    ordinary = pl.measure_ordinary_projections(model, vector, **asdict(sampling))
    systems: dict[Way, str | None] = {"up": None, "down": trait.positive_system_prompts[0]}
    modes = [mode for way in systems for mode in list_modes(vector, ordinary, layer, way, profile)]
    scores = score_configurations(
        model, judge, [Configuration(mode.sites, systems[mode.way]) for mode in modes], questions, profile.rollouts,
        (arguments.seed, Stream.STEERING_MODES), sampling, store,
    )  # fmt: skip
    items = load_multiple_choice(n=profile.n_items, seed=arguments.seed)
    costs = []
    with pl.show_progress("capability", len(modes)) as advance:
        for index, mode in enumerate(modes):

            def compute(mode: Mode = mode) -> Shard:
                hooks = pl.interventions.intervention_hooks(mode.sites)
                found = measure_capability(
                    model, hooks, items=items, max_tokens=profile.max_text_tokens, seed=arguments.seed
                )
                return Shard(records=found.to_json())

            # Both ways start from the same unsteered model.
            name = "unsteered" if mode.method == "unsteered" else f"{index:03d}"
            costs.append(store.load_or_compute(f"capability-{name}", compute).records)
            advance(1)
    rows = [
        {
            "method": mode.method,
            "way": mode.way,
            "strength": mode.strength,
            "score": describe_mean(scores.score[i]),
            "coherence": describe_mean(scores.coherence[i]),
            **{key: costs[i][key] for key in ("perplexity", "kl", "accuracy")},
            "example": scores.examples[i],
        }
        for i, mode in enumerate(modes)
    ]
    return {
        "config": config,
        "trait": trait.name,
        "layer": layer,
        "judge": describe_judge(judge),
        "vector": {"counts": asdict(vector.counts), "provenance": vector.provenance},
        "ordinary": {"n_responses": ordinary.n_responses, "n_tokens": ordinary.projections.shape[1]},
        "settings": rows,
        "min_coherence": MIN_COHERENCE,
        "furthest": {way: find_furthest(rows, way) for way in systems},
        "chance_accuracy": costs[0]["chance_accuracy"],
        "n_questions": len(questions),
        "n_responses": scores.n_responses,
        "n_unscored": scores.n_unscored,
        "n_items": len(items),
        "n_text_tokens": costs[0]["n_tokens"],
    }


def find_furthest(rows: Sequence[dict[str, Any]], way: Way) -> dict[str, dict[str, Any] | None]:
    """Return each method's most extreme mean score among its settings that are surely coherent.

    That is, whose whole interval of coherence lies above the floor, the rule by which layer_sweep.py chooses.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for method in dict.fromkeys(row["method"] for row in rows if row["way"] == way and row["method"] != "unsteered"):
        kept = [
            row
            for row in rows
            if (row["method"], row["way"]) == (method, way)
            and row["score"]["estimate"] is not None
            and (row["coherence"]["low"] or 0.0) >= MIN_COHERENCE
        ]
        best = max if way == "up" else min
        found[method] = best(kept, key=lambda row: row["score"]["estimate"]) if kept else None
    return found


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
