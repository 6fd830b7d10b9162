"""How far a vector comes out the same when it is found anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.records import Record
from persona_lens.statistics import Interval
from persona_lens.tensors.directions import cosine

if TYPE_CHECKING:  # a vector's type leads here when its quality is asked for
    from persona_lens.vectors.persona_vector import PersonaVector


@checked
@dataclass(frozen=True, eq=False)
class Repeats(Record):
    """How far a vector comes out the same when it is found anew, at each layer.

    Args:
        sources: What each of those found anew rests on, such as its seed.
        cosine: Cosine of two of all these vectors, the one assessed among them: the mean over their pairs, the lowest
            and the highest, which is their spread and no interval of confidence.
    """

    sources: tuple[str, ...]
    cosine: tuple[Interval, ...]


@checked
def compare_repeats(vector: PersonaVector, again: Sequence[PersonaVector]) -> Repeats:
    """Compare a vector with those that were found anew in the same way, and them with one another.

    Seeds redraw the responses and keep the questions, so their cosine is an upper bound on that of vectors from other
    questions, which :attr:`Stability.reliability` estimates from halves.

    Args:
        vector: The vector.
        again: From :func:`persona_lens.vectors.extract_again`, or from other written answers; at least one.

    Raises:
        InvalidArgumentError: None, one that is of another token position, or one without a direction at a layer.
        ModelMismatchError: One of another model.

    Example:
        >>> again = extract_again(vector, model, trait, seeds=(1, 2))  # doctest: +SKIP
        >>> compare_repeats(vector, again).cosine[20]  # doctest: +SKIP
    """
    if not again:
        raise InvalidArgumentError.of("again", "hold at least one vector", 0)
    for one in again:
        if one.model.fingerprint != vector.model.fingerprint:
            raise ModelMismatchError.of("again", f"come from the vector's model, {vector.model.name}", one.model.name)
        if one.position != vector.position:
            rule = f"use the vector's token position, {vector.position!r}"
            raise InvalidArgumentError.of("again", rule, one.position, "See .at().")
        if one.absent:
            raise InvalidArgumentError.of("again", "have a direction at every layer", f"none at {list(one.absent)}")
    directions = [one.directions.double().cpu() for one in (vector, *again)]
    found = torch.stack([cosine(first, second) for first, second in combinations(directions, 2)])
    ends = (found.mean(dim=0), found.amin(dim=0), found.amax(dim=0))
    return Repeats(
        tuple(map(_describe, again)), tuple(Interval(*one) for one in zip(*(end.tolist() for end in ends), strict=True))
    )


def _describe(vector: PersonaVector) -> str:
    """Say what a vector rests on."""
    if "seed" in vector.provenance:
        return f"seed {vector.provenance['seed']}"
    return str(vector.provenance.get("source", vector.trait))
