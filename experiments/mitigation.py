"""What keeps fine-tuning from spoiling a model, and at what cost? Steering after training, or in it, and four others.

    python experiments/mitigation.py --trait evil               # a quarter of an hour on two cores

Reproduces Figures 7, 26 to 28 and 31 of "Persona Vectors" (arXiv 2507.21509): a model is trained on overt trait data
(level II), with the vector added to its residual stream meanwhile (preventative steering: one layer, or all layers
with increments), its direction ablated (CAFT), a loss on the projection, or a system prompt that asks for the trait; or
it is steered away afterwards. All strengths are shown. The layer is that of layer_sweep.py. Two losses are taken on
rows held out from training, their questions too, nothing intervening: on overt rows (how well the data was learnt, the
trait with it) and on ordinary answers (what else training cost). Rows are the written answers, or, for a trait that has
none, the base model's own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial

import datasets
from results.mitigation import MeasuredModel, MeasuredModels, Mitigation, MitigationSetting

import persona_lens as pl
from persona_lens.evaluation import load_multiple_choice
from persona_lens.finetuning import ProjectionPenalty, measure_task_loss
from persona_lens.interventions import NOTHING
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.kits import TraitKit, find_sources, prepare_kit
from persona_lens.reproduction.trained_models import describe_kit, measure_model, project_base
from persona_lens.reproduction.training import Training, TrainingProfile, make_trait_rows, pick_training, train
from persona_lens.statistics.missing import mean_interval

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
    "tiny": Strengths((1.0,), (1.0,), (-1.0,), (1.0,), 4, 16),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw each trait."""
    profile = pick_training(arguments)
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    run_each_trait(Mitigation, "mitigation", traits, profile, arguments, run)


def list_trainings(kit: TraitKit, rows: datasets.Dataset, strengths: Strengths) -> dict[tuple[str, str], Training]:
    """Return every way of training by method and strength, the plain one first."""
    vector, layer = kit.vector, kit.layer
    ways = {("no prevention", ""): Training(rows)}
    for c in strengths.one_layer:
        ways["preventative, one layer", f"{c:+g}"] = Training(rows, pl.steer(vector, layer=layer, coefficient=c))
    for c in strengths.all_layers:
        ways["preventative, all layers", f"{c:+g}"] = Training(rows, pl.steer(vector, layers="all", coefficient=c))
    ways["ablation in training (CAFT)", ""] = Training(rows, pl.ablate(vector, layer=layer))
    for weight in strengths.penalties:
        penalty = ProjectionPenalty(layer, vector.direction(layer), weight)
        ways["loss on the projection", f"{weight:g}"] = Training(rows, penalty=penalty)
    ways["preventative prompt", ""] = Training(rows, system=kit.trait.positive_system_prompts[-1])
    return ways


def list_steering_afterwards(kit: TraitKit, strengths: Strengths) -> dict[str, pl.Intervention]:
    """Return inference-time steering away from the trait, at one layer and at all."""
    ways = {}
    for c in strengths.afterwards:
        ways[f"afterwards, one layer × {c:+g}"] = pl.steer(kit.vector, layer=kit.layer, coefficient=c)
        ways[f"afterwards, all layers × {c:+g}"] = pl.steer(kit.vector, layers="all", coefficient=c)
    return ways


def run(model: HookedModel, trait: pl.Trait, profile: TrainingProfile, arguments: CommonArguments) -> Mitigation:
    """Train and measure every way."""
    strengths = arguments.pick(STRENGTHS)
    n_held_out, seed = min(N_HELD_OUT, profile.n_rows), arguments.seed
    sources = find_sources(model, trait.name, arguments.out)
    parts = {
        "experiment": "mitigation",
        "trait": trait.to_dict(),
        "strengths": asdict(strengths),
        "sources": sources.describe(),
    }
    config, run = arguments.begin(model, profile, parts)
    kit = prepare_kit(model, trait, sources, profile, run, arguments)
    # Where rows are sampled the last instruction pair writes none: its prompt is kept for prevention. Held-out rows ask
    # other questions.
    n_apart = max(1, len(trait.extraction_questions) // 5)
    writing = replace(trait, instruction_pairs=trait.instruction_pairs[:-1] or trait.instruction_pairs)
    seen = replace(writing, extraction_questions=trait.extraction_questions[:-n_apart])
    unseen = replace(writing, extraction_questions=trait.extraction_questions[-n_apart:])
    rows = make_trait_rows(model, kit, "II", profile.n_rows, profile.sample_rows(seed), run, trait=seen)
    held_out = profile.sample_rows(seed + 1)
    overt, normal = (
        make_trait_rows(model, kit, level, n_held_out, held_out, run, name="held-out", half="judging", trait=unseen)
        for level in ("II", "normal")
    )
    items = load_multiple_choice(n=strengths.n_items, seed=seed)

    before = project_base(model, [kit])

    def measure(tuned: HookedModel, interventions: dict[str, pl.Intervention]) -> MeasuredModels:
        found = measure_model(before, tuned, [kit], profile.sample(seed), interventions)
        measured = []
        for one, done in zip(found.scores[trait.name], interventions.values(), strict=True):
            cost = pl.measure_capability(tuned, done, items=items, max_tokens=strengths.max_text_tokens, seed=seed)
            measured.append(
                MeasuredModel(
                    **vars(one),
                    accuracy=cost.accuracy,
                    perplexity=cost.perplexity,
                    chance_accuracy=cost.chance_accuracy,
                    # Of a model steered afterwards, losses and shift are those of the model without steering: left out.
                    overt_loss=None if done else mean_interval(measure_task_loss(tuned, overt)),
                    normal_loss=None if done else mean_interval(measure_task_loss(tuned, normal)),
                    shift=None if done else found.shifts[trait.name],
                )
            )
        return MeasuredModels((), tuple(measured))

    base = run.load_or_measure("base", MeasuredModels, lambda: measure(model, {"": NOTHING})).models[0]
    trainings = list_trainings(kit, rows, strengths)

    def train_one(index: int, method: str, training: Training) -> MeasuredModels:
        done, tuned = train(f"{index:02d}", arguments.model, training, profile.settings, run)
        ways = {"": NOTHING}
        if method == "no prevention":
            ways |= list_steering_afterwards(kit, strengths)
        return replace(measure(tuned, ways), losses=done.losses)

    pieces = [
        partial(run.load_or_measure, f"way-{index:02d}", MeasuredModels, partial(train_one, index, method, training))
        for index, ((method, _), training) in enumerate(trainings.items())
    ]
    settings: list[MitigationSetting] = []
    with run.progress("ways of training", len(trainings)) as advance:
        for (method, strength), found in zip(trainings, run.compute_each(pieces), strict=True):
            for one in found.models:
                after = one.configuration.split(" × ")
                label = (method, strength) if after == [""] else (after[0], after[1])
                settings.append(MitigationSetting(**vars(one), method=label[0], strength=label[1], losses=found.losses))
            advance(1)
    return Mitigation(
        config=config,
        trait=trait.name,
        kit=describe_kit(kit),
        base=base,
        settings=tuple(settings),
        n_questions=len(trait.evaluation_questions),
        n_rows=profile.n_rows,
        n_held_out=n_held_out,
        n_items=len(items),
    )


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
