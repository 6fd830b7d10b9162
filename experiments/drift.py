"""Does a model's character drift over ten turns with a friendly, flattering, hostile or confused user?

    python experiments/drift.py                                   # twenty-five minutes on one core

Scripted users ask about six topics, a neutral one plain questions on the same: the control. Conversations are held as
the model is, capped at what is ordinary on the trait's vector, steered away from it, and with a system prompt against
the trait. The finished conversations are then read by the plain model, without intervention and system prompt, and both
measured judges score each response. Layer, coefficient and quantile were set before anything was seen: the depth at
which steering_evidence.py steers this trait, one mean difference, and the 95 % quantile.
"""

from __future__ import annotations

from dataclasses import dataclass

from results.drift import DriftOverTurns

import persona_lens as pl
from persona_lens.evaluation import Condition, converse, measure_drift
from persona_lens.reproduction.arguments import CommonArguments
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.reproduction.written_vectors import read_written_vector
from persona_lens.streams import Stream
from persona_lens.traits import UserScript, list_user_kinds, load_user_scripts

NAME = "drift"
# Of the traits with written examples: those of which one judge is valid and the other at least partly so, and both
# agree with the blind reading (docs/results/judges.md). The first is acted on.
TRAITS = ("evil", "empathy")
DEPTH, COEFFICIENT, QUANTILE = 0.65, -1.0, 0.95


@dataclass(frozen=True)
class Profile:
    """How much is said; judges are made for responses of ``judged_tokens``, as other scripts have them."""

    n_scripts: int
    n_turns: int
    rollouts: int
    max_new_tokens: int
    temperature: float
    judged_tokens: int
    n_examples: int | None = None


PROFILES = {
    "quick": Profile(6, 10, 1, 32, 0.7, 48),
    "paper": Profile(6, 10, 8, 256, 1.0, 256),
    "tiny": Profile(2, 3, 1, 6, 0.7, 6, 10),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    result = arguments.read(DriftOverTurns, NAME) if arguments.replot else run(arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html")


def run(arguments: CommonArguments) -> DriftOverTurns:
    """Hold the conversations under every condition, and measure them."""
    profile = arguments.pick(PROFILES)
    model = arguments.load_model()
    config, run = arguments.begin(model, profile, {"experiment": NAME})
    sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, rollouts=profile.rollouts, seed=arguments.seed)
    layer = round(DEPTH * model.cfg.n_layers)
    vectors = {name: read_written_vector(model, name, profile.n_examples) for name in TRAITS}
    acted_on = vectors[TRAITS[0]]
    ordinary = pl.measure_ordinary_projections(model, acted_on, sampling=sampling)
    ceiling = float(ordinary.quantile(QUANTILE)[layer])
    conditions = [
        Condition(name="as it is"),
        Condition(pl.cap(acted_on, layer=layer, ceiling=ceiling), name="capped"),
        Condition(pl.steer(acted_on, layer=layer, coefficient=COEFFICIENT), name="steered away"),
        Condition(system=pl.load_trait(TRAITS[0]).negative_system_prompts[0], name="system prompt"),
    ]
    held = converse(model, list_scripts(profile), conditions, sampling=sampling, stream=(Stream.DRIFT,), run=run)
    print(held)
    judged = pl.Sampling(profile.judged_tokens, profile.temperature, seed=arguments.seed)
    prepared = {
        name: prepare_judges(model, pl.load_trait(name), judged, arguments.share(model), n_examples=profile.n_examples)
        for name in TRAITS
    }
    # How coherent a text is, one trait's judge says for all.
    judges = {
        name: (own.choosing if name == TRAITS[0] else own.reader, own.sentences) for name, own in prepared.items()
    }
    return DriftOverTurns(
        config=config | {"traits": list(TRAITS)},
        trait=TRAITS[0],
        ceiling=ceiling,
        quantile=QUANTILE,
        coefficient=COEFFICIENT,
        validations=tuple(one for own in prepared.values() for one in own.validations[:2]),
        drift=measure_drift(model, held, vectors, dict.fromkeys(vectors, layer), judges, run=run),
    )


def list_scripts(profile: Profile) -> list[UserScript]:
    """Return the first scripts of each kind of user, cut to their first turns."""
    return [
        UserScript(script.kind, script.turns[: profile.n_turns], script.topic)
        for kind in list_user_kinds()
        for script in load_user_scripts(kind)[: profile.n_scripts]
    ]


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
