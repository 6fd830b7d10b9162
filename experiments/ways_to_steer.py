"""Which way to find a direction, and which way to act with it? At equal coherence, and at equal divergence.

    python experiments/ways_to_steer.py --trait evil --trait empathy --trait humorous

Every way is first brought to a few divergences from the unsteered model, measured on ordinary responses. On some of
the evaluation questions its coherence is tried at each, and with it the strength that leaves the same coherence. On
the rest, two judges read it at that strength, and at the one of equal divergence. Beside the ways stand the unsteered
model, the trait's first positive system prompt, and random directions, brought to the same. The layer is the middle
one, for all: nothing is chosen but the strength, and that not by a trait's score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from jaxtyping import Float
from results.ways_to_steer import BASELINE, PROMPT, RANDOM, UNSTEERED, TraitWays, TriedWay, WaysToSteer
from torch import Tensor

import persona_lens as pl
from persona_lens.evaluation import (
    Capability,
    Condition,
    ConditionScores,
    load_multiple_choice,
    measure_capability,
    rescore,
)
from persona_lens.evaluation.capability import load_ordinary_texts
from persona_lens.evaluation.null_margin import interpolate_strength
from persona_lens.evaluation.ordinary import sample_ordinary_spans
from persona_lens.judges.judgement import IdentifiedJudge
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import COMPARED_TRAITS, CommonArguments, read_traits
from persona_lens.reproduction.bench import extract_or_keep_all, measure_lengths
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.estimated import WrittenReadings, read_written
from persona_lens.reproduction.judges import Memory, prepare_judges, prepare_sentence_judge, remember, remember_one
from persona_lens.reproduction.ways import DivergenceMeter, Strength, Way, find_strengths
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.traits import load_written_examples

NAME = "ways_to_steer"


@dataclass(frozen=True)
class Profile:
    """How much is sampled.

    Args:
        depth: Of the layer, as a share of the model's.
        levels: Divergences at which coherence is tried, in nats a token.
        divergence: At which ways are compared, likewise.
        coherence: At which ways are compared.
        window: First tokens of a response that one way acts on.
        n_heads: Attention heads that are shifted.
        n_removed: Top components of ordinary text that one estimator removes.
        optimised_steps: Of the optimised vector's training.
        n_random: Random directions.
        n_trial_questions: That set strengths.
        n_questions: That ways are compared on.
        n_meter: Ordinary responses that divergence is measured on.
        n_items: Questions that capability is measured with, for some ways.
        n_texts: Texts, likewise.
    """

    depth: float = 0.5
    levels: tuple[float, ...] = (0.06, 0.2, 0.6)
    divergence: float = 0.2
    coherence: float = 60.0
    window: int = 8
    n_heads: int = 16
    n_removed: int = 10
    optimised_steps: int = 20
    n_random: int = 3
    max_new_tokens: int = 48
    temperature: float = 0.7
    n_trial_questions: int = 10
    n_questions: int = 30
    n_meter: int = 8
    n_items: int = 24
    n_texts: int = 16
    n_examples: int | None = None


PROFILES = {
    "quick": Profile(),
    "paper": Profile(
        max_new_tokens=256, temperature=1.0, n_random=16, n_trial_questions=20, n_questions=50, n_items=250, n_texts=40
    ),
    "tiny": Profile(
        levels=(0.001, 0.002), divergence=0.001, n_heads=2, n_removed=2, optimised_steps=2, n_random=2,
        max_new_tokens=6, n_trial_questions=2, n_questions=3, n_meter=2, n_items=4, n_texts=2, n_examples=10,
    ),
}  # fmt: skip


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    result = arguments.read(WaysToSteer, NAME) if arguments.replot else run(arguments.pick(PROFILES), arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html: {result.say_verdict()}")


def run(profile: Profile, arguments: CommonArguments) -> WaysToSteer:
    """Try every way for every trait."""
    model = arguments.load_model()
    traits = read_traits(arguments.trait or ("evil", "empathy", "humorous"), 5, 20)
    # The traits are no part of it, so that one that was run by itself is not run again.
    config, run = arguments.begin(model, profile, {"experiment": NAME})
    # Once, and only where a trait is not there yet.
    read = cache(partial(read_written, model, [trait.name for trait in traits], profile.n_examples))
    found = []
    with run.progress("traits", len(traits)) as advance:
        for trait in traits:
            own = Run(run.part({"trait": trait.to_dict()}).store)
            measure = partial(try_ways, model, trait, read, profile, arguments, own)
            found.append(own.load_or_measure("ways", TraitWays, measure))
            advance(1)
    return WaysToSteer(config | {"traits": [one.to_dict() for one in traits]}, tuple(found))


def try_ways(
    model: HookedModel,
    trait: pl.Trait,
    read: Callable[[], WrittenReadings],
    profile: Profile,
    arguments: CommonArguments,
    run: Run,
) -> TraitWays:
    """Bring every way to the same coherence and the same divergence, and read what it does."""
    sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    share = arguments.share(model)
    memory: Memory = {}
    judges = remember(prepare_judges(model, trait, sampling, share, n_examples=profile.n_examples), memory)
    layer = round(profile.depth * model.cfg.n_layers)
    meter = DivergenceMeter(model, sample_ordinary_spans(model, None, sampling)[: profile.n_meter])
    vectors = find_vectors(model, trait, read(), judges.reader, layer, profile, sampling, run)
    ways = make_ways(model, trait, vectors, layer, meter.read_tokens(layer), profile, sampling)
    levels, at_divergence = meet_divergences(ways, meter, profile, run)

    score = partial(pl.evaluation.score_conditions, model, judges.likelihood, sampling=sampling, run=run)
    trials = score(
        [Condition(name=UNSTEERED)]
        + [
            Condition(way.make(one.strength), name=f"{way.name}, level {level}")
            for way in ways
            for level, one in enumerate(levels[way.name])
        ],
        trait.evaluation_questions[0::2][: profile.n_trial_questions],
        stream=(Stream.WAYS, 0),
    )
    at_coherence = meet_coherence(ways, levels, trials, meter, profile.coherence)
    coherent, diverging = (
        [Condition(way.make(strengths[way.name].strength), name=f"{way.name}, equal {equal}") for way in ways]
        for equal, strengths in (("coherence", at_coherence), ("divergence", at_divergence))
    )
    plain = [Condition(name=UNSTEERED), Condition(system=trait.positive_system_prompts[0], name=PROMPT)]
    judging = load_written_examples(trait.name, "judging")[: profile.n_examples]
    held_out = (*trait.evaluation_questions[1::2], *(one.question for one in judging))[: profile.n_questions]
    responses = score([*plain, *coherent, *diverging], held_out, stream=(Stream.WAYS, 1))

    def read_others(name: str) -> Float[Tensor, "condition question rollout"]:
        its = prepare_sentence_judge(model, pl.load_trait(name), sampling, share, n_examples=profile.n_examples)
        return rescore(responses, remember_one(its, memory)).scores

    return TraitWays(
        trait=trait.name,
        layer=layer,
        validations=judges.validations,
        ways=tuple(
            TriedWay(way.estimator, way.intervention, tuple(levels[way.name]), at_coherence[way.name],
                     at_divergence[way.name])
            for way in ways
        ),
        # What they say is not read again: their scores are here, and the texts would be the half of the file.
        trials=replace(trials, responses=()),
        trial_scores={one.name: rescore(trials, one).scores for one in (judges.reader, judges.sentences)},
        responses=responses,
        scores={one.name: rescore(responses, one).scores for one in (judges.reader, judges.sentences)},
        others={name: read_others(name) for name in COMPARED_TRAITS if name != trait.name},
        capabilities=measure_capabilities(model, coherent, profile),
    )  # fmt: skip


def meet_divergences(
    ways: Sequence[Way], meter: DivergenceMeter, profile: Profile, run: Run
) -> tuple[dict[str, list[Strength]], dict[str, Strength]]:
    """Return every way's strengths at the levels at which coherence is tried, and at the divergence to compare at."""
    aims = sorted({*profile.levels, profile.divergence})
    levels, at_divergence = {}, {}
    with run.progress("strengths", len(ways)) as advance:
        for way in ways:
            found = dict(zip(aims, find_strengths(way, meter, aims), strict=True))
            levels[way.name] = [found[level] for level in profile.levels]
            at_divergence[way.name] = found[profile.divergence]
            advance(1)
    return levels, at_divergence


def meet_coherence(
    ways: Sequence[Way],
    levels: Mapping[str, Sequence[Strength]],
    trials: ConditionScores,
    meter: DivergenceMeter,
    target: float,
) -> dict[str, Strength]:
    """Return the strength at which each way's coherence falls to a target."""
    coherence = dict(zip(trials.conditions, trials.coherence_by_question.nanmean(dim=1).tolist(), strict=True))
    found = {}
    for way in ways:
        tried = [coherence[f"{way.name}, level {level}"] for level in range(len(levels[way.name]))]
        strength = interpolate_strength([one.strength for one in levels[way.name]], tried, target)
        found[way.name] = Strength(strength, meter.measure(way.make(strength)))
    return found


def make_ways(
    model: HookedModel,
    trait: pl.Trait,
    vectors: Mapping[str, pl.PersonaVector],
    layer: int,
    ordinary: Float[Tensor, "token d_model"],
    profile: Profile,
    sampling: pl.Sampling,
) -> list[Way]:
    """Return every way: estimators × interventions, attention heads, and random directions."""
    training = load_written_examples(trait.name, "training")[: profile.n_examples]
    ways = []
    for name, vector in vectors.items():
        typical = float(pl.project(ordinary, vector.direction(layer)).median())
        ways += act_along(name, vector, layer, profile, typical)
    pairs = pl.vectors.read_head_pairs(model, trait.name, training)
    choice = pl.vectors.choose_heads(pairs, profile.n_heads)
    ways.append(Way("mean difference", "shift heads", lambda alpha: pl.interventions.shift_heads(choice, alpha)))
    length = measure_lengths(model, training)[layer : layer + 1] * 0.1
    random = sample_random_directions(length, model.cfg.d_model, profile.n_random, sampling.seed + Stream.WAYS)[:, 0]
    ways += [
        Way(f"{RANDOM} {index + 1}", "add", partial(_add, layer, direction)) for index, direction in enumerate(random)
    ]
    return ways


def find_vectors(
    model: HookedModel,
    trait: pl.Trait,
    read: WrittenReadings,
    reader: IdentifiedJudge,
    layer: int,
    profile: Profile,
    sampling: pl.Sampling,
    run: Run,
) -> dict[str, pl.PersonaVector]:
    """Find the trait's direction in every way, all but the sampled one from the same written answers."""
    training = load_written_examples(trait.name, "training")[: profile.n_examples]
    vectors = read.find_vectors(trait.name, profile.n_removed)
    vectors["optimised"] = pl.vectors.optimise_vector(
        model, trait.name, training, layer, n_steps=profile.optimised_steps, seed=sampling.seed
    )
    vectors["mean difference, sampled"] = extract_or_keep_all(model, trait, reader, sampling, run)
    return vectors


def act_along(name: str, vector: pl.PersonaVector, layer: int, profile: Profile, typical: float) -> list[Way]:
    """Return what is done with a vector: adding it at all tokens or at the first, turning, and for one a gate."""
    first = pl.interventions.Window(stop=profile.window)

    def add(strength: float) -> pl.Intervention:
        return pl.steer(vector, layer=layer, coefficient=strength)

    def turn(degrees: float) -> pl.Intervention:
        return pl.interventions.rotate(vector, layer=layer, degrees=degrees)

    ways = [
        Way(name, "add", add),
        Way(name, f"add to the first {profile.window} tokens", lambda strength: add(strength).during(first)),
        Way(name, "rotate", turn, most=90.0, start=10.0),
    ]
    if f"{name}, add" == BASELINE:
        gated = Way(
            name, "add where it is low", lambda strength: pl.interventions.gate(add(strength), vector, below=typical)
        )
        ways.append(gated)
    return ways


def _add(layer: int, direction: Float[Tensor, " d_model"], strength: float) -> pl.Intervention:
    return pl.Intervention.of(layer, pl.tensors.Add(direction, strength))


def measure_capabilities(
    model: HookedModel, conditions: Sequence[Condition], profile: Profile
) -> dict[str, Capability]:
    """Ask simple questions under the ways that share estimator or intervention with the baseline, and under none."""
    baseline, act = BASELINE.split(", ", 1)
    items, texts = load_multiple_choice()[: profile.n_items], load_ordinary_texts()[: profile.n_texts]
    measure = partial(measure_capability, model, items=items, texts=texts)
    found = {UNSTEERED: measure()}
    for one in conditions:
        name = one.name.removesuffix(", equal coherence")
        is_kin = name.startswith(f"{baseline}, ") or name.endswith(f", {act}")
        # Ordinary text and single answers have no first tokens that a window could count.
        if is_kin and not name.startswith(RANDOM) and not one.intervention.has_windows:
            found[name] = measure(one.intervention)
    return found


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
