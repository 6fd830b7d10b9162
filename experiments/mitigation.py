"""What keeps fine-tuning from spoiling a model, and at what cost? Steering after training, or in it, and four others.

    python experiments/mitigation.py --trait evil               # a quarter of an hour on two cores
    python experiments/mitigation.py --trait evil --tiny        # a minute: does it run?
    python experiments/mitigation.py --trait evil --replot      # redraw from figures/mitigation_evil.json

Reproduces Figures 7, 26 to 28 and 31 of "Persona Vectors" (arXiv 2507.21509): a model is trained on overt trait data
(level II), with the vector added to its residual stream meanwhile (preventative steering: one layer, or all layers
with increments), its direction ablated (CAFT), a loss on the projection, or a system prompt that asks for the trait; or
it is steered away afterwards. All strengths are shown. The layer is that of layer_sweep.py. The prompt used for
prevention wrote none of the training data. Two losses are taken on rows held out from training, their questions too,
nothing intervening: on overt rows (how well the data was learnt, the trait with it) and on the base model's normal
answers (what else training cost). Killed at any point, the same command goes on where it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import tyro
from _figures import write_figure
from _finetuning import (
    TINY,
    TRAINING,
    Training,
    TraitKit,
    describe_sources,
    make_trait_rows,
    measure_model,
    prepare_kit,
    train,
)
from _measuring import CommonArguments, describe_mean, read_results, read_traits

import persona_lens as pl
from persona_lens.plots import plot_mitigation
from persona_lens.storage import Shard, collect_versions

N_HELD_OUT = 32


@dataclass(frozen=True)
class Strengths:
    """What is tried, and on how many items accuracy is measured."""

    one_layer: tuple[float, ...]
    all_layers: tuple[float, ...]
    afterwards: tuple[float, ...]
    penalties: tuple[float, ...]
    n_items: int | None
    max_text_tokens: int


STRENGTHS = {
    "quick": Strengths((1.0, 3.0), (1.0,), (-1.0, -2.0), (1.0,), 60, 32),
    "paper": Strengths((1, 2, 3, 4, 5), (0.5, 1, 1.5, 2), (-0.5, -1, -1.5, -2), (0.1, 1, 10), None, 128),
}
TINY_STRENGTHS = Strengths((1.0,), (1.0,), (-1.0,), (1.0,), 4, 16)


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Compare ways of keeping a trait out for one or several traits."""


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw each trait's comparison."""
    profile = TINY if arguments.tiny else TRAINING[arguments.profile]
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    model: Any = None if arguments.replot else pl.load_model(arguments.model, dtype=arguments.dtype)
    for trait in traits:
        path = arguments.out / f"mitigation_{trait.name}.json"
        content = read_results(path) if model is None else run(model, trait, arguments)
        write_figure(plot_mitigation(content), content, arguments.out, path.stem)
        print(f"{trait.name}: {path.with_suffix('.html')}")


def list_trainings(kit: TraitKit, rows: Any, strengths: Strengths) -> dict[tuple[str, str], Training]:
    """Return every way of training by method and strength, the plain one first."""
    vector, layer = kit.vector, kit.layer
    ways = {("no prevention", ""): Training(rows)}
    for c in strengths.one_layer:
        sites = pl.steer(vector, layer=layer, coefficient=c)
        ways["preventative, one layer", f"{c:+g}"] = Training(rows, sites)
    for c in strengths.all_layers:
        sites = pl.steer(vector, layers="all", coefficient=c)
        ways["preventative, all layers", f"{c:+g}"] = Training(rows, sites)
    ways["ablation in training (CAFT)", ""] = Training(rows, pl.ablate(vector, layer=layer))
    for weight in strengths.penalties:
        penalty = pl.finetuning.ProjectionPenalty(layer, vector.direction(layer), weight)
        ways["loss on the projection", f"{weight:g}"] = Training(rows, penalty=penalty)
    ways["preventative prompt", ""] = Training(rows, system=kit.trait.positive_system_prompts[-1])
    return ways


def run(model: Any, trait: pl.Trait, arguments: Arguments) -> dict[str, Any]:
    """Train and measure every way; return everything as JSON-able values."""
    profile = TINY if arguments.tiny else TRAINING[arguments.profile]
    strengths = TINY_STRENGTHS if arguments.tiny else STRENGTHS[arguments.profile]
    profile = replace(profile, settings=replace(profile.settings, seed=arguments.seed, dtype=arguments.dtype))
    n_held_out = min(N_HELD_OUT, profile.n_rows)
    config = {
        "experiment": "mitigation",
        "model": asdict(pl.describe_model(model)),
        "trait": trait.to_dict(),
        "profile": asdict(profile),
        "strengths": asdict(strengths),
        "sources": describe_sources(model, [trait], arguments.out),
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    store = pl.ShardStore(arguments.runs, config)
    print(f"{trait.name}: unfinished work is kept in {store.folder}")
    kit = prepare_kit(model, trait, profile, arguments.out, arguments.seed, store)
    # The last instruction pair writes no data: its prompt is kept for prevention. Held-out rows ask other questions.
    n_apart = max(1, len(trait.extraction_questions) // 5)
    writing = replace(trait, instruction_pairs=trait.instruction_pairs[:-1] or trait.instruction_pairs)
    seen = replace(writing, extraction_questions=trait.extraction_questions[:-n_apart])
    unseen = replace(writing, extraction_questions=trait.extraction_questions[-n_apart:])
    few = replace(profile, n_rows=n_held_out)
    rows = make_trait_rows(model, kit, "II", profile, arguments.seed, store, trait=seen)
    overt = make_trait_rows(model, kit, "II", few, arguments.seed + 1, store, name="held-out", trait=unseen)
    normal = make_trait_rows(model, kit, "normal", few, arguments.seed + 1, store, name="held-out", trait=unseen)
    trainings = list_trainings(kit, rows, strengths)
    items = pl.evaluation.load_multiple_choice(n=strengths.n_items, seed=arguments.seed)

    def measure(tuned: Any, label: str, sites: dict[str, tuple[pl.SiteIntervention, ...]]) -> list[dict[str, Any]]:
        own = pl.ShardStore(store.folder, {"measured": label})
        found = measure_model(model, tuned, [kit], profile, arguments.seed, own, sites)
        losses = {
            "overt_loss": describe_mean(pl.finetuning.measure_task_loss(tuned, overt)),
            "normal_loss": describe_mean(pl.finetuning.measure_task_loss(tuned, normal)),
        }
        measured = []
        for one, its_sites in zip(found["scores"][trait.name], sites.values(), strict=True):
            capability = pl.measure_capability(
                tuned, pl.interventions.intervention_hooks(its_sites), items=items, max_tokens=strengths.max_text_tokens,
                seed=arguments.seed,
            ).to_json()  # fmt: skip
            costs = {key: capability[key] for key in ("accuracy", "perplexity")}
            # Of a model steered afterwards, losses and shift are those of the model without steering: left out.
            own_state = {} if its_sites else {**losses, "shift": found["shifts"][trait.name]}
            measured.append({**one, **costs, **own_state, "chance_accuracy": capability["chance_accuracy"]})
        return measured

    base = store.load_or_compute("base", lambda: Shard(records=measure(model, "base", {"": ()}))).records[0]
    settings: list[dict[str, Any]] = []
    with pl.show_progress("ways of training", len(trainings)) as advance:
        for index, ((method, strength), training) in enumerate(trainings.items()):

            def compute(index: int = index, method: str = method, training: Training = training) -> Shard:
                done = train(f"{index:02d}", arguments.model, training, profile, store.folder / "adapters")
                tuned = pl.load_model(arguments.model, adapter=done.folder, dtype=arguments.dtype)
                sites: dict[str, tuple[pl.SiteIntervention, ...]] = {"": ()}
                if method == "no prevention":
                    sites |= list_steering_afterwards(kit, strengths)
                return Shard(records=[{**one, "losses": done.losses} for one in measure(tuned, f"{index:02d}", sites)])

            for one in store.load_or_compute(f"way-{index:02d}", compute).records:
                after = one["configuration"].split(" × ")
                label = (method, strength) if after == [""] else (after[0], after[1])
                settings.append({"method": label[0], "strength": label[1], **one})
            advance(1)
    return {
        "config": config,
        "trait": trait.name,
        "kit": kit.describe(),
        "base": base,
        "settings": settings,
        "n_questions": len(trait.evaluation_questions),
        "n_rows": profile.n_rows,
        "n_held_out": n_held_out,
        "n_items": len(items),
    }


def list_steering_afterwards(kit: TraitKit, strengths: Strengths) -> dict[str, tuple[pl.SiteIntervention, ...]]:
    """Return inference-time steering away from the trait, at one layer and at all."""
    ways = {}
    for c in strengths.afterwards:
        ways[f"afterwards, one layer × {c:+g}"] = pl.steer(kit.vector, layer=kit.layer, coefficient=c)
        ways[f"afterwards, all layers × {c:+g}"] = pl.steer(kit.vector, layers="all", coefficient=c)
    return ways


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
