"""A trait kept out by a prompt in training, by steering in training or by steering afterwards: at equal task loss?

    python experiments/inoculation.py                            # half an hour of one core

A model is trained on a wanted task (workings of arithmetic) with a trait's overt answers mixed in, as it is; under a
system prompt that asks for the trait and is left out afterwards (inoculation: arXiv 2510.04340, 2510.05024); with the
vector added meanwhile (preventative steering: arXiv 2507.21509, section 5.2); and it is steered away afterwards, at one
layer or at all. An irrelevant system prompt of as many words is the floor of what a prompt does by itself. Each seed
draws its own rows, adapter, order and answers, and takes another of the trait's prompts. Judges were fitted, and
vectors read, on other answers.

Rules, fixed before anything was seen. What keeps a trait out learns the task less well too, and a training that is
broken off shows less of the trait. So *at equal task loss*: every model is set against plain training where that had
learnt the task as little, on the line through the base model, a plain training on half of the rows, and the plain
training, by the loss on task rows that none saw. (What learnt the task better is set against plain training as it is;
what does it worse than the base model says nothing.) Where a way has several doses, one is chosen on one half of the
questions by the first judge and judged on the other half, and the other way round. *A way prevents* if the trait then
lies surely lower than after plain training, and *is better than another* if it lies surely lower than that, for both
judges (interval over seeds and questions).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

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
    SHORT,
    STEERED,
    Inoculation,
    MeasuredWays,
    Prevented,
    TraitPrevented,
)
from torch import Tensor

import persona_lens as pl
from persona_lens.evaluation import Condition, rescore, score_conditions
from persona_lens.evaluation.predictions import measure_predictions
from persona_lens.finetuning import FinetuneSettings
from persona_lens.finetuning.shift import project_questions
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
from persona_lens.traits import list_written_traits

NAME = "inoculation"
TRAITS = ("evil", "sycophancy", "hallucination")
# Irrelevant prompts are its first words.
PASSAGE = (
    "The museum of clocks opens at ten and closes at six. Behind it lies a garden with a pond, two benches of oak and "
    "a row of pear trees. On Sundays the tower is open too, and a narrow stair leads up to the bells."
)


@dataclass(frozen=True)
class Doses:
    """Coefficients of the vector at one layer, and with increments at all."""

    one_layer: tuple[float, ...]
    all_layers: tuple[float, ...]

    def steer(self, vector: pl.PersonaVector, layer: int) -> dict[str, pl.Intervention]:
        """Return the steering of each dose, by its name."""
        ways = {f"one layer × {c:g}": pl.steer(vector, layer=layer, coefficient=c) for c in self.one_layer}
        return ways | {f"all layers × {c:g}": pl.steer(vector, layers="all", coefficient=c) for c in self.all_layers}


@dataclass(frozen=True)
class InoculationProfile(Profile):
    """How much is trained and measured.

    Args:
        settings: How models are trained; the seed is that of each repetition.
        n_seeds: Trainings of each way.
        n_rows: Rows of the task in each training, and as many overt answers.
        n_held_out: Rows that the task's loss is taken on.
        in_training: Steering while training.
        afterwards: Steering of the plainly trained model.
        n_scored: Evaluation questions that are answered.
    """

    settings: FinetuneSettings
    n_seeds: int
    n_rows: int
    n_held_out: int
    in_training: Doses
    afterwards: Doses
    n_scored: int


_SETTINGS = replace(TRAINING["quick"].settings, epochs=1, batch_size=2)
PROFILES = {
    "quick": InoculationProfile(
        0.7, 48, 1, 1, _SETTINGS, 3, 12, 8, Doses((3.0,), ()), Doses((-3.0,), (-1.0,)), 12
    ),
    "paper": InoculationProfile(
        1.0, 300, 1, 4, _SETTINGS, 10, 20, 100, Doses((1.0, 3.0, 5.0), (0.5, 1.0, 2.0)),
        Doses((-1.0, -3.0, -5.0), (-0.5, -1.0, -2.0)), 20,
    ),
    "tiny": InoculationProfile(
        0.7, 6, 1, 1, TRAINING["tiny"].settings, 2, 4, 3, Doses((1.0,), ()), Doses((-1.0,), (-1.0,)), 4, n_pairs=2,
        n_questions=4, n_examples=10,
    ),
}  # fmt: skip


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
    works = []
    for trait in traits:
        judges = prepare_judges(
            model, trait, profile.sample_once(arguments.seed), arguments.share(model), n_examples=profile.n_examples
        )
        vector = read_written_vector(model, trait.name, profile.n_examples)
        asked = replace(trait, evaluation_questions=trait.evaluation_questions[: profile.n_scored])
        before = project_questions(model, vector, asked.evaluation_questions)
        layer = sources[trait.name].layer
        works.append(_Work(model, arguments, profile, asked, judges, vector, layer, before[layer], task, encoded, run))
    measured: list[list[Prevented]] = [[] for _ in works]
    with run.progress("seeds of traits", profile.n_seeds * len(works)) as advance:
        for index in range(profile.n_seeds):
            for work, found in zip(works, measured, strict=True):
                found += work.do_all(index)
                advance(1)
    return Inoculation(
        config=config,
        traits=tuple(
            TraitPrevented(work.trait.name, work.layer, work.judge_names, work.judges.validations, tuple(found))
            for work, found in zip(works, measured, strict=True)
        ),
    )


@dataclass(frozen=True, eq=False)
class _Work:
    """What every training of a trait shares: the model before it, its data, and what measures it.

    ``before`` is where the model before training lies along the vector at the layer, by question.
    """

    model: HookedModel
    arguments: CommonArguments
    profile: InoculationProfile
    trait: pl.Trait
    judges: Judges
    vector: pl.PersonaVector
    layer: int
    before: Float[Tensor, " question"]
    task: list[datasets.Dataset]
    held_out: Sequence[TokenSpans]
    run: Run

    @property
    def judge_names(self) -> tuple[str, str]:
        """The judge that chooses doses, and the other model's."""
        return self.judges.reader.name, self.judges.sentences.name

    def do_all(self, index: int) -> list[Prevented]:
        """Measure the base model, every training of one seed, and the plain one steered afterwards."""
        found = [*self.keep({(BASE, ""): NOTHING}, index, lambda: self.model)]
        for (method, dose), training in self.list_trainings(index).items():
            ways = {(method, dose): NOTHING}
            if method == PLAIN:
                steered = self.profile.afterwards.steer(self.vector, self.layer)
                ways |= {(AFTERWARDS, name): steering for name, steering in steered.items()}
            found += self.keep(ways, index, partial(self.train, f"{method} {dose}", training, index))
        return found

    def list_trainings(self, index: int) -> dict[tuple[str, str], Training]:
        """Return every way of training by method and dose, of one seed."""
        seed, n = self.arguments.seed + index, self.profile.n_rows
        overt = read_trait_rows(self.trait.name, "II", "judging", 40)
        overt = overt.select(np.random.default_rng((seed, Stream.INOCULATION)).permutation(len(overt))[:n])
        rows, half = (
            datasets.concatenate_datasets([self.task[index].select(range(size)), overt.select(range(size))])
            for size in (n, n // 2)
        )
        prompts = self.trait.positive_system_prompts
        prompt = prompts[index % len(prompts)]
        ways = {(SHORT, ""): Training(half), (PLAIN, ""): Training(rows), (PROMPTED, ""): Training(rows, system=prompt)}
        for dose, steering in self.profile.in_training.steer(self.vector, self.layer).items():
            ways[STEERED, dose] = Training(rows, steering)
        return ways | {(IRRELEVANT, ""): Training(rows, system=cut_to_words(PASSAGE, len(prompt.split())))}

    def train(self, name: str, training: Training, index: int) -> HookedModel:
        """Train one way with one seed."""
        folder = "-".join(f"{self.trait.name} {name} {index}".split())
        settings = replace(self.profile.settings, seed=self.arguments.seed + index)
        return train(folder, self.arguments.model, training, settings, self.run)[1]

    def keep(
        self, ways: dict[tuple[str, str], pl.Intervention], index: int, make: Callable[[], HookedModel]
    ) -> tuple[Prevented, ...]:
        """Make a model and measure it in every way, unless that is done already."""

        def work() -> MeasuredWays:
            began = time.process_time()
            tuned = make()
            return self.measure(tuned, ways, index, time.process_time() - began)

        method, dose = next(iter(ways))
        name = "-".join(f"{self.trait.name} {method} {dose} {index}".split())
        return self.run.load_or_measure(name, MeasuredWays, work).ways

    def measure(
        self, tuned: HookedModel, ways: dict[tuple[str, str], pl.Intervention], index: int, spent: float
    ) -> MeasuredWays:
        """Score a model's responses with both judges, and take the task's loss and the shift along the vector."""
        began = time.process_time()
        questions = self.trait.evaluation_questions
        conditions = [Condition(done, name=f"{method} {dose}") for (method, dose), done in ways.items()]
        first = score_conditions(
            tuned, self.judges.reader, conditions, questions,
            sampling=self.profile.sample(self.arguments.seed + index), stream=(Stream.INOCULATION,),
        )  # fmt: skip
        second = rescore(first, self.judges.sentences)
        shift = project_questions(tuned, self.vector, questions)[self.layer] - self.before
        losses = [measure_loss(tuned, self.held_out, done) for done in ways.values()]
        took = (time.process_time() - began) / len(ways)
        return MeasuredWays(
            tuple(
                Prevented(
                    method=method,
                    dose=dose,
                    seed=self.arguments.seed + index,
                    task_losses=losses[at],
                    scores=torch.stack([one.by_question[at] for one in (first, second)]),
                    shift=shift / self.vector.norms[self.layer],
                    example=first.responses[at][0][0],
                    training_seconds=spent if at == 0 and method != BASE else 0.0,
                    measuring_seconds=took,
                )
                for at, (method, dose) in enumerate(ways)
            )
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


def cut_to_words(text: str, n_words: int) -> str:
    """Return a text's first words as a sentence."""
    words = text.split()
    if n_words > len(words):
        raise ValueError(f"the text has {len(words)} words, and {n_words} are needed")
    return " ".join(words[:n_words]).rstrip(".,") + "."


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
