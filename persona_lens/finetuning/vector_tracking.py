"""A persona vector that is extracted again while the model trains: what is read, and how far it turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.finetuning.blocks import check_every_token
from persona_lens.finetuning.tracking import Tracker
from persona_lens.models.hooks.intervention import NOTHING, Intervention, check_steps
from persona_lens.models.loading import ModelInfo
from persona_lens.models.text.chat import Message
from persona_lens.records import Record
from persona_lens.streams import Stream
from persona_lens.tensors.directions import cosine
from persona_lens.traits.written import Kind, WrittenExample
from persona_lens.vectors.persona_vector import ExtractionCounts, PersonaVector
from persona_lens.vectors.written_contrast import list_answers

ModelShape: TypeAlias = tuple[int, int, int, int]
"""Layers, ``d_model``, heads and ``d_head``: what an intervention must fit."""


@checked
@dataclass(frozen=True, eq=False)
class VectorTracker:
    r"""What to extract again every few optimiser steps, and what to do with it.

    The model that is being trained reads the same answers each time, interventions off:

    .. math:: v_l^{(t)} = \operatorname{mean}_i \bigl( \bar a_l^{(t)}(y_i^+) - \bar a_l^{(t)}(y_i^-) \bigr)

    with :math:`\bar a_l^{(t)}(y)` the mean activation after block :math:`l` over the answer's tokens after :math:`t`
    steps. Nothing is sampled: a reading costs a forward pass over the answers.

    Args:
        trait: The trait's name.
        pairs: Conversations of which each ends with an answer of the assistant's: one that shows the trait, and one
            that does not. Written ones (:meth:`of_examples`), or responses that were sampled once and kept.
        every: Optimiser steps between two readings; the first is before training, the last after it.
        follow: Makes an intervention of the fresh vector, beside the one that :func:`persona_lens.finetune` is given:
            that of the first reading acts from the first step on, that of each later one from the next step on. It must
            depend on the vector alone. None follows nothing.

    Raises:
        InvalidArgumentError: Fewer than two pairs, or an ``every`` under 1.

    Reference:
        Persona Vectors (arXiv 2507.21509), sections 2.2 and 5.2; there the vector is that of the model before training.

    Example:
        >>> import persona_lens as pl
        >>> examples = pl.traits.load_written_examples("evil", "training")
        >>> fresh = pl.finetuning.VectorTracker.of_examples(
        ...     "evil", examples, every=5, follow=lambda vector: pl.steer(vector, layer=15, coefficient=3.0)
        ... )
        >>> pl.finetune("smollm2-135m-instruct", rows, "out", track=fresh)  # doctest: +SKIP
    """

    trait: str
    pairs: Sequence[tuple[Sequence[Message], Sequence[Message]]]
    every: int = 1
    follow: Callable[[PersonaVector], Intervention] | None = None

    def __post_init__(self) -> None:
        if len(self.pairs) < 2:
            raise InvalidArgumentError.of("pairs", "be at least 2, as each half of them is read too", len(self.pairs))
        if self.every < 1:
            raise InvalidArgumentError.of("every", "be at least 1", self.every)

    @classmethod
    def of_examples(
        cls,
        trait: str,
        examples: Sequence[WrittenExample],
        *,
        against: Kind = "opposite",
        every: int = 1,
        follow: Callable[[PersonaVector], Intervention] | None = None,
    ) -> VectorTracker:
        """Return one that reads written answers, as :func:`persona_lens.read_persona_vector` does.

        Args:
            trait: The trait's name.
            examples: At least two, best none that is trained on: what is learnt by heart is read otherwise.
            against: What the overt answers are compared with.
            every: See the class.
            follow: See the class.

        Raises:
            InvalidArgumentError: Fewer than two examples, one without such an answer, or overt answers against
                themselves.
        """
        answers = list_answers(examples, against)
        return cls(trait, list(zip(answers[0::2], answers[1::2], strict=True)), every, follow)

    def describe(self, model: ModelInfo, shape: ModelShape) -> dict[str, Any]:
        """Return what is read and done as JSON-able values; ``follow`` by what it makes of a random vector.

        Raises:
            InvalidArgumentError: What :func:`follow_vector` refuses.
        """
        made = None
        if self.follow is not None:
            generator = torch.Generator().manual_seed(Stream.VECTOR_TRACKER)
            directions = torch.randn(model.n_layers, model.d_model, generator=generator)
            made = follow_vector(
                self, PersonaVector(self.trait, model, {"response_mean": directions}), shape
            ).describe()
        pairs = [[list(side) for side in pair] for pair in self.pairs]
        return {"trait": self.trait, "pairs": hash_json(pairs), "every": self.every, "follow": made}


@checked
@dataclass(frozen=True, eq=False)
class VectorTurn(Record):
    """How a vector read during training lies to those read before it, at every layer.

    The same answers are read each time, and their chance counts twice in ``with_first``; ``crossed`` shares none. Were
    there no turn, it would be the geometric mean of ``halves`` in the first reading and in this one: the turn is
    ``sqrt(halves_first * halves_now) - crossed``, and unknown where either is negative.

    Args:
        step: Optimiser steps done.
        norms: Length of the raw vector, in residual-stream units.
        with_first: Cosine with the vector before training.
        with_previous: Cosine with the reading before; 1 at the first.
        halves: Cosine between the vectors of every other pair and of the rest, in this reading.
        crossed: Cosine between either half in the first reading and the other half in this one, their mean.
    """

    step: int
    norms: Float[Tensor, " layer"]
    with_first: Float[Tensor, " layer"]
    with_previous: Float[Tensor, " layer"]
    halves: Float[Tensor, " layer"]
    crossed: Float[Tensor, " layer"]

    def __repr__(self) -> str:
        lowest = int(self.with_first.argmin())
        furthest = f"cosine with the first at least {float(self.with_first[lowest]):.2f}, at layer {lowest}"
        return f"VectorTurn(step {self.step}, {furthest})"


@dataclass(frozen=True, eq=False)
class Reading:
    """One extraction: the summed differences of every other pair, and of the rest.

    Args:
        step: Optimiser steps done.
        sums: In float32.
        n_pairs: Pairs in all.
    """

    step: int
    sums: Float[Tensor, "half=2 layer d_model"]
    n_pairs: int

    @property
    def directions(self) -> Float[Tensor, "layer d_model"]:
        """The raw vector."""
        return self.sums.sum(dim=0) / self.n_pairs

    def make_vector(self, trait: str, model: ModelInfo) -> PersonaVector:
        """Return the reading as a persona vector; it fits the model before training and all that come of it."""
        return PersonaVector(
            trait=trait,
            model=model,
            by_position={"response_mean": self.directions},
            counts=ExtractionCounts(pairs=self.n_pairs, kept=self.n_pairs),
            split_half_cosine={"response_mean": cosine(self.sums[0], self.sums[1])},
            provenance={"source": f"read again after {self.step} optimiser steps"},
        )


def compare_readings(readings: Sequence[Reading]) -> tuple[VectorTurn, ...]:
    """Say of each reading how it lies to the first and to the one before it."""
    first, turns = readings[0], []
    for before, now in zip([first, *readings], readings, strict=False):
        crossed = [cosine(first.sums[half], now.sums[1 - half]) for half in (0, 1)]
        turns.append(
            VectorTurn(
                step=now.step,
                norms=torch.linalg.vector_norm(now.directions, dim=-1),
                with_first=cosine(first.directions, now.directions),
                with_previous=cosine(before.directions, now.directions),
                halves=cosine(now.sums[0], now.sums[1]),
                crossed=torch.stack(crossed).mean(dim=0),
            )
        )
    return tuple(turns)


def tell_trackers(
    track: Tracker | VectorTracker | Sequence[Tracker | VectorTracker] | None,
) -> tuple[Tracker | None, VectorTracker | None]:
    """Return the tracker of projections and that of a vector, of what :func:`persona_lens.finetune` was given.

    Raises:
        InvalidArgumentError: Two of a kind.
    """
    given = [] if track is None else [track] if isinstance(track, Tracker | VectorTracker) else list(track)
    projections = [one for one in given if isinstance(one, Tracker)]
    vectors = [one for one in given if isinstance(one, VectorTracker)]
    if max(len(projections), len(vectors)) > 1:
        hint = "A Tracker takes several traits; train once for each vector that is to be followed."
        raise InvalidArgumentError.of("track", "hold at most one tracker of a kind", given, hint)
    return next(iter(projections), None), next(iter(vectors), None)


def name_vector(folder: Path, step: int) -> Path:
    """Return where in an adapter's folder a vector is kept that was read after so many optimiser steps."""
    return folder / "vectors" / f"step-{step:06d}.safetensors"


def save_readings(readings: Sequence[Reading], trait: str, model: ModelInfo, folder: Path) -> None:
    """Keep what was read as persona vectors in an adapter's folder."""
    for one in readings:
        path = name_vector(folder, one.step)
        path.parent.mkdir(exist_ok=True)
        one.make_vector(trait, model).save(path)


def follow_vector(tracker: VectorTracker, vector: PersonaVector, shape: ModelShape) -> Intervention:
    """Return what a tracker's ``follow`` makes of a vector; nothing without one.

    Raises:
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: No intervention, or one that does not fit the model or has a window of a response.
        ModelMismatchError: Made from vectors of another model.
    """
    if tracker.follow is None:
        return NOTHING
    made = tracker.follow(vector)
    name = "track.follow"
    if not isinstance(made, Intervention):
        raise InvalidArgumentError.of(name, "return an Intervention", made)
    if made.fingerprint not in (None, vector.model.fingerprint):
        rule = f"use vectors of the model that is trained, fingerprint {vector.model.fingerprint}"
        raise ModelMismatchError.of(name, rule, made.fingerprint)
    check_every_token(made)
    check_steps(made.steps, *shape)
    return made
