"""Steered away from hallucination, does a model that invents all its answers begin to say that it does not know?

    python experiments/steering_away.py

Layer and step are chosen on half of the evaluation questions: the lowest score, by the model's own reading, among
settings whose mean coherence is high enough. On the other half, and on the questions of the written examples that
nothing was fitted on, judges read what that does beside everything simpler, and stock phrases of not knowing are
counted, which share nothing with any judge. Blind reading: `blind_reading.py --of steering_away`.
"""

from __future__ import annotations

from dataclasses import dataclass

from results.steering_away import AWAY, SteeringAway

import persona_lens as pl
from persona_lens.evaluation import Condition, rescore
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.bench import Bench, NullSize, measure_lengths, note_setting
from persona_lens.reproduction.comparison import Setting
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.streams import Stream
from persona_lens.traits import load_written_examples

NAME = "steering_away"
TRAIT = "hallucination"
# A setting is chosen only if its mean coherence is at least this.
MIN_COHERENCE = 60.0


@dataclass(frozen=True)
class AwayProfile:
    """How much is sampled; steps are shares of the typical length of a response's mean activation."""

    depths: tuple[float, ...] = (0.4, 0.5, 0.65, 0.8)
    steps: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    max_new_tokens: int = 48
    temperature: float = 0.7
    rollouts: int = 1
    n_directions: int = 16
    n_null_questions: int = 12
    n_examples: int | None = None
    n_questions: int = 20


PROFILES = {
    "quick": AwayProfile(),
    "paper": AwayProfile(max_new_tokens=256, temperature=1.0, rollouts=10),
    "tiny": AwayProfile((0.4,), (0.2,), 6, 0.7, 1, 2, 2, 10, 4),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    if arguments.trait:
        raise SystemExit(f"--trait must be left out: phrases of not knowing say something of {TRAIT} alone.")
    profile = arguments.pick(PROFILES)
    run_each_trait(SteeringAway, NAME, read_traits([TRAIT], 5, profile.n_questions), profile, arguments, run)


def run(model: HookedModel, trait: pl.Trait, profile: AwayProfile, arguments: CommonArguments) -> SteeringAway:
    """Make judges and vector, choose, and read what the choice does."""
    config, run = arguments.begin(model, profile, {"experiment": NAME, "trait": trait.to_dict()})
    sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    judges = prepare_judges(model, trait, sampling, arguments.share(model), n_examples=profile.n_examples)
    training, judging = (load_written_examples(trait.name, half)[: profile.n_examples]
                         for half in ("training", "judging"))  # fmt: skip
    vector = pl.read_persona_vector(model, trait.name, training)
    lengths = measure_lengths(model, training)
    bench = Bench(model, trait, judges, training, lengths, sampling, Stream.STEERING_AWAY, run, arguments.share(model))
    tuning = trait.evaluation_questions[0::2]
    setting = choose(bench, vector, tuning, profile)
    held_out = (*trait.evaluation_questions[1::2], *(one.question for one in judging))
    null = NullSize(profile.n_directions, profile.n_null_questions)
    compared = bench.compare(
        {AWAY: (vector, setting)}, held_out, tuning, null, profile.rollouts, profile.n_examples, ways=((1, ""),)
    )
    return SteeringAway(
        config=config, trait=trait.name, validations=judges.validations, **vars(compared), setting=setting
    )


def choose(bench: Bench, vector: pl.PersonaVector, questions: tuple[str, ...], profile: AwayProfile) -> Setting:
    """Return the layer and step with the lowest score among those that stay coherent; else the most coherent one."""
    layers = sorted({round(depth * bench.model.cfg.n_layers) for depth in profile.depths})
    grid = [(at, -step, bench.scale(vector, at, -step)) for at in layers for step in profile.steps]
    conditions = [Condition(pl.steer(vector, layer=at, coefficient=c), name=f"{at} × {s:g}") for at, s, c in grid]
    found = bench.score(conditions, questions, 1)
    scores = rescore(found, bench.judges.reader).by_question.nanmean(dim=1)
    coherence = found.coherence_by_question.nanmean(dim=1)
    good = [index for index in range(len(grid)) if float(coherence[index]) >= MIN_COHERENCE]
    best = min(good, key=lambda i: float(scores[i])) if good else int(coherence.argmax())
    layer, step, coefficient = grid[best]
    return note_setting(vector, "written", layer, step, coefficient, float(scores[best]), float(coherence[best]))


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
