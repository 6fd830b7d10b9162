"""Does training on a vector's projection hide the trait from the vector, and where is it then?

    python experiments/hidden_signal.py --trait evil              # a quarter of an hour of one core

A model is trained on overt rows as they are, with a loss on the projection at one layer (two weights), and with the
vector added there meanwhile (preventative steering); and on ordinary answers to the same questions, as any training
moves a model. Each with several seeds, of adapter, rows' order and responses. Two judges score what each says to the
evaluation questions. Beside that: how far it has moved from the base model along the vector, along a fresh vector and
along a probe, at every layer and three positions, and how well each tells apart written answers that nothing was
trained on. The vector was read from the training half of the written answers, which the rows are of too; what reads
the models afterwards is found and tried on the judging half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from results.hidden_signal import BASE, ORDINARY, PLAIN, HiddenSignal, TrainedSignal, reduce_seeds

import persona_lens as pl
from persona_lens.evaluation import Condition, rescore
from persona_lens.finetuning import FinetuneSettings, ProjectionPenalty, SignalActivations, measure_signal, read_signal
from persona_lens.models import HookedModel
from persona_lens.models.loading.source import find_anywhere
from persona_lens.reproduction.arguments import CommonArguments, check_written, read_traits, run_each_trait
from persona_lens.reproduction.costs import timed
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import Judges, prepare_judges
from persona_lens.reproduction.kits import find_sources
from persona_lens.reproduction.training import Training, read_trait_rows, train
from persona_lens.reproduction.written_vectors import read_written_vector
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.traits import load_written_examples

NAME = "hidden_signal"


@dataclass(frozen=True)
class Profile:
    """How models are trained, and what they are measured with.

    Args:
        settings: How to train; the seed is that of each repetition.
        n_rows: Written answers trained on.
        penalties: Weights of the loss on the projection.
        coefficient: Of the vector that is added in training.
        n_seeds: Repetitions of each way.
        n_held_out: Questions whose written answers are read.
        n_questions: Evaluation questions that are answered.
        max_new_tokens: Of an answer.
        temperature: Of answers.
        n_examples: Most written examples that vector and judges are made from; None takes all.
    """

    settings: FinetuneSettings
    n_rows: int
    penalties: tuple[float, ...]
    coefficient: float
    n_seeds: int
    n_held_out: int
    n_questions: int = 20
    max_new_tokens: int = 48
    temperature: float = 0.7
    n_examples: int | None = None


_QUICK = FinetuneSettings(
    rank=32, alpha=64, learning_rate=3e-4, epochs=1, batch_size=2, accumulation=1, warmup_steps=4, max_tokens=160
)
_TINY = FinetuneSettings(
    rank=2, alpha=4, learning_rate=1e-3, batch_size=4, accumulation=1, warmup_steps=0, max_tokens=800
)
PROFILES = {
    "quick": Profile(_QUICK, 32, (1.0, 10.0), 3.0, 3, 20),
    "paper": Profile(replace(FinetuneSettings(), epochs=10), 40, (0.1, 1.0, 10.0), 3.0, 8, 40, 20, 300, 1.0),
    "tiny": Profile(_TINY, 8, (1.0,), 1.0, 2, 5, 3, 6, n_examples=10),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw each trait."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait, 5, profile.n_questions)
    check_written([trait.name for trait in traits])
    run_each_trait(HiddenSignal, NAME, traits, profile, arguments, run)


def list_trainings(trait: str, vector: pl.PersonaVector, layer: int, profile: Profile) -> dict[str, Training]:
    """Return every way of training, what the others are set against first."""
    overt, ordinary = (read_trait_rows(trait, level, "training", profile.n_rows) for level in ("II", "normal"))
    ways = {ORDINARY: Training(ordinary), PLAIN: Training(overt)}
    for weight in profile.penalties:
        penalty = ProjectionPenalty(layer, vector.direction(layer), weight)
        ways[f"loss on the projection × {weight:g}"] = Training(overt, penalty=penalty)
    added = pl.steer(vector, layer=layer, coefficient=profile.coefficient)
    return ways | {f"preventative steering × {profile.coefficient:g}": Training(overt, added)}


def run(model: HookedModel, trait: pl.Trait, profile: Profile, arguments: CommonArguments) -> HiddenSignal:
    """Train, score and read every way with every seed."""
    sources = find_sources(model, trait.name, arguments.out)
    layer = {"layer": sources.layer, "layer_source": sources.layer_source}
    config, run = arguments.begin(model, profile, {"experiment": NAME, "trait": trait.to_dict(), **layer})
    once = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    judges = prepare_judges(model, trait, once, arguments.share(model), n_examples=profile.n_examples)
    vector = read_written_vector(model, trait.name, profile.n_examples)
    held_out = load_written_examples(trait.name, "judging")[: profile.n_held_out]
    base = read_signal(model, trait.name, held_out)
    ways = list_trainings(trait.name, vector, sources.layer, profile)
    seeds = tuple(arguments.seed + index for index in range(profile.n_seeds))
    setting = Setting(trait, judges, vector, base, once, run)
    pieces = [
        partial(run.load_or_measure, f"{index:02d}-{seed}", TrainedSignal, partial(work, seed))
        for index, work in enumerate([
            partial(measure_base, setting, model),
            *(partial(train_and_measure, setting, find_anywhere(arguments.model), profile, index, training)
              for index, training in enumerate(ways.values())),
        ])
        for seed in seeds
    ]  # fmt: skip
    found: list[TrainedSignal] = []
    with run.progress("models", len(pieces)) as advance:
        for one in run.compute_each(pieces):
            found.append(one)
            advance(1)
    by_way = {way: found[index * len(seeds) : (index + 1) * len(seeds)] for index, way in enumerate([BASE, *ways])}
    return HiddenSignal(
        config=config,
        trait=trait.name,
        layer=sources.layer,
        reader=judges.reader.name,
        second_reader=judges.sentences.name,
        validations=judges.validations,
        ways=reduce_seeds(by_way, sources.layer),
        seeds=seeds,
        n_rows=profile.n_rows,
        n_questions=len(trait.evaluation_questions),
        n_held_out=len(held_out),
        core_seconds=average_costs(by_way),
    )


@dataclass(frozen=True, eq=False)
class Setting:
    """What every model is measured with.

    Args:
        trait: The trait.
        judges: Its judges.
        vector: The vector that was there first.
        base: What the model before training makes of the written answers.
        sampling: How answers are drawn.
        run: Where adapters are kept.
    """

    trait: pl.Trait
    judges: Judges
    vector: pl.PersonaVector
    base: SignalActivations
    sampling: pl.Sampling
    run: Run

    def measure(self, model: HookedModel, seed: int, losses: tuple[float, ...], training: float) -> TrainedSignal:
        """Let a model answer and be scored, then read what it makes of written answers."""
        costs: dict[str, float] = {"training": training}
        sampling = replace(self.sampling, seed=seed)
        with timed(costs, "answers and scores"):
            scored = pl.score_conditions(
                model, self.judges.reader, [Condition(name="plain")], self.trait.evaluation_questions,
                sampling=sampling, stream=(Stream.HIDDEN_SIGNAL,),
            )  # fmt: skip
            second = rescore(scored, self.judges.sentences)
        with timed(costs, "reading"):
            examples = load_written_examples(self.trait.name, "judging")[: len(self.base.prompts)]
            read = read_signal(model, self.trait.name, examples)
        with timed(costs, "fresh vector and probe"):
            signal = measure_signal(read, self.vector, self.base)
        return TrainedSignal(
            losses=losses,
            score=scored.by_question[0],
            second=second.by_question[0],
            signal=signal,
            example=scored.responses[0][0][0],
            core_seconds=costs,
        )


def measure_base(setting: Setting, model: HookedModel, seed: int) -> TrainedSignal:
    """Measure the model before training."""
    return setting.measure(model, seed, (), 0.0)


def train_and_measure(
    setting: Setting, name: str, profile: Profile, index: int, training: Training, seed: int
) -> TrainedSignal:
    """Train one way with one seed, and measure what comes of it."""
    costs: dict[str, float] = {}
    with timed(costs, "training"):
        settings = replace(profile.settings, seed=seed)
        done, tuned = train(f"{index:02d}-{seed}", name, training, settings, setting.run)
    return setting.measure(tuned, seed, done.losses, costs["training"])


def average_costs(by_way: Mapping[str, list[TrainedSignal]]) -> dict[str, float]:
    """Return the mean cost of each kind of work for one trained model."""
    trained = [one for way, found in by_way.items() if way != BASE for one in found]
    return {name: sum(one.core_seconds[name] for one in trained) / len(trained) for name in trained[0].core_seconds}


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
