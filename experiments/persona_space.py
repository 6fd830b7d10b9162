"""Roles side by side: in which directions do they differ, does the first lead to the assistant, does capping hold it?

    python experiments/persona_space.py                          # half an hour on two cores

After "The Assistant Axis" (arXiv 2601.10387), with roles and questions of our own. Roles and the assistant answer the
same questions; principal components of the roles' mean residual streams stand beside components of answers dealt out to
the roles by chance. How far roles, traits and prompts that say nothing lie from the assistant is measured by an axis
that knows neither the role nor the question. Whether the model plays its roles is said by another model's sentence
vectors, which see the answers alone. Then the causal test: the axis and both judges are made on even questions; on odd
ones the roles that are played best answer with a floor under their projection, at percentiles of ordinary answers,
beside floors under random directions that move the same roles' answers as far (in KL divergence, on even questions).
The assistant axis is kept with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from results.persona_space import RANDOM, Capping, JudgeCard, LayerShare, PersonaSpaceResult
from torch import Tensor

import persona_lens as pl
from persona_lens.evaluation import Condition, ConditionScores, rescore, score_conditions
from persona_lens.interventions import cap
from persona_lens.judges import CoherentJudge, EmbeddingJudge, TextEncoder, calibrate_likelihood_judge, shuffle_words
from persona_lens.models import HookedModel
from persona_lens.models.hooks.intervention import Intervention
from persona_lens.models.text.spans import TokenSpans
from persona_lens.reproduction.arguments import CommonArguments
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import load_encoders
from persona_lens.reproduction.ways import DivergenceMeter, Strength, Way, find_strengths
from persona_lens.run import Run
from persona_lens.space import (
    RoleAnswers,
    find_assistant_axis,
    find_components,
    find_persona_space,
    measure_axis_distances,
    measure_playing,
    note_thresholds,
    sample_roles,
)
from persona_lens.statistics import bootstrap_auroc, bootstrap_auroc_by_group
from persona_lens.streams import Stream
from persona_lens.tensors import sample_random_directions
from persona_lens.tensors.directions import cosine
from persona_lens.traits import InstructionPair, Role, list_roles, load_role, load_role_questions
from persona_lens.traits.roles import ASSISTANT
from persona_lens.vectors import list_ready_vectors, load_vector
from persona_lens.vectors.ordinary import OrdinaryProjections

NAME = "persona_space"
PERCENTILES = (5, 25, 50)
# The paper caps at such depths of its larger models.
CAP_DEPTHS = (0.7, 0.84)
# The lowest floor under a random direction, in the axis' standard deviations below that direction's ordinary mean: it
# lifts next to nothing.
LOWEST = 5.0

PLACEBO = Role(
    "placebo",
    "assistant",
    "Says what has nothing to do with who answers.",
    (
        "It is a Tuesday afternoon, and it is cloudy.",
        "The text below was typed on a keyboard.",
        "This conversation is the fourth of the day.",
        "The user lives in a town with two bridges.",
        "Answers are shown in black letters on a white page.",
    ),
)


@dataclass(frozen=True)
class Profile:
    """How much is sampled.

    Args:
        n_roles: Roles, spread over the list.
        n_questions: Questions.
        prompts_each: System prompts of a role under which it is asked each question.
        max_new_tokens: Most tokens of an answer.
        temperature: Of the sampling.
        n_traits: Traits, each under its positive and its negative prompts.
        n_resamples: Of the questions.
        n_shuffles: Deals of answers to roles.
        n_capped: Roles that are capped: those that are played best.
        n_random: Random directions.
        n_meter: Questions whose answers, of every capped role, say how far a floor moves the model.
    """

    n_roles: int = 56
    n_questions: int = 24
    prompts_each: int | None = 2
    max_new_tokens: int = 32
    temperature: float = 0.7
    n_traits: int = 12
    n_resamples: int = 500
    n_shuffles: int = 200
    n_capped: int = 4
    n_random: int = 4
    n_meter: int = 6


PROFILES = {
    "quick": Profile(),
    "paper": Profile(prompts_each=None, max_new_tokens=256, temperature=1.0, n_random=16, n_meter=12),
    "tiny": Profile(7, 8, 1, 6, 0.7, 2, 5, 5, 2, 2, 2),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    result = arguments.read(PersonaSpaceResult, NAME) if arguments.replot else run(arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html")


def run(arguments: CommonArguments) -> PersonaSpaceResult:
    """Let every role answer, find the space, and cap."""
    profile = arguments.pick(PROFILES)
    model = arguments.load_model()
    config, run = arguments.begin(model, profile, {"experiment": NAME})
    shared = arguments.share(model)
    layer = model.cfg.n_layers // 2
    sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    questions = load_role_questions()[: profile.n_questions]
    names = list_roles()
    roles = [load_role(names[i * len(names) // profile.n_roles]) for i in range(profile.n_roles)]
    # Those of which a vector comes with the package come first.
    ready = list_ready_vectors()
    ordered = [*ready, *(name for name in pl.list_traits() if name not in ready)]
    traits = [pl.load_trait(name) for name in ordered[: profile.n_traits]]
    base = sample_roles(model, [load_role(ASSISTANT), PLACEBO], questions, sampling=sampling, run=shared)
    answers = base.take([ASSISTANT]) + sample_roles(
        model, roles, questions, prompts_each=profile.prompts_each, sampling=sampling, run=shared
    )
    prompted = sample_roles(
        model, [one for trait in traits for one in list_sides(trait)], questions,
        prompts_each=1, sampling=sampling, run=shared,
    )  # fmt: skip
    encoders = load_encoders(model)
    axis = find_assistant_axis(answers)
    ordinary = pl.measure_ordinary_projections(model, axis)
    axis = note_thresholds(axis, ordinary, layer)
    arguments.out.mkdir(parents=True, exist_ok=True)
    axis.save(arguments.out / "assistant_axis.safetensors")
    vectors = {trait.name: contrast(prompted, trait.name) for trait in traits}
    if next(iter(vectors.values())).model.fingerprint == load_vector("evil").model.fingerprint:
        vectors |= {f"{name} (bundled)": load_vector(name) for name in list_ready_vectors()}
    print("finding the space")
    space = find_persona_space(
        answers, layer, vectors=vectors, n_components=min(4, profile.n_roles - 2),
        n_resamples=profile.n_resamples, n_shuffles=profile.n_shuffles, seed=arguments.seed,
    )  # fmt: skip
    first = torch.tensor([one.coordinates[0] for one in space.roles])
    along = torch.tensor([one.axis.estimate for one in space.roles])
    serves = torch.tensor([one.kind == "service" for one in space.roles])
    capping = try_capping(model, answers, encoders, profile, sampling, run)
    return PersonaSpaceResult(
        config=config,
        space=space,
        layers=tuple(look_at_layer(answers, one) for one in range(model.cfg.n_layers)),
        playing=measure_playing(answers, encoders[1]),
        placebo_playing=measure_playing(base + answers.take(answers.characters.roles[:1]), encoders[1]),
        role_distances=measure_axis_distances(answers, layer),
        prompt_distances=measure_axis_distances(answers, layer, others=prompted + base.take([PLACEBO.name])),
        serves_by_component=bootstrap_auroc(first[serves], first[~serves]),
        serves_by_axis=bootstrap_auroc(along[serves], along[~serves]),
        axis_half_cosine=float(axis.split_half_cosine["response_mean"][layer]),
        n_empty=answers.n_empty + prompted.n_empty + base.n_empty,
        examples=show_examples(answers),
        capping=capping,
    )


# The space ----------------------------------------------------------------------------------------------------------


def list_sides(trait: pl.Trait) -> list[Role]:
    """Make a role of each side of a trait's instructions."""
    opposite = f"The opposite: {trait.description}"
    return [
        Role(trait.name, "trait", trait.description, trait.positive_system_prompts),
        Role(f"not_{trait.name}", "trait", opposite, trait.negative_system_prompts),
    ]


def contrast(prompted: RoleAnswers, trait: str) -> pl.PersonaVector:
    """Return a trait's vector from answers to the roles' questions under both sides of its instructions."""
    with_trait, without = prompted.take([trait, f"not_{trait}"]).means.mean(dim=1)
    return pl.PersonaVector(trait, prompted.model, {"response_mean": with_trait - without})


def look_at_layer(answers: RoleAnswers, layer: int) -> LayerShare:
    """Find the first component at a layer, and how it lies to the axis there."""
    found = find_components(answers.characters.means[:, :, layer].mean(dim=1), 1)
    axis = find_assistant_axis(answers)
    along = cosine(axis.direction(layer).double(), found.directions[0])
    return LayerShare(
        layer, float(found.shares[0]), abs(float(along)), float(axis.split_half_cosine["response_mean"][layer])
    )


def show_examples(answers: RoleAnswers) -> dict[str, str]:
    """Return every role's first answer to the first question."""
    return {name: texts[0][0] for name, texts in zip(answers.roles, answers.texts, strict=True)}


# Capping ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CapBench:
    """What floors are tried with.

    Args:
        model: The model.
        axis: Found on the questions that nothing is tried on.
        ordinary: Along it.
        layers: At which there is a floor.
        roles: Who is capped, each under its first system prompt.
        judge: Scores, and says how coherent a text is.
        sampling: Of the answers.
        run: Keeps what is finished.
    """

    model: HookedModel
    axis: pl.PersonaVector
    ordinary: OrdinaryProjections
    layers: tuple[int, ...]
    roles: tuple[Role, ...]
    judge: CoherentJudge
    sampling: pl.Sampling
    run: Run

    def cap_axis(self, percentile: float) -> Intervention:
        """Return what keeps the projection from falling below a percentile of ordinary tokens."""
        return cap(self.axis, layers=self.layers, floor=self.ordinary.quantile(percentile / 100))

    def cap_random(
        self, directions: Float[Tensor, "layer d_model"], means: Float[Tensor, "layer d_model"], height: float
    ) -> Intervention:
        """Return a floor under a random direction, so many of the axis' deviations above an ordinary answer."""
        vector = pl.PersonaVector("random", self.axis.model, {"response_mean": directions})
        ordinary = (means * vector.units).sum(dim=-1)
        return cap(vector, layers=self.layers, floor=ordinary + height * self.ordinary.std)

    def score(self, done: dict[str, Intervention], questions: Sequence[str]) -> ConditionScores:
        """Let every role answer under every intervention."""
        conditions = [
            Condition(intervention, role.system_prompts[0], name=f"{name}: {role.name}")
            for name, intervention in done.items()
            for role in self.roles
        ]
        return score_conditions(
            self.model, self.judge, conditions, questions,
            sampling=self.sampling, stream=(Stream.PERSONA_SPACE,), run=self.run,
        )  # fmt: skip


def try_capping(
    model: HookedModel,
    answers: RoleAnswers,
    encoders: Sequence[TextEncoder],
    profile: Profile,
    sampling: pl.Sampling,
    run: Run,
) -> Capping:
    """Make axis and judges on even questions; on odd ones let the best-played roles answer with and without a floor."""
    n = len(answers.questions)
    even, odd = answers.ask(range(0, n, 2)), answers.ask(range(1, n, 2))
    playing = measure_playing(even, encoders[1])
    best = sorted(range(len(playing.roles)), key=lambda i: -playing.aurocs[i].estimate)[: profile.n_capped]
    roles = tuple(load_role(playing.roles[i]) for i in best)
    readers = [fit_judge(even, encoder) for encoder in (encoders[1], encoders[0])]
    likelihood = calibrate_likelihood_judge(model, describe_assistant(even, odd), n_pairs=1, sampling=sampling, run=run)
    axis = find_assistant_axis(even)
    n_layers = model.cfg.n_layers
    layers = tuple(
        sorted({round(CAP_DEPTHS[0] * n_layers), *range(*(round(depth * n_layers) for depth in CAP_DEPTHS))})
    )
    ordinary = pl.measure_ordinary_projections(model, axis)
    bench = CapBench(model, axis, ordinary, layers, roles, CoherentJudge(readers[0], likelihood), sampling, run)
    drawn = sample_random_directions(
        torch.ones(n_layers), model.cfg.d_model, profile.n_random, sampling.seed + int(Stream.PERSONA_SPACE)
    )
    means = even.assistant.mean(dim=0)
    floors = {one: bench.cap_axis(one) for one in PERCENTILES}
    meter = DivergenceMeter(model, list_spans(model, even.take([role.name for role in roles]), profile.n_meter))
    moved = {one: meter.measure(floor) for one, floor in floors.items()}
    matched = [match_divergence(bench, one, means, meter, sorted(moved.values())) for one in drawn]
    nulls = {one: [found[kl] for found in matched] for one, kl in moved.items()}
    done = {"role": Intervention()} | {f"floor {one}": floor for one, floor in floors.items()}
    done |= {
        f"{RANDOM} {one}, {i}": bench.cap_random(direction, means, null.strength - LOWEST)
        for one, found in nulls.items()
        for i, (direction, null) in enumerate(zip(drawn, found, strict=True))
    }
    scored = bench.score(done, odd.questions)
    plain = replace(bench, roles=(load_role(ASSISTANT),))
    assistant = plain.score({"assistant": Intervention(), "assistant, floor 25": bench.cap_axis(25)}, odd.questions)
    shape = (len(done), len(roles), len(odd.questions))
    both = [(one, rescore(one, readers[1])) for one in (scored, assistant)]
    return Capping(
        capped_roles=tuple(role.name for role in roles),
        cap_layers=layers,
        conditions=tuple(done),
        moved=tuple(moved.values()),
        null_heights=torch.tensor([[null.strength - LOWEST for null in found] for found in nulls.values()]),
        null_moved=torch.tensor([[null.kl for null in found] for found in nulls.values()]),
        judges_measured=tuple(card(judge, odd, playing.played) for judge in readers),
        scores=torch.stack([one.by_question.reshape(shape) for one in both[0]]),
        coherences=scored.coherence_by_question.reshape(shape),
        assistant_scores=torch.stack([one.by_question for one in both[1]]),
        assistant_coherences=assistant.coherence_by_question,
        below_floor=count_below(bench, answers, odd),
        responses=tuple(tuple(texts[0] for texts in row) for row in scored.responses),
    )


def count_below(bench: CapBench, answers: RoleAnswers, odd: RoleAnswers) -> tuple[tuple[str, float, float], ...]:
    """Return, for the middle of the capped layers, the share of answers whose mean lies below each floor.

    Of the capped roles, and of the assistant.
    """
    layer = bench.layers[len(bench.layers) // 2]
    unit = bench.axis.unit(layer)
    roles, assistant = ((odd.take(names).means[:, :, layer] * unit).sum(dim=-1)
                        for names in ([role.name for role in bench.roles], [ASSISTANT]))  # fmt: skip
    floors = {one: bench.ordinary.quantile(one / 100)[layer] for one in PERCENTILES}
    return tuple(
        (str(one), float((roles < floor).float().mean()), float((assistant < floor).float().mean()))
        for one, floor in floors.items()
    )


def describe_assistant(even: RoleAnswers, odd: RoleAnswers) -> pl.Trait:
    """Describe being the assistant as a trait, for the judge of coherence."""
    return pl.Trait(
        name=ASSISTANT,
        description="Answers as the assistant, not as a character.",
        instruction_pairs=(
            InstructionPair(load_role(ASSISTANT).system_prompts[0], "Play a character, and stay in it."),
        ),
        extraction_questions=even.questions,
        evaluation_questions=odd.questions,
        rubric="{question} {answer}",
    )


def list_spans(model: HookedModel, answers: RoleAnswers, n_questions: int) -> list[TokenSpans]:
    """Return roles' first answers to some questions, each behind its role's first system prompt.

    Not all were given under that one: a meter reads them behind the prompt that floors are tried under.
    """
    return [
        pl.models.encode_conversation(
            model.tokenizer,
            [
                {"role": "system", "content": load_role(name).system_prompts[0]},
                {"role": "user", "content": question},
                {"role": "assistant", "content": said[0]},
            ],
        )
        for name, texts in zip(answers.roles, answers.texts, strict=True)
        for question, said in list(zip(answers.questions, texts, strict=True))[:n_questions]
        if said
    ]


def match_divergence(
    bench: CapBench,
    direction: Float[Tensor, "layer d_model"],
    means: Float[Tensor, "layer d_model"],
    meter: DivergenceMeter,
    aims: Sequence[float],
) -> dict[float, Strength]:
    """Return the floors under a random direction that move the roles' answers so far, above the lowest."""

    def make(above_lowest: float) -> Intervention:
        return bench.cap_random(direction, means, above_lowest - LOWEST)

    found = find_strengths(Way(RANDOM, "floor", make, start=LOWEST), meter, aims)
    return dict(zip(aims, found, strict=True))


# Judges ---------------------------------------------------------------------------------------------------------------


def fit_judge(even: RoleAnswers, encoder: TextEncoder) -> EmbeddingJudge:
    """Fit what tells the assistant's answers (100) from the roles' (0) by vectors of the texts alone."""
    from sklearn.linear_model import LogisticRegression

    sides = [list_texts(even.take([ASSISTANT])), list_texts(even.characters)]
    encoded = encoder.encode([text for side in sides for text in side]).astype(np.float64)
    center = encoded.mean(axis=0)
    scale = float(np.linalg.norm(encoded - center, axis=1).mean())
    regression: Any = LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000)
    fitted = regression.fit((encoded - center) / scale, np.repeat([1, 0], [len(side) for side in sides]))
    weights: ndarray = fitted.coef_[0] / scale
    return EmbeddingJudge(ASSISTANT, encoder, weights, float(fitted.intercept_[0] - weights @ center))


def card(judge: EmbeddingJudge, odd: RoleAnswers, played: Sequence[str]) -> JudgeCard:
    """Measure a judge on the questions that it was not fitted on."""
    assistant, roles = odd.take([ASSISTANT]), odd.take(played or odd.characters.roles)
    own = list_texts(assistant)
    scores = [grade(judge, texts) for texts in (own, list_texts(roles), [shuffle_words(text, 1.0) for text in own])]
    groups = [[q for row in side.texts for q, said in enumerate(row) for _ in said] for side in (assistant, roles)]
    return JudgeCard(
        name=judge.name,
        auroc=bootstrap_auroc_by_group(scores[0], scores[1], groups[0], groups[1]),
        shuffled=bootstrap_auroc_by_group(scores[2], scores[0], groups[0], groups[0]),
    )


def grade(judge: EmbeddingJudge, texts: Sequence[str]) -> Float[Tensor, " text"]:
    """Score texts that are not empty."""
    return torch.tensor([one.score for one in judge.score([""] * len(texts), texts)])


def list_texts(answers: RoleAnswers) -> list[str]:
    """Return all answers, role by role."""
    return [text for row in answers.texts for said in row for text in said]


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
