"""One layer, all layers, ablation or capping: what moves a trait furthest for the least cost?

    python experiments/steering_modes.py --trait evil               # the layer of figures/layer_sweep_evil.json

Reproduces the inference half of Figure 26 of "Persona Vectors" (arXiv 2507.21509). Up: asked without a system prompt.
Down: asked under the trait's first positive system prompt, since without one there is little to lower. Steering at all
layers adds the vector's increments from layer to layer; ablation and capping act at all layers, capping with floors and
ceilings from quantiles of ordinary responses. Responses are changed from the last prompt token on; perplexity,
divergence and accuracy are measured with every token changed. Of each method the setting that moves furthest is chosen
on half of the evaluation questions and reported on the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from results.steering_modes import OrdinaryNote, SteeringModes, SteeringSetting

import persona_lens as pl
from persona_lens.evaluation import Capability, Condition, ConditionScores, load_multiple_choice, rescore
from persona_lens.interventions import NOTHING
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import LayerArguments, read_traits, run_each_trait
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.kits import Profile, find_sources, prepare_kit
from persona_lens.reproduction.layer_sweep import ScoreAndCoherence
from persona_lens.statistics import Interval
from persona_lens.statistics.missing import mean_interval
from persona_lens.streams import Stream
from persona_lens.vectors import OrdinaryProjections

MIN_COHERENCE = 50.0
# Of the evaluation questions: the first half chose the layer too.
CHOOSING, REPORTING = slice(0, None, 2), slice(1, None, 2)
Way = Literal["up", "down"]


@dataclass(frozen=True)
class ModesProfile(Profile):
    """How much is sampled; quantiles are how common the cap's bound is when steering up (down: 1 less that)."""

    coefficients: tuple[float, ...]
    quantiles: tuple[float, ...]
    n_items: int | None
    max_text_tokens: int


PROFILES = {
    "quick": ModesProfile(0.7, 48, 1, 1, (1.0, 2.0, 3.0), (0.5, 0.99), 50, 32),
    "paper": ModesProfile(1.0, 1000, 10, 10, (0.5, 1.0, 1.5, 2.0, 2.5), (0.25, 0.5, 0.75, 0.9, 0.99), None, 128),
    "tiny": ModesProfile(0.7, 6, 1, 1, (1.0,), (0.9,), 4, 16, n_pairs=1, n_questions=4, n_examples=10),
}


@dataclass(frozen=True, eq=False)
class Mode:
    """One setting of one method."""

    method: str
    way: Way
    strength: str
    intervention: pl.Intervention = NOTHING


def main(arguments: LayerArguments) -> None:
    """Run or redraw each trait."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    run_each_trait(SteeringModes, "steering_modes", traits, profile, arguments, run)


def list_modes(
    vector: pl.PersonaVector, ordinary: OrdinaryProjections, layer: int, way: Way, profile: ModesProfile
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


def run(model: HookedModel, trait: pl.Trait, profile: ModesProfile, arguments: LayerArguments) -> SteeringModes:
    """Score every setting and measure its cost."""
    sources = find_sources(model, trait.name, arguments.out, layer=arguments.layer)
    questions = trait.evaluation_questions
    parts = {"experiment": "steering_modes", "trait": trait.to_dict(), **sources.describe()}
    config, run = arguments.begin(model, profile, parts)
    kit = prepare_kit(model, trait, sources, profile, run, arguments)
    ordinary = pl.measure_ordinary_projections(model, kit.vector, sampling=profile.sample_once(arguments.seed))
    systems: dict[Way, str | None] = {"up": None, "down": trait.positive_system_prompts[0]}
    modes = [mode for way in systems for mode in list_modes(kit.vector, ordinary, kit.layer, way, profile)]
    scores = pl.score_conditions(
        model, kit.judge, [Condition(mode.intervention, systems[mode.way]) for mode in modes], questions,
        sampling=profile.sample(arguments.seed), stream=(Stream.STEERING_MODES,), run=run,
    )  # fmt: skip
    items = load_multiple_choice(n=profile.n_items, seed=arguments.seed)
    costs: list[Capability] = []
    with run.progress("capability", len(modes)) as advance:
        for index, mode in enumerate(modes):

            def measure(mode: Mode = mode) -> Capability:
                return pl.measure_capability(
                    model, mode.intervention, items=items, max_tokens=profile.max_text_tokens, seed=arguments.seed
                )

            # Both ways start from the same unsteered model.
            name = "unsteered" if mode.method == "unsteered" else f"{index:03d}"
            costs.append(run.load_or_measure(f"capability-{name}", Capability, measure))
            advance(1)
    again = None if kit.second is None else rescore(scores, kit.second)

    def on(half: slice, found: ConditionScores, i: int) -> Interval:
        return mean_interval(found.by_question[i, half])

    rows = tuple(
        SteeringSetting(
            method=mode.method,
            way=mode.way,
            strength=mode.strength,
            score=on(REPORTING, scores, i),
            coherence=mean_interval(scores.coherence_by_question[i, REPORTING]),
            chosen_by=ScoreAndCoherence(
                on(CHOOSING, scores, i), mean_interval(scores.coherence_by_question[i, CHOOSING])
            ),
            second=None if again is None else on(REPORTING, again, i),
            perplexity=costs[i].perplexity,
            kl=costs[i].kl,
            accuracy=costs[i].accuracy,
            example=scores.responses[i][0][0],
        )
        for i, mode in enumerate(modes)
    )
    return SteeringModes(
        config=config,
        trait=trait.name,
        layer=kit.layer,
        judge=kit.judge_note,
        vector=kit.vector_note,
        ordinary=OrdinaryNote(ordinary.n_responses, ordinary.projections.shape[1]),
        settings=rows,
        min_coherence=MIN_COHERENCE,
        furthest={way: find_furthest(rows, way) for way in systems},
        chance_accuracy=costs[0].chance_accuracy,
        n_questions=len(questions[REPORTING]),
        n_responses=scores.scores.numel(),
        n_unscored=scores.n_unscored,
        n_items=len(items),
        n_text_tokens=costs[0].n_tokens,
    )


def find_furthest(rows: Sequence[SteeringSetting], way: Way) -> dict[str, SteeringSetting | None]:
    """Return each method's most extreme setting among those that are surely coherent, by the questions that choose.

    Surely coherent: the whole interval of coherence lies above the floor, the rule by which layer_sweep.py chooses.
    What is reported of the setting was measured on the other questions.
    """
    found: dict[str, SteeringSetting | None] = {}
    for method in dict.fromkeys(row.method for row in rows if row.way == way and row.method != "unsteered"):
        kept = [
            row
            for row in rows
            if (row.method, row.way) == (method, way)
            and row.chosen_by is not None
            and not row.chosen_by.score.is_missing
            and row.chosen_by.coherence.low >= MIN_COHERENCE
        ]
        best = max if way == "up" else min
        found[method] = (
            best(kept, key=lambda row: row.chosen_by.score.estimate if row.chosen_by else 0.0) if kept else None
        )
    return found


if __name__ == "__main__":
    enter(main, LayerArguments, __doc__)
