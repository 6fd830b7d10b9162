"""LayerDirections: what every program's vector file holds, before it is known which model it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.vectors.persona_vector import PersonaVector, TokenPosition

_MAX_LAYERS = 4096  # a file may claim any number, and a vector has a row for each


@checked
@dataclass(frozen=True, eq=False)
class LayerDirections:
    """A trait's raw directions at some layers, out of a file or on the way into one.

    Args:
        trait: The trait's name.
        by_layer: Float32 directions by zero-based block index: each is of the residual stream after that block.
        n_layers: Number of the model's blocks; None where the file does not say.
        position: The token position that they were read from.
        model: The model that they were read from; None where the file does not say.
        provenance: The program and the file that they come from, and what was left out of it.

    Raises:
        InvalidArgumentError: A name with half a character; no layer, one that ``n_layers`` has no place for,
            directions of several widths, or with NaN or infinity in them.

    Example:
        >>> one = LayerDirections("calm", {2: torch.ones(4)}, n_layers=3)
        >>> one.layers, one.d_model
        ((2,), 4)
    """

    trait: str
    by_layer: Mapping[int, Float[Tensor, " d_model"]]
    n_layers: int | None = None
    position: TokenPosition = "response_mean"
    model: ModelInfo | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_characters("trait", self.trait)
        widths = {int(direction.numel()) for direction in self.by_layer.values()}
        if len(widths) != 1 or 0 in widths:
            raise InvalidArgumentError.of("by_layer", "hold directions of one width", sorted(widths))
        if self.n_layers is not None and not 1 <= self.n_layers <= _MAX_LAYERS:
            raise InvalidArgumentError.of("n_layers", f"be in [1, {_MAX_LAYERS}]", self.n_layers)
        highest = None if self.n_layers is None else self.n_layers - 1
        if min(self.by_layer) < 0 or (highest is not None and max(self.by_layer) > highest):
            rule = "have zero-based block indices as keys" + (f", at most {highest}" if highest is not None else "")
            raise InvalidArgumentError.of("by_layer", rule, sorted(self.by_layer))
        broken = [layer for layer, direction in self.by_layer.items() if not bool(torch.isfinite(direction).all())]
        if broken:
            raise InvalidArgumentError.of("by_layer", "be finite", f"NaN or infinity at layers {sorted(broken)}")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers with a direction, ascending."""
        return tuple(sorted(self.by_layer))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(next(iter(self.by_layer.values())).numel())

    @classmethod
    def of(cls, vector: PersonaVector) -> LayerDirections:
        """Take a vector's directions at its token position, without absent layers."""
        rows = vector.directions.detach().cpu().float()
        return cls(
            vector.trait,
            {layer: rows[layer].clone() for layer in vector.layers},
            vector.model.n_layers,
            vector.position,
            vector.model,
            dict(vector.provenance),
        )

    def to_vector(self, model: HookedModel | ModelInfo | None = None) -> PersonaVector:
        """Make a persona vector of the model that the directions belong to.

        Args:
            model: That model, or what :func:`persona_lens.describe_model` says of it. May be left out where the file
                says which it is, as those that were written here do. Other programs' files do not, and nobody can
                tell two models of one shape apart: that this is the right one is for you to know.

        Returns:
            The vector; layers that the file leaves out are absent from it.

        Raises:
            InvalidArgumentError: No model, and none in the file.
            ModelMismatchError: Another number of layers or another width than the model's; or another model than the
                file says.
        """
        info = self.model if model is None else model if isinstance(model, ModelInfo) else describe_model(model)
        if info is None:
            hint = "The file does not say which model it belongs to: give the model."
            raise InvalidArgumentError.of("model", "be given", None, hint)
        if self.model is not None and self.model.fingerprint not in (info.fingerprint, info.base_fingerprint):
            rule = f"be the model that the file names, {self.model.name} (fingerprint {self.model.fingerprint})"
            raise ModelMismatchError.of("model", rule, f"{info.name} (fingerprint {info.fingerprint})")
        if info.d_model != self.d_model or max(self.by_layer) >= info.n_layers or info.n_layers != self._count(info):
            layers = "" if self.n_layers is None else f", of {self.n_layers} layers"
            rule = f"fit the directions: d_model {self.d_model}, layers up to {max(self.by_layer)}{layers}"
            got = f"{info.name}, of d_model {info.d_model} and {info.n_layers} layers"
            raise ModelMismatchError.of("model", rule, got)
        rows = torch.zeros(info.n_layers, info.d_model)
        for layer, direction in self.by_layer.items():
            rows[layer] = direction
        absent = tuple(layer for layer in range(info.n_layers) if layer not in self.by_layer)
        owner = self.model or info
        return PersonaVector(
            self.trait, owner, {self.position: rows}, self.position, provenance=dict(self.provenance), absent=absent
        )

    def _count(self, info: ModelInfo) -> int:
        return info.n_layers if self.n_layers is None else self.n_layers


def check_characters(parameter: str, text: str) -> None:
    """Refuse half of a surrogate pair, which no file takes.

    Raises:
        InvalidArgumentError: The text has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError.of(parameter, "hold whole characters", text, "It has half of one.") from None
