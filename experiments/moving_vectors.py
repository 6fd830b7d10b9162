"""How far does a persona vector turn while the model is trained, and does preventing with the fresh one do better?

    python experiments/moving_vectors.py --trait evil            # about thirteen core-minutes

A model is trained on overt answers (level II) three ways: without prevention; with preventative steering (arXiv
2507.21509, section 5.2) along the vector of the model before training; and along the vector as it is read again every
few steps, at the length of the first one, so that the direction alone differs. Each seed draws its own rows, adapter
and order. Vectors are read from answers that are not trained on, and the task loss is taken on yet others.

Rules, fixed before anything was seen. The layer is layer_sweep.py's. *The direction turns* where either half of the
answers in the first reading lies surely less close to the other half in the last one than the halves of one reading lie
to each other, the geometric mean of both (interval over seeds, at the steering layer, without prevention): the same
answers are read each time, so the plain cosine with the first vector shares their chance, and two halves share none.
*The fresh vector prevents better* if, at equal task loss, the trait's score lies surely lower for both judges (interval
over seeds and questions). Equal loss: the way that cost more is taken back along the line to the training without
prevention, seed by seed, until it costs what the other does; a seed where it nowhere does says nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import datasets
import numpy as np
import torch
from jaxtyping import Float
from results.moving_vectors import FIRST, FRESH, NO_PREVENTION, Contrast, MovingVectors, Trained, Turning
from torch import Tensor

import persona_lens as pl
from persona_lens.evaluation import Condition, rescore, score_conditions
from persona_lens.finetuning import VectorTracker, measure_task_loss
from persona_lens.finetuning.settings import count_steps
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import Judges, prepare_judges
from persona_lens.reproduction.kits import find_sources
from persona_lens.reproduction.training import TRAINING, TrainingProfile, read_trait_rows
from persona_lens.run import Run
from persona_lens.statistics import Interval, mean_over_directions_interval
from persona_lens.statistics.missing import mean_interval
from persona_lens.streams import Stream
from persona_lens.traits import load_written_examples


@dataclass(frozen=True)
class MovingProfile(TrainingProfile):
    """How often, from how many pairs and with which coefficient too.

    Args:
        n_seeds: Trainings of each way.
        n_read: Pairs of answers that vectors are read from.
        n_held_out: Rows that the task loss is taken on.
        every: Optimiser steps between two readings.
        coefficient: Of preventative steering, multiplying the first vector's length.
    """

    n_seeds: int = field(kw_only=True)
    n_read: int = field(kw_only=True)
    n_held_out: int = field(kw_only=True)
    every: int = field(kw_only=True)
    coefficient: float = field(kw_only=True)


_SETTINGS = replace(TRAINING["quick"].settings, epochs=2, batch_size=4)
PROFILES = {
    "quick": MovingProfile(
        0.7, 48, 1, 1, _SETTINGS, 24, 48, n_seeds=4, n_read=16, n_held_out=16, every=4, coefficient=3.0
    ),
    "paper": MovingProfile(
        1.0, 256, 1, 4, TRAINING["quick"].settings, 40, 300, n_seeds=10, n_read=24, n_held_out=16, every=1,
        coefficient=3.0,
    ),
    "tiny": MovingProfile(
        0.7, 6, 1, 1, TRAINING["tiny"].settings, 8, 40, n_pairs=1, n_questions=4, n_examples=10, n_seeds=2, n_read=4,
        n_held_out=4, every=1, coefficient=1.0,
    ),
}  # fmt: skip


def main(arguments: CommonArguments) -> None:
    """Run or redraw each trait; evil if none is named."""
    profile = arguments.pick(PROFILES)
    profile = replace(profile, settings=replace(profile.settings, dtype=arguments.dtype))
    traits = read_traits(arguments.trait or ("evil",), profile.n_pairs, profile.n_questions)
    run_each_trait(MovingVectors, "moving_vectors", traits, profile, arguments, run)


@dataclass(frozen=True, eq=False)
class _Work:
    """What every training shares: the model before it, what vectors are read from, and what measures it."""

    model: HookedModel
    arguments: CommonArguments
    profile: MovingProfile
    trait: pl.Trait
    judges: Judges
    layer: int
    length: float
    held_out: datasets.Dataset
    run: Run

    def track(self, arm: str) -> VectorTracker:
        """Return what is read and followed: the fresh vector, the first one for ever, or nothing."""
        examples = load_written_examples(self.trait.name, "training")[: self.profile.n_read]

        def steer(vector: pl.PersonaVector) -> pl.Intervention:
            scale = self.profile.coefficient * self.length / float(vector.norms[self.layer])
            return pl.steer(vector, layer=self.layer, coefficient=scale)

        every = count_steps(self.profile.n_rows, self.profile.settings) if arm == FIRST else self.profile.every
        follow = None if arm == NO_PREVENTION else steer
        return VectorTracker.of_examples(self.trait.name, examples, every=every, follow=follow)

    def train(self, arm: str, seed: int) -> Trained:
        """Train once and measure."""
        began = time.process_time()
        rows = read_trait_rows(self.trait.name, "II", "judging", 40)
        chosen = np.random.default_rng((seed, Stream.MOVING_VECTORS)).permutation(len(rows))[: self.profile.n_rows]
        done = pl.finetune(
            self.arguments.model, rows.select(chosen), self.run.folder / "adapters" / f"{arm} {seed}".replace(" ", "-"),
            settings=replace(self.profile.settings, seed=seed), track=self.track(arm), run=self.run,
        )  # fmt: skip
        trained = time.process_time()
        tuned = pl.load_model(self.arguments.model, adapter=done.folder, dtype=self.arguments.dtype)
        found = self.measure(tuned, arm, seed)
        turns = done.turns
        return replace(
            found,
            losses=done.losses,
            steps=tuple(turn.step for turn in turns),
            norms=tuple(tuple(turn.norms.tolist()) for turn in turns),
            with_first=tuple(tuple(turn.with_first.tolist()) for turn in turns),
            with_previous=tuple(tuple(turn.with_previous.tolist()) for turn in turns),
            halves=tuple(tuple(turn.halves.tolist()) for turn in turns),
            crossed=tuple(tuple(turn.crossed.tolist()) for turn in turns),
            training_seconds=trained - began,
            measuring_seconds=time.process_time() - trained,
        )

    def measure(self, tuned: HookedModel, arm: str, seed: int) -> Trained:
        """Score a model's responses with both judges, and take its task loss."""
        sampling = self.profile.sample(seed)
        questions = self.trait.evaluation_questions
        first = score_conditions(
            tuned, self.judges.reader, [Condition(name=arm)], questions, sampling=sampling,
            stream=(Stream.MOVING_VECTORS,),
        )  # fmt: skip
        scored = (first, rescore(first, self.judges.sentences))
        return Trained(
            arm=arm,
            seed=seed,
            held_out_losses=tuple(measure_task_loss(tuned, self.held_out).tolist()),
            scores=tuple(tuple(one.by_question[0].tolist()) for one in scored),
            example=first.responses[0][0][0],
        )


def run(model: HookedModel, trait: pl.Trait, profile: MovingProfile, arguments: CommonArguments) -> MovingVectors:
    """Train each way with every seed, and compare."""
    sources = find_sources(model, trait.name, arguments.out)
    parts = {"experiment": "moving_vectors", "trait": trait.to_dict(), "sources": sources.describe()}
    config, run = arguments.begin(model, profile, parts)
    sampling = profile.sample_once(arguments.seed)
    judges = prepare_judges(model, trait, sampling, arguments.share(model), n_examples=profile.n_examples)
    examples = load_written_examples(trait.name, "training")
    vector = pl.read_persona_vector(model, trait.name, examples[: profile.n_read])
    read = profile.n_read
    held_out = read_trait_rows(trait.name, "II", "training", 40).select(range(read, read + profile.n_held_out))
    length = float(vector.norms[sources.layer])
    work = _Work(model, arguments, profile, trait, judges, sources.layer, length, held_out, run)
    base = run.load_or_measure("base", Trained, lambda: work.measure(model, "base model", arguments.seed))
    seeds = range(arguments.seed, arguments.seed + profile.n_seeds)
    trainings = []
    with run.progress("trainings", 3 * profile.n_seeds) as advance:
        for seed in seeds:
            for arm in (NO_PREVENTION, FIRST, FRESH):
                name = f"{arm} {seed}".replace(" ", "-")
                trainings.append(run.load_or_measure(name, Trained, partial(work.train, arm, seed)))
                advance(1)
    by_arm = {arm: [one for one in trainings if one.arm == arm] for arm in (NO_PREVENTION, FIRST, FRESH)}
    return MovingVectors(
        config=config,
        trait=trait.name,
        layer=sources.layer,
        coefficient=profile.coefficient,
        length=length,
        judge_names=(judges.reader.name, judges.sentences.name),
        base=base,
        trainings=tuple(trainings),
        turning={arm: find_turning(own, sources.layer) for arm, own in by_arm.items()},
        at_the_end=find_layers(by_arm[NO_PREVENTION]),
        scores={arm: tuple(average_scores(own, judge) for judge in (0, 1)) for arm, own in by_arm.items()},
        task_losses={arm: mean_over_directions_interval(stack_losses(own)) for arm, own in by_arm.items()},
        contrasts=tuple(compare(by_arm)),
        n_questions=len(trait.evaluation_questions),
    )


# How far it turns -------------------------------------------------------------------------------------------------


def measure_turn(one: Trained) -> dict[str, Float[Tensor, "reading layer"]]:
    """Return a training's cosines; ``turn`` is how far ``crossed`` lies under ``ceiling``.

    The ceiling is what halves of a direction that does not turn would have crossed: the geometric mean of both
    readings' halves, as chance takes the root of it from either side. NaN where halves of a reading do not agree.
    """
    found = {name: torch.tensor(getattr(one, name)) for name in ("with_first", "with_previous", "crossed")}
    halves = torch.tensor(one.halves)
    agree = (halves[:1] > 0) & (halves > 0)
    found["ceiling"] = (halves[:1] * halves).sqrt().where(agree, torch.nan)
    found["turn"] = found["ceiling"] - found["crossed"]
    return found


def find_turning(trainings: Sequence[Trained], layer: int) -> Turning:
    """Average over seeds at one layer, by step."""
    return Turning(
        trainings[0].steps, _average([measure_turn(one) for one in trainings], lambda found: found[:, layer])
    )


def find_layers(trainings: Sequence[Trained]) -> Turning:
    """Average over seeds after the last step, by layer."""
    found = [measure_turn(one) for one in trainings]
    return Turning(tuple(range(len(trainings[0].norms[0]))), _average(found, lambda one: one[-1]))


def _average(found: Sequence[dict[str, Tensor]], take: Callable[[Tensor], Tensor]) -> dict[str, tuple[Interval, ...]]:
    """Average each cosine over trainings, with an interval over them."""
    taken = {name: torch.stack([take(one[name]) for one in found]) for name in found[0]}
    return {name: tuple(mean_interval(column) for column in values.T) for name, values in taken.items()}


# What it prevents -------------------------------------------------------------------------------------------------


def stack_scores(trainings: Sequence[Trained], judge: int) -> Float[Tensor, "seed question"]:
    """Return one judge's scores."""
    return torch.tensor([one.scores[judge] for one in trainings])


def stack_losses(trainings: Sequence[Trained]) -> Float[Tensor, "seed row"]:
    """Return losses on held-out rows."""
    return torch.tensor([one.held_out_losses for one in trainings])


def average_scores(trainings: Sequence[Trained], judge: int) -> Interval:
    """Average one judge's scores, with an interval over seeds and questions."""
    return mean_over_directions_interval(stack_scores(trainings, judge))


def compare(by_arm: dict[str, list[Trained]]) -> list[Contrast]:
    """Compare every two ways as they are, and the fresh with the first vector at equal loss."""
    contrasts = []
    losses = {arm: stack_losses(own) for arm, own in by_arm.items()}
    for one, other in ((FIRST, NO_PREVENTION), (FRESH, NO_PREVENTION), (FRESH, FIRST)):
        pairs = [(stack_scores(by_arm[one], judge), stack_scores(by_arm[other], judge)) for judge in (0, 1)]
        scores = tuple(mean_over_directions_interval(a - b) for a, b in pairs)
        cost = mean_over_directions_interval(losses[one] - losses[other])
        contrasts.append(Contrast(one, other, "as they are", scores, cost))
    shares = share_at_equal_loss(*(losses[arm].mean(dim=1) for arm in (NO_PREVENTION, FIRST, FRESH)))
    at_equal_loss = []
    for judge in (0, 1):
        plain, first, fresh = (stack_scores(by_arm[arm], judge) for arm in (NO_PREVENTION, FIRST, FRESH))
        first, fresh = (
            plain + share[:, None] * (one - plain) for share, one in zip(shares, (first, fresh), strict=True)
        )
        at_equal_loss.append(mean_over_directions_interval(fresh - first))
    contrasts.append(Contrast(FRESH, FIRST, "at equal task loss", tuple(at_equal_loss), None))
    return contrasts


def share_at_equal_loss(
    plain: Float[Tensor, " seed"], first: Float[Tensor, " seed"], fresh: Float[Tensor, " seed"]
) -> tuple[Float[Tensor, " seed"], Float[Tensor, " seed"]]:
    """Return how much of each way's effect is left where both cost the loss of the one that costs less.

    NaN where no share between none and all of it costs that.
    """
    cheaper = torch.minimum(first, fresh)
    shares = [torch.where(one > cheaper, (cheaper - plain) / (one - plain), 1.0) for one in (first, fresh)]
    reached = [share.where((share >= 0) & (share <= 1), torch.nan) for share in shares]
    return reached[0], reached[1]


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
