"""Do a monitor's thresholds hold while the model answers, and what raises an alarm?

    python experiments/alarms.py                                   # a quarter of an hour on two cores

Thresholds for responses are set on the model's answers to half of the bundled everyday questions and tried on its
answers to the other half, and the reverse. Then three things that may raise alarms: questions that the trait is about,
unsteered; the trait's own instructions as system prompt; steering at the layer that is read, at the ready vector's
strength. What steering adds at that layer is part of what a monitor reads, and raises alarms whatever is
said; so the steered answers' texts are also read as if the unsteered model had said them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy import ndarray
from results.alarms import Alarms, AlarmShare

from persona_lens.interventions import NOTHING, Intervention, steer
from persona_lens.models import HookedModel, Message, Sampling, describe_model
from persona_lens.models.text.chat import build_messages
from persona_lens.monitoring.ordinary_responses import (
    OrdinaryResponses,
    read_sampled_responses,
    run_mean,
    summarize_responses,
)
from persona_lens.reproduction.arguments import PAPER_TRAITS, CommonArguments
from persona_lens.reproduction.entrance import enter
from persona_lens.run import Run
from persona_lens.statistics import bootstrap_mean
from persona_lens.storage import Shard
from persona_lens.streams import Stream
from persona_lens.traits.everyday import load_ordinary_questions
from persona_lens.traits.library import load_trait
from persona_lens.traits.written import load_written_examples
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.ready import list_ready_vectors, load_vector
from persona_lens.vectors.written import read_persona_vector

NAME = "alarms"
QUANTILES = (0.95, 0.99)


@dataclass(frozen=True)
class Profile:
    """How much is asked.

    Args:
        n_questions: Everyday questions, and at most as many of a trait's own.
        max_new_tokens: Most tokens of an answer.
        temperature: Of all answers.
        calibration_rollouts: Answers to each question that thresholds are set on and tried on.
        rollouts: Answers to each question under each other condition.
    """

    n_questions: int
    max_new_tokens: int
    temperature: float
    calibration_rollouts: int
    rollouts: int

    def draw(self, rollouts: int) -> Sampling:
        """Return how so many answers to each question are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, rollouts=rollouts)


PROFILES = {
    "quick": Profile(40, 48, 0.7, 8, 1),
    "paper": Profile(40, 200, 1.0, 20, 10),
    "tiny": Profile(4, 12, 2.0, 2, 1),
}


@dataclass(frozen=True)
class Watched:
    """A trait's vector, where it is read and steered, and its strength there towards the trait."""

    trait: str
    vector: PersonaVector
    layer: int
    coefficient: float


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    result = arguments.read(Alarms, NAME) if arguments.replot else run(arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html")


def run(arguments: CommonArguments) -> Alarms:
    """Draw all answers, read them, and count alarms."""
    profile = arguments.pick(PROFILES)
    model = arguments.load_model()
    watched = [find_watched(model, trait) for trait in arguments.trait or PAPER_TRAITS]
    chosen = {one.trait: {"layer": one.layer, "coefficient": one.coefficient} for one in watched}
    config, run = arguments.begin(model, profile, {"experiment": NAME, "traits": chosen})
    questions = load_ordinary_questions()[: profile.n_questions]
    asked = [build_messages(question) for question in questions]
    sampler = Sampler(model, watched, arguments.seed, run)
    ordinary = sampler.read("ordinary", asked, profile.draw(profile.calibration_rollouts), 0)
    rows: list[AlarmShare] = []
    for index, one in enumerate(watched):
        trait = load_trait(one.trait)
        about = [build_messages(question) for question in trait.evaluation_questions[: profile.n_questions]]
        told = [build_messages(question, trait.instruction_pairs[i % len(trait.instruction_pairs)].positive)
                for i, question in enumerate(questions)]  # fmt: skip
        mine = list_mine(ordinary, index)
        known = set_thresholds(mine, profile.draw(profile.calibration_rollouts))
        rows += count(one, "everyday questions", mine, known)
        for at, (name, prompts, share) in enumerate(
            (("the trait's questions", about, 0.0), ("told to", told, 0.0),
             ("steered", asked, 1.0))
        ):  # fmt: skip
            strength = share * one.coefficient
            done = steer(one.vector, layer=one.layer, coefficient=strength) if share else NOTHING
            drawn = sampler.read(f"{one.trait}-{at}", prompts, profile.draw(profile.rollouts), 1 + at, done)
            mine = list_mine(drawn, index)
            if share:
                # Exactly what steering adds to the reading, as nothing is done below the layer that is read.
                shift = strength * float(one.vector.norms[one.layer])
                rows += count(one, name, [[text + shift for text in texts] for texts in mine], known)
                rows += count(one, f"{name}: the text alone", mine, known)
            else:
                rows += count(one, name, mine, known)
    return Alarms(config=config, shares=tuple(rows))


def find_watched(model: HookedModel, trait: str) -> Watched:
    """Return the ready vector with its setting; of another model the written answers' vector, at the middle layer."""
    info = describe_model(model)
    if trait in list_ready_vectors() and (vector := load_vector(trait)).model.fingerprint == info.fingerprint:
        tried = vector.provenance["setting"]
        return Watched(trait, vector, tried["layer"], abs(tried["coefficient"]))
    written = read_persona_vector(model, trait, load_written_examples(trait, "training"))
    return Watched(trait, written, info.n_layers // 2, 1.0)


@dataclass(frozen=True)
class Sampler:
    """Draws answers and reads them for all traits, a shard a condition."""

    model: HookedModel
    watched: Sequence[Watched]
    seed: int
    run: Run

    def read(
        self,
        name: str,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        condition: int,
        intervention: Intervention = NOTHING,
    ) -> list[list[ndarray]]:
        """Return ``[trait, token]`` for each prompt's answers."""
        units = torch.stack([one.vector.unit(one.layer) for one in self.watched])
        layers = [one.layer for one in self.watched]

        def draw() -> Shard:
            seed = (self.seed, Stream.ALARMS + condition)
            read = read_sampled_responses(self.model, prompts, units, layers, sampling, seed, intervention)
            return Shard(tensors={str(i): torch.from_numpy(one) for i, one in enumerate(read)})

        kept = self.run.load_or_compute(name, draw).tensors
        read = [kept[str(i)].numpy() for i in range(len(kept))]
        return [read[at : at + sampling.rollouts] for at in range(0, len(read), sampling.rollouts)]


def list_mine(read: Sequence[Sequence[ndarray]], trait: int) -> list[list[ndarray]]:
    """Return one trait's projections."""
    return [[answer[trait] for answer in answers] for answers in read]


def set_thresholds(ordinary: Sequence[Sequence[ndarray]], sampling: Sampling) -> tuple[OrdinaryResponses, ...]:
    """Return what is ordinary by the answers to the odd questions, and by those to the even ones."""
    halves = ([answer for answers in ordinary[1 - parity :: 2] for answer in answers] for parity in (0, 1))
    return tuple(summarize_responses(half, sampling) for half in halves)


def count(
    watched: Watched, condition: str, read: Sequence[Sequence[ndarray]], known: Sequence[OrdinaryResponses]
) -> list[AlarmShare]:
    """Return the percentages of tokens and of answers above thresholds that the questions of the other half set."""
    rows = []
    for quantile in QUANTILES:
        tokens, answers = [], []
        for index, texts in enumerate(read):
            half = known[index % 2]
            above = torch.tensor(half.tokens).quantile(quantile).item()
            (limit,) = half.list_thresholds([quantile])
            joined = [value > above for text in texts for value in text.tolist()]
            tokens.append(sum(joined) / len(joined) if joined else 0.0)
            peaks = [run_mean(text)[half.n_first - 1 :].max(initial=-torch.inf) for text in texts]
            answers.append(sum(peak > limit for peak in peaks) / len(peaks))
        rows.append(
            AlarmShare(
                trait=watched.trait, layer=watched.layer, condition=condition, quantile=quantile,
                tokens=bootstrap_mean(100 * torch.tensor(tokens, dtype=torch.float64)),
                answers=bootstrap_mean(100 * torch.tensor(answers, dtype=torch.float64)),
                n_answers=sum(map(len, read)), n_questions=len(read),
            )
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
