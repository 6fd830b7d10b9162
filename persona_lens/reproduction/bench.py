"""What steering is tried with: judges, typical lengths, conditions and nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import InvalidArgumentError
from persona_lens.evaluation.conditions import Condition, ConditionScores, rescore, score_conditions
from persona_lens.interventions import steer
from persona_lens.judges.judgement import IdentifiedJudge
from persona_lens.models.engine.activations import pool_residual_stream
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import Intervention
from persona_lens.models.text.chat import encode_conversation
from persona_lens.reproduction.arguments import COMPARED_TRAITS
from persona_lens.reproduction.comparison import EQUAL_COHERENCE, SHUFFLED_LABELS, Compared, Setting
from persona_lens.reproduction.judges import Judges
from persona_lens.reproduction.written_vectors import read_written_vector
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.tensors.operations import Add
from persona_lens.traits.trait import Trait
from persona_lens.traits.written import Kind, WrittenExample, list_texts
from persona_lens.vectors.extraction import extract_persona_vector
from persona_lens.vectors.persona_vector import PersonaVector

NULL_SCALES = (1.0, 1.5, 2.0, 3.0)
"""Multiples of the vector's length among which that of equal coherence is found."""
# Directions that show how coherent a scale leaves the text.
N_PILOTS = 2


@dataclass(frozen=True)
class NullSize:
    """How many random directions are tried on how many of the questions."""

    n_directions: int
    n_questions: int


@dataclass(frozen=True, eq=False)
class Bench:
    """What every setting is tried with.

    Args:
        model: The model, unsteered.
        trait: The trait.
        judges: Its judges.
        training: The written examples that are there to be fitted on; none leave out the null of shuffled labels.
        lengths: Typical length, by layer, of an ordinary response's mean activation.
        sampling: How responses are drawn.
        stream: Tells the draws from those of other experiments.
        run: Keeps finished shards.
        shared: Keeps vectors that other scripts take too: ``arguments.share(model)``.
    """

    model: HookedModel
    trait: Trait
    judges: Judges
    training: tuple[WrittenExample, ...]
    lengths: Float[Tensor, " layer"]
    sampling: Sampling
    stream: Stream
    run: Run
    shared: Run

    def scale(self, vector: PersonaVector, layer: int, step: float) -> float:
        """Return the coefficient that makes a vector as long as the step says."""
        return step * float(self.lengths[layer] / vector.norms[layer])

    def score(self, conditions: Sequence[Condition], questions: Sequence[str], *stream: int) -> ConditionScores:
        """Sample, with the likelihood judge's scores and coherence."""
        return score_conditions(
            self.model, self.judges.likelihood, conditions, questions,
            sampling=self.sampling, stream=(self.stream, *stream), run=self.run,
        )  # fmt: skip

    def read(self, scored: ConditionScores) -> dict[str, Tensor]:
        """Return every judge's scores of the same responses."""
        first = self.judges.likelihood
        return {
            judge.name: scored.scores if judge is first else rescore(scored, judge).scores for judge in self.judges.all
        }

    def steer_along(
        self, directions: Float[Tensor, "direction d_model"], layer: int, scale: float, questions: Sequence[str]
    ) -> ConditionScores:
        """Score steering along each of a few directions at a multiple of their length."""
        added = [Intervention.of(layer, Add(one, scale)) for one in directions]
        return self.score([Condition(one, name=f"direction {index}") for index, one in enumerate(added)], questions)

    def compare(
        self,
        chosen: Mapping[str, tuple[PersonaVector, Setting]],
        questions: Sequence[str],
        tuning: Sequence[str],
        null: NullSize,
        rollouts: int,
        n_examples: int | None = None,
        ways: Sequence[tuple[int, str]] = ((1, ""), (-1, ", away")),
    ) -> Compared:
        """Steer with each vector at its setting, beside everything simpler, all read by every judge.

        Beside it stand the unsteered model, the trait's first positive system prompt, steering away, other traits'
        vectors at the same layer and length, vectors of shuffled labels of equal length, and random directions of
        equal coherence.

        Args:
            chosen: Vector and setting by the condition's name; nulls and other traits follow the first.
            questions: Questions that chose nothing.
            tuning: Questions on which the length of random directions is found that leaves text as coherent.
            null: How many random directions, on how many questions.
            rollouts: Responses to each question.
            n_examples: Most written examples that another trait's vector is read from; None takes all.
            ways: By which signs a setting's coefficient is multiplied, and what that adds to the condition's name.
        """
        first, (_, best) = next(iter(chosen.items()))
        conditions = [
            Condition(name="unsteered"),
            Condition(system=self.trait.positive_system_prompts[0], name="system prompt"),
            *(
                Condition(steer(vector, layer=s.layer, coefficient=sign * s.coefficient), name=f"{name}{way}")
                for name, (vector, s) in chosen.items()
                for sign, way in ways
            ),
            *self._steer_others(best, n_examples),
        ]
        responses = replace(self, sampling=replace(self.sampling, rollouts=rollouts)).score(conditions, questions)
        length = abs(best.step) * float(self.lengths[best.layer])
        seed = self.sampling.seed + self.stream
        random = sample_random_directions(torch.full((1,), length), self.model.cfg.d_model, null.n_directions, seed)
        random = random[:, 0]
        coherence = float(responses.coherences[responses.conditions.index(first)].nanmean())
        tried = {
            scale: float(self.steer_along(random[:N_PILOTS], best.layer, scale, tuning).coherences.nanmean())
            for scale in NULL_SCALES
        }
        scale = min(NULL_SCALES, key=lambda one: abs(tried[one] - coherence))
        asked = questions[: null.n_questions]
        nulls = {}
        if self.training:
            overt, opposite = (read_answers(self.model, self.training, kind) for kind in ("overt", "opposite"))
            shuffled = shuffle_labels((overt - opposite)[:, best.layer], null.n_directions, seed) * length
            nulls[SHUFFLED_LABELS] = self.steer_along(shuffled, best.layer, 1.0, asked)
        nulls[EQUAL_COHERENCE] = self.steer_along(random, best.layer, scale, asked)
        return Compared(
            responses=responses,
            scores=self.read(responses),
            nulls=nulls,
            null_scores={name: self.read(one) for name, one in nulls.items()},
            null_step=abs(best.step) * scale,
        )

    def _steer_others(self, best: Setting, n_examples: int | None) -> list[Condition]:
        """Return steering with the other compared traits' written vectors, at the same layer and length."""
        conditions = []
        for name in COMPARED_TRAITS:
            if name != self.trait.name:
                other = read_written_vector(self.model, name, n_examples, self.shared)
                coefficient = self.scale(other, best.layer, best.step)
                steered = steer(other, layer=best.layer, coefficient=coefficient)
                conditions.append(Condition(steered, name=f"vector of {name}"))
        return conditions


def read_answers(
    model: HookedModel, examples: Sequence[WrittenExample], kind: Kind
) -> Float[Tensor, "example layer d_model"]:
    """Return each written answer's mean activation, as the model reads it after its question."""
    spans = [
        encode_conversation(
            model.tokenizer,
            [{"role": "user", "content": one.question}, {"role": "assistant", "content": text}],
            n_ctx=model.cfg.n_ctx,
        )
        for one, text in zip(examples, list_texts(examples, kind), strict=True)
    ]
    read = {index: means.response_mean for index, means in pool_residual_stream(model, spans)}
    return torch.stack([read[index] for index in range(len(examples))]).cpu()


def extract_or_keep_all(
    model: HookedModel, trait: Trait, judge: IdentifiedJudge, sampling: Sampling, run: Run
) -> PersonaVector:
    """Extract the vector from the model's own responses; from all of them where the judge would keep none."""
    try:
        return extract_persona_vector(model, trait, judge=judge, sampling=sampling, run=run)
    except InvalidArgumentError as error:
        print(f"{trait.name}: {error} Every pair is kept.")
        return extract_persona_vector(model, trait, judge="none", sampling=sampling, run=run)


def measure_lengths(model: HookedModel, examples: Sequence[WrittenExample]) -> Float[Tensor, " layer"]:
    """Return the typical length, by layer, of an ordinary response's mean activation."""
    lengths: Tensor = read_answers(model, examples, "ordinary").norm(dim=-1).mean(dim=0)
    return lengths


def shuffle_labels(differences: Float[Tensor, "pair d_model"], n: int, seed: int) -> Float[Tensor, "direction d_model"]:
    """Return unit vectors of means over pairs half of which, drawn anew for each, have overt and opposite exchanged."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.ones(n, len(differences))
    for row in signs:
        row[torch.randperm(len(differences), generator=generator)[: len(differences) // 2]] = -1
    return torch.nn.functional.normalize(signs @ differences.float(), dim=-1)


def note_setting(
    vector: PersonaVector, source: str, layer: int, step: float, coefficient: float, score: float, coherence: float
) -> Setting:
    """Return a chosen setting with what its vector rests on."""
    cosine = vector.split_half_cosine.get("response_mean")
    return Setting(
        source, layer, step, coefficient, score, coherence,
        float("nan") if cosine is None else float(cosine[layer]),
        vector.counts.kept,
        vector.provenance.get("judge", ""),  # written answers were not judged
    )  # fmt: skip
