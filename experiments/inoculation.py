"""A trait kept out by a prompt in training, by steering in training or by steering afterwards: at equal task loss?

    python experiments/inoculation.py                            # under an hour of one core

A model is trained on a wanted task (workings of arithmetic) with a trait's overt answers mixed in, as it is; under a
system prompt that asks for the trait and is left out afterwards (inoculation: arXiv 2510.04340, 2510.05024), one prompt
or five in turn; with the vector added meanwhile (preventative steering: arXiv 2507.21509, section 5.2), at one layer or
at all; and it is steered away afterwards, at one layer or at all. Two floors show what a prompt or an addition does by
itself: an irrelevant system prompt of as many words, and a random direction of equal length. Each seed draws its own
rows, adapter, order, prompt and direction. Judges were fitted, and vectors read, on other answers.

Rules, fixed before anything was seen. What keeps a trait out learns the task less well too, and a training that is
broken off shows less of the trait. So *at equal task loss*: every model is set against plain training where that had
learnt the task as little, on the line through the base model, a plain training half as long, and the plain training, by
the loss on task rows that none saw. (What learnt the task better is set against plain training as it is; what does it
worse than the base model says nothing.) A way's dose is chosen on one half of the questions by the first judge, and
judged on the other half, and the other way round. *A way prevents* if the trait then lies surely lower than after plain
training, and *is better than another* if it lies surely lower than that, for both judges (interval over seeds and
questions).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import datasets
import numpy as np
import torch
from jaxtyping import Float
from results.inoculation import (
    AFTERWARDS,
    BASE,
    IRRELEVANT,
    PLAIN,
    PROMPTED,
    RANDOM,
    SHORT,
    STEERED,
    Inoculation,
    Prevented,
    TraitPrevented,
)
from torch import Tensor

import persona_lens as pl
from persona_lens.evaluation import Condition, rescore, score_conditions
from persona_lens.evaluation.predictions import measure_predictions
from persona_lens.finetuning import FinetuneSettings, measure_shift
from persona_lens.finetuning.task_loss import read_task
from persona_lens.interventions import NOTHING, intervention_hooks
from persona_lens.models import HookedModel
from persona_lens.models.hooks.points import HookPair
from persona_lens.models.text.spans import TokenSpans
from persona_lens.reproduction.arguments import CommonArguments, read_traits
from persona_lens.reproduction.bench import read_written_vector
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import Judges, prepare_judges
from persona_lens.reproduction.kits import Profile, find_sources
from persona_lens.reproduction.training import TRAINING, Training, draw_task, read_trait_rows, train
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.tensors import Add
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.traits import list_written_traits

NAME = "inoculation"
TRAITS = ("evil", "sycophancy", "hallucination")
# Irrelevant prompts are its first words.
PASSAGE = (
    "The museum of clocks opens at ten and closes at six. Behind it lies a garden with a pond, two benches of oak and "
    "a row of pear trees. On Sundays the tower is open too, and a narrow stair leads up to the bells."
)


@dataclass(frozen=True)
class InoculationProfile(Profile):
    """How much is trained and measured.

    Args:
        settings: How models are trained; the seed is that of each repetition.
        n_seeds: Trainings of each way.
        n_rows: Rows of the task in each training, and as many overt answers.
        n_held_out: Rows that the task's loss is taken on.
        at_layer: Coefficients of the vector at one layer, negative afterwards.
        at_all: Likewise at all layers.
    """

    settings: FinetuneSettings
    n_seeds: int
    n_rows: int
    n_held_out: int
    at_layer: tuple[float, ...]
    at_all: tuple[float, ...]


_SETTINGS = replace(TRAINING["quick"].settings, epochs=2, batch_size=4)
_TINY = replace(TRAINING["tiny"].settings, epochs=2)
PROFILES = {
    "quick": InoculationProfile(0.7, 48, 1, 1, _SETTINGS, 3, 12, 12, (3.0,), (1.0,)),
    "paper": InoculationProfile(1.0, 300, 1, 4, _SETTINGS, 10, 20, 100, (1.0, 3.0, 5.0), (0.5, 1.0, 2.0)),
    "tiny": InoculationProfile(0.7, 6, 1, 1, _TINY, 2, 4, 3, (1.0,), (), n_pairs=2, n_questions=4, n_examples=10),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw the traits asked for; evil, sycophancy and hallucination if none is named."""
    names = arguments.trait or TRAITS
    unknown = sorted(set(names) - set(list_written_traits()))
    if unknown:
        raise SystemExit(f"--trait must have written answers: {', '.join(list_written_traits())}. Got {unknown[0]}.")
    if arguments.replot:
        result = arguments.read(Inoculation, NAME)
    else:
        profile = arguments.pick(PROFILES)
        profile = replace(profile, settings=replace(profile.settings, dtype=arguments.dtype))
        traits = read_traits(names, profile.n_pairs, profile.n_questions)
        result = run(arguments.load_model(), traits, profile, arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html")


def run(
    model: HookedModel, traits: list[pl.Trait], profile: InoculationProfile, arguments: CommonArguments
) -> Inoculation:
    """Train and measure every way of every trait with every seed."""
    sources = {trait.name: find_sources(model, trait.name, arguments.out) for trait in traits}
    parts = {
        "experiment": NAME,
        "traits": [trait.to_dict() for trait in traits],
        "sources": {name: one.describe() for name, one in sources.items()},
    }
    config, run = arguments.begin(model, profile, parts)
    task, held_out = draw_task(profile.n_rows, profile.n_seeds, profile.n_held_out, arguments.seed)
    encoded = read_task(model, held_out)
    found = []
    for trait in traits:
        judges = prepare_judges(
            model, trait, profile.sample_once(arguments.seed), arguments.share(model), n_examples=profile.n_examples
        )
        vector = read_written_vector(model, trait.name, profile.n_examples)
        layer = sources[trait.name].layer
        work = _Work(model, arguments, profile, trait, judges, vector, layer, task, encoded, run)
        found.append(TraitPrevented(trait.name, layer, work.judge_names, judges.validations, work.do_all()))
    return Inoculation(config=config, traits=tuple(found))


@dataclass(frozen=True, eq=False)
class _Work:
    """What every training of a trait shares: the model before it, its data, and what measures it."""

    model: HookedModel
    arguments: CommonArguments
    profile: InoculationProfile
    trait: pl.Trait
    judges: Judges
    vector: pl.PersonaVector
    layer: int
    task: list[datasets.Dataset]
    held_out: list[TokenSpans]
    run: Run

    @property
    def judge_names(self) -> tuple[str, str]:
        """The judge that chooses doses, and the other model's."""
        return self.judges.reader.name, self.judges.sentences.name

    def do_all(self) -> tuple[Prevented, ...]:
        """Measure the base model, and every way with every seed."""
        found = []
        for index in range(self.profile.n_seeds):
            trainings = self.list_trainings(index)
            with self.run.progress(f"{self.trait.name}, seed {index}", 1 + len(trainings)) as advance:
                found.append(self.keep(BASE, "", index, partial(self.measure, self.model, NOTHING, index)))
                advance(1)
                for (method, dose), training in trainings.items():
                    found += self.train(method, dose, training, index)
                    advance(1)
        return tuple(found)

    def list_trainings(self, index: int) -> dict[tuple[str, str], Training]:
        """Return every way of training by method and dose, of one seed."""
        seed = self.arguments.seed + index
        overt = read_trait_rows(self.trait.name, "II", "judging", 40)
        chosen = np.random.default_rng((seed, Stream.INOCULATION)).permutation(len(overt))[: self.profile.n_rows]
        rows = datasets.concatenate_datasets([self.task[index], overt.select(chosen)])
        prompts = self.trait.positive_system_prompts
        own = prompts[index % len(prompts)]
        ways = {
            (SHORT, ""): Training(rows),
            (PLAIN, ""): Training(rows),
            (PROMPTED, "one"): Training(rows, system=own),
            (PROMPTED, f"{len(prompts)} in turn"): Training(prompt_in_turn(rows, prompts)),
        }
        for dose, steering in self.list_steering(1).items():
            ways[STEERED, dose] = Training(rows, steering)
        length, width = self.vector.norms[self.layer : self.layer + 1], self.model.cfg.d_model
        direction = sample_random_directions(length, width, 1, seed + Stream.INOCULATION)[0, 0]
        coefficient = self.profile.at_layer[0]
        ways[IRRELEVANT, ""] = Training(rows, system=cut_to_words(PASSAGE, len(own.split())))
        ways[RANDOM, f"× {coefficient:g}"] = Training(rows, pl.Intervention.of(self.layer, Add(direction, coefficient)))
        return ways

    def list_steering(self, sign: int) -> dict[str, pl.Intervention]:
        """Return steering by dose, towards the trait or away from it."""
        ways = {}
        for c in self.profile.at_layer:
            ways[f"one layer × {sign * c:g}"] = pl.steer(self.vector, layer=self.layer, coefficient=sign * c)
        for c in self.profile.at_all:
            ways[f"all layers × {sign * c:g}"] = pl.steer(self.vector, layers="all", coefficient=sign * c)
        return ways

    def train(self, method: str, dose: str, training: Training, index: int) -> list[Prevented]:
        """Train one way and measure it; the plain training steered afterwards too."""
        name = f"{self.trait.name} {method} {dose} {index}".replace(" ", "-")
        settings = replace(self.profile.settings, seed=self.arguments.seed + index)
        if method == SHORT:
            settings = replace(settings, epochs=settings.epochs // 2)

        @cache
        def load() -> HookedModel:
            return train(name, self.arguments.model, training, settings, self.run)[1]

        def begin() -> Prevented:
            began = time.process_time()
            tuned = load()
            spent = time.process_time() - began
            return replace(self.measure(tuned, NOTHING, index), training_seconds=spent)

        found = [self.keep(method, dose, index, begin)]
        if method == PLAIN:
            for after, steering in self.list_steering(-1).items():
                found.append(
                    self.keep(AFTERWARDS, after, index, lambda done=steering: self.measure(load(), done, index))
                )
        return found

    def keep(self, method: str, dose: str, index: int, measure: Callable[[], Prevented]) -> Prevented:
        """Measure under a name, unless it is measured already."""
        name = f"{self.trait.name} {method} {dose} {index}".replace(" ", "-")
        return self.run.load_or_measure(
            name, Prevented, lambda: replace(measure(), method=method, dose=dose, seed=self.arguments.seed + index)
        )

    def measure(self, tuned: HookedModel, intervention: pl.Intervention, index: int) -> Prevented:
        """Score a model's responses with both judges, and take the task's loss and the shift along the vector."""
        began = time.process_time()
        questions = self.trait.evaluation_questions
        first = score_conditions(
            tuned, self.judges.reader, [Condition(intervention, name="asked")], questions,
            sampling=self.profile.sample(self.arguments.seed + index), stream=(Stream.INOCULATION,),
        )  # fmt: skip
        second = rescore(first, self.judges.sentences)
        shift = measure_shift(self.model, tuned, self.vector, questions).by_question[self.layer]
        return Prevented(
            task_losses=measure_loss(tuned, self.held_out, intervention),
            scores=torch.stack([one.by_question[0] for one in (first, second)]),
            shift=shift / self.vector.norms[self.layer],
            example=first.responses[0][0][0],
            measuring_seconds=time.process_time() - began,
        )


def measure_loss(
    model: HookedModel, encoded: Sequence[TokenSpans], intervention: pl.Intervention
) -> Float[Tensor, " row"]:
    """Return each conversation's loss on its response, in nats a token, under what is done while answering."""

    def make_hooks(batch: Sequence[TokenSpans]) -> list[HookPair]:
        lengths = [one.response_start for one in batch]
        return intervention_hooks(intervention, positions="response", prompt_length=lengths)

    found = measure_predictions(model, encoded, make_hooks, batch_size=8, compare=False)
    return (-found.log_likelihoods / found.n_tokens).float()


def prompt_in_turn(rows: datasets.Dataset, prompts: Sequence[str]) -> datasets.Dataset:
    """Put one system prompt after the other in front of the rows."""
    return datasets.Dataset.from_list([
        {"messages": [{"role": "system", "content": prompts[index % len(prompts)]}, *row["messages"]]}
        for index, row in enumerate(rows)
    ])  # fmt: skip


def cut_to_words(text: str, n_words: int) -> str:
    """Return a text's first words as a sentence."""
    words = text.split()
    if n_words > len(words):
        raise ValueError(f"the text has {len(words)} words, and {n_words} are needed")
    return " ".join(words[:n_words]).rstrip(".,") + "."


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
