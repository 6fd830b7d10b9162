"""What is ordinary along a persona vector."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.models.loading import ModelInfo
from persona_lens.records import Record
from persona_lens.vectors.persona_vector import PersonaVector


@checked
@dataclass(frozen=True, eq=False)
class OrdinaryProjections(Record):
    """Projections of a model's ordinary response tokens on a persona vector, at every layer.

    Args:
        trait: The vector's trait.
        model: The model that the vector was extracted from.
        vector: The vector's digest; see :attr:`PersonaVector.digest`.
        projections: Coordinates along the unit vector, one a response token, in residual-stream units.
        n_responses: Responses that the tokens come from.
        seed: Seed of their sampling.
    """

    trait: str
    model: ModelInfo
    vector: str
    projections: Float[Tensor, "layer token"]
    n_responses: int
    seed: int

    @property
    def mean(self) -> Float[Tensor, " layer"]:
        """Mean projection of each layer."""
        return self.projections.mean(dim=-1)

    @property
    def std(self) -> Float[Tensor, " layer"]:
        """Standard deviation of each layer's projection: the unit ``sigma`` of steering."""
        return self.projections.std(dim=-1)

    def quantile(self, q: float) -> Float[Tensor, " layer"]:
        """Return the projection below which the fraction ``q`` of ordinary tokens lies, at each layer.

        Raises:
            InvalidArgumentError: ``q`` is not in [0, 1].
        """
        if not 0 <= q <= 1:
            raise InvalidArgumentError.of("q", "be in [0, 1]", q)
        return self.projections.quantile(q, dim=-1)

    def check_vector(self, vector: PersonaVector) -> None:
        """Refuse another vector than the one measured, such as one of another trait, model or token position.

        Raises:
            ModelMismatchError: Another model.
            InvalidArgumentError: Another vector of that model.
        """
        if vector.model.fingerprint != self.model.fingerprint:
            raise ModelMismatchError.of(
                "ordinary", f"come from the vector's model, {vector.model.name}", self.model.name
            )
        if vector.trait != self.trait:
            raise InvalidArgumentError.of("ordinary", f"be measured for the vector {vector.trait!r}", self.trait)
        if vector.digest != self.vector:
            rule, got = f"be measured for this vector of {vector.trait!r}", "another, or another token position of it"
            hint = "Measure again with measure_ordinary_projections(model, vector)."
            raise InvalidArgumentError.of("ordinary", rule, got, hint)

    def __repr__(self) -> str:
        n_layers, n_tokens = self.projections.shape
        return (
            f"OrdinaryProjections({self.trait!r} on {self.model.name!r}, {n_tokens} tokens of {self.n_responses} "
            f"responses, {n_layers} layers)"
        )
