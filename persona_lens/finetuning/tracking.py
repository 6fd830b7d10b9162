"""What to watch while a model is being fine-tuned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooks.sites import check_layer
from persona_lens.vectors.persona_vector import PersonaVector


@checked
@dataclass(frozen=True, eq=False)
class Tracker:
    """What to measure during training: the mean last-prompt-token projection of each trait, interventions off.

    Args:
        vectors: Persona vectors of the base model, by trait.
        layers: Zero-based block index for each of them.
        questions: What is asked, for each of them; not the training data's questions.
        every: Optimiser steps between two measurements; the first is before training, the last after it.
        limits: For any of the traits: the shift from the projection before training, in multiples of the raw
            vector's length, beyond which training stops. The adapter is then that of the step reached.

    Raises:
        InvalidArgumentError: Mappings with different names, no questions, or an ``every`` under 1.
        LayerOutOfRangeError: A layer that a vector does not have.
    """

    vectors: Mapping[str, PersonaVector]
    layers: Mapping[str, int]
    questions: Mapping[str, Sequence[str]]
    every: int = 1
    limits: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name, mapping in (("layers", self.layers), ("questions", self.questions)):
            if mapping.keys() != self.vectors.keys():
                rule = f"have the names of `vectors`, {sorted(self.vectors)}"
                raise InvalidArgumentError.of(name, rule, sorted(mapping))
        unknown = sorted((self.limits or {}).keys() - self.vectors.keys())
        if unknown:
            raise InvalidArgumentError.of("limits", "have names of `vectors`", unknown)
        if not self.vectors or not all(self.questions.values()):
            rule = "hold a question for each trait"
            raise InvalidArgumentError.of("questions", rule, self.questions)
        if self.every < 1:
            raise InvalidArgumentError.of("every", "be at least 1", self.every)
        for trait, vector in self.vectors.items():
            check_layer(self.layers[trait], vector.model.n_layers)

    @property
    def fingerprints(self) -> set[str]:
        """Of the models that the vectors come from."""
        return {vector.model.fingerprint for vector in self.vectors.values()}

    def describe(self) -> dict[str, Any]:
        """Return what is measured as JSON-able values."""
        digests = {
            trait: hashlib.sha256(vector.unit(self.layers[trait]).numpy().tobytes()).hexdigest()[:16]
            for trait, vector in self.vectors.items()
        }
        return {
            "vectors": digests,
            "layers": dict(self.layers),
            "questions": {trait: list(asked) for trait, asked in self.questions.items()},
            "every": self.every,
            "limits": dict(self.limits or {}),
        }
