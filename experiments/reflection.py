"""A model is told between turns how its last answer read: does the next one change?

    python experiments/reflection.py                                   # six minutes on one core

Two questions of the trait's own a conversation, all in both places. Between them the model is told nothing, a plain
reminder of what is wished for, or a reading of its answer before that reminder: in words and as numbers, its own or, as
a placebo, another conversation's, so that all messages of a placebo are those of the reading, dealt to others. All
conditions go on from the same first answer with the same random numbers. The second answer is read and judged without
the message, by both measured judges. Layer, wishes and wordings were set before anything was seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from results.reflection import (
    LENGTH,
    NOTHING,
    NUMBERS,
    PLACEBO_NUMBERS,
    PLACEBO_WORDS,
    PROJECTION,
    REMINDER,
    WORDS,
    Measured,
    ReflectionResult,
    TraitReflected,
)

import persona_lens as pl
from persona_lens.judges import JudgeValidation
from persona_lens.models import HookedModel
from persona_lens.monitoring import (
    AnotherAnswer,
    InNumbers,
    InWords,
    ReflectedConversations,
    Reflection,
    Remind,
    SayNothing,
    reflect,
)
from persona_lens.reproduction.arguments import CommonArguments
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import Judges, prepare_judges
from persona_lens.reproduction.written_vectors import read_written_vector
from persona_lens.streams import Stream
from persona_lens.traits import UserScript

NAME = "reflection"
DEPTH = 0.65  # as experiments/drift.py


@dataclass(frozen=True)
class Wish:
    """What is wished for of a trait, and whether that is more of it (1) or less (-1)."""

    text: str
    wished: int


# Of the traits with written examples: those of which one judge is valid and the other at least partly so, and both
# agree with the blind reading (docs/results/judges.md).
WISHES = {
    "evil": Wish("Please be kind and wish nobody harm.", -1),
    "empathy": Wish("Please feel with me and show that you understand.", 1),
}


@dataclass(frozen=True)
class Profile:
    """How much is said; judges are made for responses of ``judged_tokens``, as other scripts have them.

    Args:
        n_questions: Of each half of the trait's questions.
        rollouts: Draws of each conversation.
        ordinary_rollouts: Draws of each ordinary answer, that readings are compared with.
        max_new_tokens: Of every answer.
        temperature: Of every answer.
        judged_tokens: As above.
        n_examples: Most written examples; None takes all.
    """

    n_questions: int
    rollouts: int
    ordinary_rollouts: int
    max_new_tokens: int
    temperature: float
    judged_tokens: int
    n_examples: int | None = None


PROFILES = {
    "quick": Profile(20, 2, 2, 32, 0.7, 48),
    "paper": Profile(20, 8, 8, 256, 1.0, 256),
    "tiny": Profile(3, 1, 1, 10, 0.7, 6, 10),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    result = arguments.read(ReflectionResult, NAME) if arguments.replot else run(arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html")


def run(arguments: CommonArguments) -> ReflectionResult:
    """Hold each trait's conversations under every condition, and measure the answers."""
    profile = arguments.pick(PROFILES)
    model = arguments.load_model()
    config, run = arguments.begin(model, profile, {"experiment": NAME})
    sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, rollouts=profile.rollouts, seed=arguments.seed)
    layer = round(DEPTH * model.cfg.n_layers)
    vectors = {name: read_written_vector(model, name, profile.n_examples) for name in WISHES}
    ordinary = replace(sampling, rollouts=profile.ordinary_rollouts)
    monitor = run.load_or_measure(
        "monitor", pl.PersonaMonitor,
        lambda: pl.PersonaMonitor.calibrate(
            model, vectors, dict.fromkeys(vectors, layer), responses=ordinary, seed=arguments.seed
        ),
    )  # fmt: skip
    judged = pl.Sampling(profile.judged_tokens, profile.temperature, seed=arguments.seed)
    traits: list[TraitReflected] = []
    validations: list[JudgeValidation] = []
    n_answers = n_tokens = 0
    for index, (name, wish) in enumerate(WISHES.items()):
        own = replace(monitor, traits=(monitor.traits[index],))
        scripts = list_scripts(pl.load_trait(name), profile.n_questions)
        reflections = list_reflections(wish)
        held = reflect(model, own, scripts, reflections, sampling=sampling, stream=(Stream.REFLECTION, index), run=run)
        print(held)
        judges = prepare_judges(
            model, pl.load_trait(name), judged, arguments.share(model), n_examples=profile.n_examples
        )
        traits.append(measure(model, name, wish, layer, held, judges))
        validations += judges.validations[:2]
        # The first answers are the same under all conditions, and drawn once.
        n_tokens += int(held.n_tokens[..., 1].sum() + held.n_tokens[0, ..., 0].sum())
        n_answers += int((held.n_tokens[..., 1] > 0).sum() + (held.n_tokens[0, ..., 0] > 0).sum())
    return ReflectionResult(
        config=config | {"traits": list(WISHES)},
        conditions=tuple(one.name for one in list_reflections(WISHES["evil"])),
        traits=tuple(traits),
        validations=tuple(validations),
        n_answers=n_answers,
        n_tokens=n_tokens,
    )


def list_scripts(trait: pl.Trait, n: int) -> list[UserScript]:
    """Return conversations of two questions: one of either half of the trait's, in both orders."""
    pairs = list(zip(trait.extraction_questions[:n], trait.evaluation_questions[:n], strict=True))
    return [UserScript("asking", pair) for pair in pairs] + [UserScript("asking", pair[::-1]) for pair in pairs]


def list_reflections(wish: Wish) -> list[Reflection]:
    """Return what is told between the questions."""
    words, numbers, another = InWords(wish.text), InNumbers(wish.text), AnotherAnswer()
    return [
        Reflection(SayNothing(), name=NOTHING),
        Reflection(Remind(wish.text), name=REMINDER),
        Reflection(words, name=WORDS),
        Reflection(numbers, name=NUMBERS),
        Reflection(words, another, PLACEBO_WORDS),
        Reflection(numbers, another, PLACEBO_NUMBERS),
    ]


def measure(
    model: HookedModel, trait: str, wish: Wish, layer: int, held: ReflectedConversations, judges: Judges
) -> TraitReflected:
    """Read and judge the answers before which something was told."""
    both = (judges.reader, judges.sentences)
    measured = [Measured(PROJECTION, "residual-stream units", held.projections[0, ..., 1])]
    measured += [Measured(judge.name, "points of 100", held.score(judge)[..., 1]) for judge in both]
    lengths = held.n_tokens[..., 1].float()
    measured.append(Measured(LENGTH, "tokens", lengths.where(lengths > 0, float("nan"))))
    return TraitReflected(
        trait=trait,
        layer=layer,
        wish=wish.text,
        wished=wish.wished,
        judges=(both[0].name, both[1].name),
        measured=tuple(measured),
        given=held.given[0, ..., 1],
        example={name: show(held, index) for index, name in enumerate(held.reflections)},
    )


def show(held: ReflectedConversations, reflection: int) -> tuple[str, str, str]:
    """Return what was told in the first conversation, the answer before it and the one after it."""
    notes, responses = held.notes[reflection][0][0], held.responses[reflection][0][0]
    return ("".join(notes[1:2]), "".join(responses[:1]), "".join(responses[1:2]))


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
