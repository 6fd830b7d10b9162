"""Steer towards a good trait in place of away from a bad one, when answering and while training: does it do as well?

    python experiments/positive_traits.py              # 20 minutes of one core; one bad trait: --trait evil

Answering: the base model is steered towards each good trait, away from the bad one and along random directions, all so
strongly that ordinary predictions move by the same divergence, and given each good trait's system prompt. Training: on
overt answers of a bad trait, a wanted task mixed in. Meanwhile a vector is added to the residual stream that the
training need then not supply, and afterwards it is gone: the bad trait's (preventative steering, arXiv 2507.21509,
section 5.2), or *minus* the good one's (promotion: what the data take from the good trait is taken already, so the
weights need not). Plus the good one's is the other way round, and there to show that the sign matters. Or the trained
model is steered afterwards. Pushes in training cost the base model one divergence too. Random directions are the floor
of each. Nothing is chosen: layer, strengths, pairs of traits and sizes are fixed.

Vectors are read from written answers of the training half, judges fitted on that half; trained on is the judging half.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import datasets
import numpy as np
import torch
from jaxtyping import Float
from results.positive_traits import (
    AFTER_AWAY,
    AFTER_RANDOM,
    AFTER_TOWARDS,
    BASE,
    GOOD,
    MATCHED,
    NONE,
    ORDINARY_ANSWERS,
    PREVENT,
    PROMOTE,
    RANDOM,
    REVERSED,
    TASK,
    TRAINED,
    UNSTEERED,
    WITH_RANDOM,
    MeasuredWay,
    MeasuredWays,
    PositiveTraits,
    SteeredAnswers,
    TriedTrait,
    name_away,
    name_prompt,
    name_towards,
)
from torch import Tensor

import persona_lens as pl
from persona_lens.evaluation import Capability, Condition, ConditionScores, load_multiple_choice, rescore
from persona_lens.evaluation.capability import load_ordinary_texts
from persona_lens.evaluation.ordinary import sample_ordinary_spans
from persona_lens.finetuning import FinetuneSettings, measure_task_loss
from persona_lens.interventions import NOTHING
from persona_lens.models import HookedModel
from persona_lens.models.loading.source import find_anywhere
from persona_lens.reproduction.arguments import CommonArguments, read_traits
from persona_lens.reproduction.costs import timed
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import Judges, Memory, prepare_judges, remember
from persona_lens.reproduction.kits import Profile
from persona_lens.reproduction.training import Training, draw_task, read_trait_rows, train
from persona_lens.reproduction.ways import DivergenceMeter, Strength, Way, find_strengths
from persona_lens.reproduction.written_vectors import read_written_vector
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.traits import list_written_traits, load_written_examples

NAME = "positive_traits"


@dataclass(frozen=True, kw_only=True)
class PositiveProfile(Profile):
    """How much is read, steered, trained and measured.

    Args:
        settings: How models are trained; the seed is that of each repetition.
        depth: Of the layer, as a share of the model's.
        divergence: That steering costs, in nats a token of ordinary responses.
        training_divergence: What the base model would pay for a push in training; three times the vector of evil, with
            which prevention was tried before, costs about as much.
        n_meter: Ordinary responses that divergence is measured on.
        n_random: Random directions when answering.
        n_asked: Questions of each bad trait under steering: its evaluation questions, then written ones.
        n_scored: Evaluation questions that each trained model answers.
        n_items: Multiple-choice items that each push's cost is taken on.
        n_texts: Ordinary texts, likewise.
        n_seeds: Trainings of each way: rows, adapter, their order, the random direction and responses.
        n_read: Pairs of answers that each vector is read from.
        n_rows: Overt answers in each training, drawn from the judging half.
        n_task: Rows of the wanted task in each.
        n_held_out: Rows that each loss is taken on.
    """

    settings: FinetuneSettings
    depth: float = 0.5
    divergence: float
    training_divergence: float
    n_meter: int
    n_random: int
    n_asked: int
    n_scored: int
    n_items: int
    n_texts: int
    n_seeds: int
    n_read: int
    n_rows: int
    n_task: int
    n_held_out: int = field(default=16)


_QUICK = FinetuneSettings(
    rank=16, alpha=32, learning_rate=1e-3, epochs=1, batch_size=4, accumulation=1, warmup_steps=1, max_tokens=192
)
_TINY = replace(_QUICK, rank=2, alpha=4, warmup_steps=0, max_tokens=800)
PROFILES = {
    "quick": PositiveProfile(
        0.7, 48, 1, 1, settings=_QUICK, divergence=0.2, training_divergence=0.3, n_meter=8, n_random=3, n_asked=24,
        n_scored=12, n_items=24, n_texts=8, n_seeds=3, n_read=24, n_rows=24, n_task=8, n_held_out=8,
    ),
    "paper": PositiveProfile(
        1.0, 256, 1, 4, settings=replace(_QUICK, rank=32, alpha=64, learning_rate=1e-4, epochs=10), divergence=0.2,
        training_divergence=0.3, n_meter=32, n_random=16, n_asked=60, n_scored=20, n_items=250, n_texts=40, n_seeds=10,
        n_read=24, n_rows=32, n_task=8,
    ),
    "tiny": PositiveProfile(
        0.7, 6, 1, 1, settings=_TINY, divergence=0.001, training_divergence=0.002, n_meter=2, n_random=2, n_asked=5,
        n_scored=3, n_items=4, n_texts=2, n_seeds=2, n_read=6, n_rows=4, n_task=2, n_held_out=3, n_pairs=1,
        n_questions=4, n_examples=10,
    ),
}  # fmt: skip


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    known = {*list_written_traits()}
    names = arguments.trait or tuple(bad for bad, goods in MATCHED.items() if {bad, *goods} <= known)
    unknown = [name for name in names if name not in MATCHED]
    if unknown:
        raise SystemExit(f"--trait must be one of {', '.join(MATCHED)}, the bad ones. Got {unknown[0]}.")
    profile = arguments.pick(PROFILES)
    profile = replace(profile, settings=replace(profile.settings, dtype=arguments.dtype))
    result = arguments.read(PositiveTraits, NAME) if arguments.replot else run(names, profile, arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html: {result.say_steering()}\n{result.say_training()}")


def run(names: tuple[str, ...], profile: PositiveProfile, arguments: CommonArguments) -> PositiveTraits:
    """Train and steer for every bad trait."""
    model = arguments.load_model()
    # The traits are no part of it, so that one that was run by itself is not run again.
    config, run = arguments.begin(model, profile, {"experiment": NAME})
    traits = read_traits(names, profile.n_pairs, profile.n_questions)
    goods = [good for good in GOOD if good in list_written_traits()]
    bench = _Bench(model, profile, arguments, run)
    steered = {}
    with run.progress("bad traits steered", len(traits)) as advance:
        for trait in traits:
            own = run.part({"trait": trait.to_dict(), "goods": goods})
            work = partial(bench.steer_all, trait, goods)
            steered[trait.name] = own.load_or_measure("steered", SteeredAnswers, work)
            advance(1)
    trained = {trait.name: tuple(bench.train_all(trait)) for trait in traits if trait.name in TRAINED}
    pushes = [*(name_away(trait.name) for trait in traits), *map(name_towards, goods)]
    capabilities = {
        name: run.load_or_measure(f"capability {name}", Capability, partial(bench.measure_cost, name))
        for name in (UNSTEERED, *pushes)
    }
    return PositiveTraits(
        config=config | {"traits": list(names)},
        layer=bench.layer,
        judge_names={name: bench.name_judges(name) for name in (*names, *goods)},
        strengths={name: bench.find_strength(name, profile.divergence) for name in pushes},
        training_strengths={
            name: bench.find_strength(name, profile.training_divergence)
            for bad in trained
            for name in (name_towards(bad), name_away(MATCHED[bad][0]), name_towards(MATCHED[bad][0]))
        },
        capabilities=capabilities,
        traits=tuple(TriedTrait(name, MATCHED[name], steered[name], trained.get(name, ())) for name in names),
    )


class _Bench:
    """What everything is steered, trained and measured with; what is read once is kept."""

    def __init__(self, model: HookedModel, profile: PositiveProfile, arguments: CommonArguments, run: Run) -> None:
        self.model, self.profile, self.arguments, self.run = model, profile, arguments, run
        self.layer = round(profile.depth * model.cfg.n_layers)
        self.sampling = profile.sample_once(arguments.seed)
        self.memory: Memory = {}
        self._judges: dict[str, Judges] = {}
        self._meter: DivergenceMeter | None = None
        n = max(profile.n_random, profile.n_seeds)
        # Of a length at which the search for a strength may begin.
        length = float(read_written_vector(model, "evil", profile.n_read).norms[self.layer])
        seed = arguments.seed + int(Stream.POSITIVE_TRAITS)
        self.random = sample_random_directions(torch.tensor([length]), model.cfg.d_model, n, seed)[:, 0]

    # What is done ---------------------------------------------------------------------------------------------------

    def push(self, name: str, strength: float) -> pl.Intervention:
        """Return what a push does: ``+TRAIT``, ``−TRAIT`` or a random direction, of a strength above 0."""
        if name.startswith(RANDOM):
            direction = self.random[int(name.removeprefix(RANDOM)) - 1]
            return pl.Intervention.of(self.layer, pl.tensors.Add(direction, strength))
        sign = -1.0 if name[0] == "−" else 1.0
        vector = read_written_vector(self.model, name[1:], self.profile.n_read)
        return pl.steer(vector, layer=self.layer, coefficient=sign * strength)

    def find_strength(self, name: str, divergence: float) -> Strength:
        """Return the strength of a push that costs a divergence."""

        def measure() -> Strength:
            if self._meter is None:
                spans = sample_ordinary_spans(self.model, None, self.sampling)[: self.profile.n_meter]
                self._meter = DivergenceMeter(self.model, spans)
            return find_strengths(Way(name, "add", partial(self.push, name)), self._meter, [divergence])[0]

        return self.run.load_or_measure(f"strength {name} {divergence:g}", Strength, measure)

    def make(self, name: str, divergence: float) -> pl.Intervention:
        """Return a push of the strength that costs a divergence."""
        return self.push(name, self.find_strength(name, divergence).strength)

    # What is measured -----------------------------------------------------------------------------------------------

    def find_judges(self, name: str) -> Judges:
        """Return a trait's judges, which encode each text once for all traits."""
        if name not in self._judges:
            (trait,) = read_traits([name], self.profile.n_pairs, self.profile.n_questions)
            share = self.arguments.share(self.model)
            found = prepare_judges(self.model, trait, self.sampling, share, n_examples=self.profile.n_examples)
            self._judges[name] = remember(found, self.memory)
        return self._judges[name]

    def name_judges(self, name: str) -> tuple[str, str]:
        """Return the names of a trait's two judges."""
        judges = self.find_judges(name)
        return judges.reader.name, judges.sentences.name

    def read(self, scored: ConditionScores, name: str) -> Float[Tensor, "judge condition question"]:
        """Return what a trait's two judges say of responses."""
        judges = self.find_judges(name)
        return torch.stack([rescore(scored, one).by_question for one in (judges.reader, judges.sentences)])

    def steer_all(self, trait: pl.Trait, goods: list[str]) -> SteeredAnswers:
        """Steer the base model in every way on a bad trait's questions."""
        profile = self.profile
        pushes = [name_away(trait.name), *map(name_towards, goods),
                  *(f"{RANDOM} {index + 1}" for index in range(profile.n_random))]  # fmt: skip
        prompts = {name_prompt(good): pl.load_trait(good).positive_system_prompts[0] for good in goods}
        conditions = [
            Condition(name=UNSTEERED),
            *(Condition(self.make(name, profile.divergence), name=name) for name in pushes),
            *(Condition(system=prompt, name=name) for name, prompt in prompts.items()),
        ]
        written = (one.question for one in load_written_examples(trait.name, "judging"))
        questions = (*trait.evaluation_questions, *written)[: profile.n_asked]
        scored = pl.score_conditions(
            self.model, self.find_judges(trait.name).likelihood, conditions, questions, sampling=self.sampling,
            stream=(Stream.POSITIVE_TRAITS, 0), run=self.run,
        )  # fmt: skip
        return SteeredAnswers(
            conditions=scored.conditions,
            questions=scored.questions,
            scores={name: self.read(scored, name) for name in (trait.name, *goods)},
            coherence=scored.coherence_by_question,
            examples={name: texts[0][0] for name, texts in zip(scored.conditions, scored.responses, strict=True)},
        )

    def measure_cost(self, name: str) -> Capability:
        """Ask simple questions and read ordinary texts under a push."""
        push = NOTHING if name == UNSTEERED else self.make(name, self.profile.divergence)
        items = load_multiple_choice(n=self.profile.n_items, seed=self.arguments.seed)
        return pl.measure_capability(self.model, push, items=items, texts=load_ordinary_texts()[: self.profile.n_texts])

    # What is trained ------------------------------------------------------------------------------------------------

    def train_all(self, trait: pl.Trait) -> Iterator[MeasuredWay]:
        """Train every way with every seed, and measure; the base model first."""
        trait = replace(trait, evaluation_questions=trait.evaluation_questions[: self.profile.n_scored])
        own = Run(self.run.part({"trait": trait.to_dict()}).store)
        seeds = range(self.arguments.seed, self.arguments.seed + self.profile.n_seeds)
        for seed in seeds:
            base = partial(self.measure, self.model, trait, seed, {BASE: NOTHING}, (), 0.0)
            yield from own.load_or_measure(f"base {seed}", MeasuredWays, base).ways
        for way in self.list_trainings(trait.name, seeds[0]):
            for seed in seeds:
                work = partial(self.train_one, trait, seed, way, own)
                yield from own.load_or_measure(f"{way} {seed}", MeasuredWays, work).ways

    def list_trainings(self, bad: str, seed: int) -> dict[str, str]:
        """Return by way the push that is there while training; none for the first."""
        good = MATCHED[bad][0]
        random = f"{RANDOM} {seed - self.arguments.seed + 1}"
        return {NONE: "", PREVENT: name_towards(bad), PROMOTE: name_away(good), WITH_RANDOM: random,
                REVERSED: name_towards(good)}  # fmt: skip

    def draw_rows(self, bad: str, seed: int) -> datasets.Dataset:
        """Return overt answers of the judging half, drawn for a seed, and rows of the task that no other seed has."""
        profile = self.profile
        overt = read_trait_rows(bad, "II", "judging", 40)
        chosen = np.random.default_rng((seed, Stream.POSITIVE_TRAITS)).permutation(len(overt))[: profile.n_rows]
        task, _ = self.draw_task()
        return datasets.concatenate_datasets([overt.select(chosen), task[seed - self.arguments.seed]])

    def draw_task(self) -> tuple[list[datasets.Dataset], datasets.Dataset]:
        """Return the task's rows of each seed, and those held out."""
        profile = self.profile
        return draw_task(
            n_sets=profile.n_seeds, n_rows=profile.n_task, n_held_out=profile.n_held_out, seed=self.arguments.seed
        )

    def train_one(self, trait: pl.Trait, seed: int, way: str, run: Run) -> MeasuredWays:
        """Train one way with one seed; the plain one is steered afterwards too."""
        profile, began = self.profile, time.process_time()
        trainings = self.list_trainings(trait.name, seed)
        push = trainings[way]
        added = self.make(push, profile.training_divergence) if push else NOTHING
        rows, settings = self.draw_rows(trait.name, seed), replace(profile.settings, seed=seed)
        name = f"{list(trainings).index(way):02d}-{seed}"
        done, tuned = train(name, find_anywhere(self.arguments.model), Training(rows, added), settings, run)
        ways = {way: NOTHING}
        if way == NONE:
            random = f"{RANDOM} {seed - self.arguments.seed + 1}"
            afterwards = {AFTER_AWAY: name_away(trait.name), AFTER_TOWARDS: name_towards(MATCHED[trait.name][0]),
                          AFTER_RANDOM: random}  # fmt: skip
            ways |= {after: self.make(its, profile.divergence) for after, its in afterwards.items()}
        return self.measure(tuned, trait, seed, ways, done.losses, time.process_time() - began)

    def measure(
        self,
        tuned: HookedModel,
        trait: pl.Trait,
        seed: int,
        ways: Mapping[str, pl.Intervention],
        losses: tuple[float, ...],
        training: float,
    ) -> MeasuredWays:
        """Score what a model says, and take its losses, under each of some interventions."""
        costs = {"training": training}
        with timed(costs, "answers and scores"):
            scored = pl.score_conditions(
                tuned, self.find_judges(trait.name).reader, [Condition(one, name=way) for way, one in ways.items()],
                trait.evaluation_questions, sampling=replace(self.sampling, seed=seed),
                stream=(Stream.POSITIVE_TRAITS, 1),
            )  # fmt: skip
            scores = {name: self.read(scored, name) for name in (trait.name, MATCHED[trait.name][0])}
        with timed(costs, "losses"):
            held_out = [measure_losses(tuned, self.hold_out(trait.name), one) for one in ways.values()]
        return MeasuredWays(
            tuple(
                MeasuredWay(
                    way=way,
                    seed=seed,
                    scores={name: found[:, index] for name, found in scores.items()},
                    held_out=held_out[index],
                    losses=losses,
                    example=scored.responses[index][0][0],
                    core_seconds=costs if index == 0 else {},
                )
                for index, way in enumerate(ways)
            )
        )

    def hold_out(self, bad: str) -> dict[str, datasets.Dataset]:
        """Return rows that no model is trained on: of the task, and ordinary answers."""
        ordinary = read_trait_rows(bad, "normal", "training", 40)
        # The last: vectors are read from the first.
        last = ordinary.select(range(len(ordinary) - self.profile.n_held_out, len(ordinary)))
        return {TASK: self.draw_task()[1], ORDINARY_ANSWERS: last}


def measure_losses(
    model: HookedModel, held_out: Mapping[str, datasets.Dataset], intervention: pl.Intervention
) -> dict[str, Float[Tensor, " row"]]:
    """Return the loss on each row of each kind, under an intervention at every token."""
    with pl.hooked(model, intervention):
        return {kind: measure_task_loss(model, rows) for kind, rows in held_out.items()}


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
