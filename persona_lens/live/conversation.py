"""A conversation with what was read at each of its tokens: the record that the widget and the page show."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.files import write_text
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import ModelInfo
from persona_lens.records import Record


@checked
@dataclass(frozen=True)
class Addition(Record):
    """What was added to the residual stream at one message's tokens.

    Args:
        turn: Index of the message in ``ReadConversation.roles``.
        trait: Whose raw vector.
        layer: Zero-based block index.
        coefficient: How often.
    """

    turn: int
    trait: str
    layer: int
    coefficient: float


@checked
@dataclass(frozen=True, eq=False)
class ReadVariant(Record):
    """One way that a conversation went on, token by token.

    Args:
        coefficient: Of steering; 0 is unsteered.
        texts: What the conversation's text grew by with each token; empty inside a character of several tokens.
        turns: For each token the index of its message in ``ReadConversation.roles``; -1 for the chat template's own.
        steered: Whether an intervention acted at the token, at any layer.
        projections: Of each token on each trait's unit vector after the interventions, in residual-stream units,
            traits in the order of ``ReadConversation.traits``; NaN at layers that a vector lacks.
        additions: What was added beside ``coefficient``, message by message: a chat may steer each answer otherwise.

    Raises:
        InvalidArgumentError: Lists of different lengths, or a coefficient that is not finite.
    """

    coefficient: float
    texts: tuple[str, ...]
    turns: tuple[int, ...]
    steered: Bool[Tensor, " token"]
    projections: Float[Tensor, "trait layer token"]
    additions: tuple[Addition, ...] = ()

    def __post_init__(self) -> None:
        if not math.isfinite(self.coefficient):
            raise InvalidArgumentError.of("coefficient", "be finite", self.coefficient)
        n_tokens = self.projections.shape[-1]
        for name in ("texts", "turns", "steered"):
            if len(getattr(self, name)) != n_tokens:
                rule = f"have one for each of the {n_tokens} projected tokens"
                raise InvalidArgumentError.of(name, rule, len(getattr(self, name)))


@checked
@dataclass(frozen=True, eq=False)
class ReadConversation(Record):
    """A conversation's tokens with their projections on persona vectors, under one or several steering coefficients.

    Made by :func:`read_conversation`. In a notebook it shows itself: tokens coloured by projection, sliders over layers
    and coefficients; without a kernel too.

    Args:
        model: The model.
        traits: The traits, in the order of the projections.
        roles: Whose turn each message is, the assistant's last one included.
        variants: By ascending coefficient; at least one.
        along: The trait that is steered along; empty if none is.
        layer: Zero-based block index of steering; None without.
        ordinary_mean: Mean projection of ordinary response tokens; NaN where it is not known.
        ordinary_std: Their standard deviation; NaN likewise.
        thresholds: Projection above which a token is out of the ordinary; NaN likewise.

    Raises:
        InvalidArgumentError: No variant, coefficients that do not ascend, a turn without a role, another trait, or
            shapes that do not fit each other.
        LayerOutOfRangeError: A layer that the model does not have.
    """

    model: ModelInfo
    traits: tuple[str, ...]
    roles: tuple[str, ...]
    variants: tuple[ReadVariant, ...]
    along: str
    layer: int | None
    ordinary_mean: Float[Tensor, "trait layer"]
    ordinary_std: Float[Tensor, "trait layer"]
    thresholds: Float[Tensor, "trait layer"]

    def __post_init__(self) -> None:
        coefficients = [variant.coefficient for variant in self.variants]
        if not coefficients or sorted(set(coefficients)) != coefficients:
            raise InvalidArgumentError.of("variants", "be at least one, with ascending coefficients", coefficients)
        shape = (len(self.traits), self.model.n_layers)
        if not self.traits:
            raise InvalidArgumentError.of("traits", "name at least one", self.traits)
        if self.along and self.along not in self.traits:
            raise InvalidArgumentError.of("along", f"be empty or one of the traits {self.traits}", self.along)
        if self.layer is not None:
            check_layer(self.layer, self.model.n_layers)
        for name in ("ordinary_mean", "ordinary_std", "thresholds"):
            if tuple(getattr(self, name).shape) != shape:
                rule = f"have shape (trait, layer) = {shape}"
                raise InvalidArgumentError.of(name, rule, tuple(getattr(self, name).shape))
        for index, variant in enumerate(self.variants):
            if tuple(variant.projections.shape[:2]) != shape:
                rule, got = f"begin with (trait, layer) = {shape}", tuple(variant.projections.shape)
                raise InvalidArgumentError.of(f"variants[{index}].projections", rule, got)
            strange = set(variant.turns) - set(range(-1, len(self.roles)))
            if strange:
                rule = f"be -1 or the index of one of {len(self.roles)} roles"
                raise InvalidArgumentError.of(f"variants[{index}].turns", rule, sorted(strange))
            for one in variant.additions:
                if not 0 <= one.turn < len(self.roles) or not 0 <= one.layer < self.model.n_layers:
                    rule = f"be at one of {len(self.roles)} turns and {self.model.n_layers} layers"
                    raise InvalidArgumentError.of(f"variants[{index}].additions", rule, (one.turn, one.layer))

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Of the variants."""
        return tuple(variant.coefficient for variant in self.variants)

    def of(self, coefficient: float) -> ReadVariant:
        """Return the variant of a coefficient.

        Raises:
            InvalidArgumentError: There is none.
        """
        for variant in self.variants:
            if variant.coefficient == coefficient:
                return variant
        raise InvalidArgumentError.of("coefficient", f"be one of {list(self.coefficients)}", coefficient)

    def response_mean(self, coefficient: float = 0.0) -> Float[Tensor, "trait layer"]:
        """Return the mean projection over the tokens of the last message; NaN if it has none.

        Raises:
            InvalidArgumentError: No variant of this coefficient.
        """
        variant = self.of(coefficient)
        is_last = torch.tensor(variant.turns) == len(self.roles) - 1
        return variant.projections[..., is_last].mean(dim=-1)

    def write_html(self, path: str | Path) -> None:
        """Write a page of its own, which needs neither a kernel nor a network."""
        head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(", ".join(self.traits))}</title>'
        write_text(Path(path), f"{head}\n{self._repr_html_()}\n")

    def __repr__(self) -> str:
        steered = f", steered along {self.along!r} at layer {self.layer}" if self.along else ""
        return (
            f"ReadConversation({self.model.name!r}, {len(self.roles)} turns, traits: {', '.join(self.traits)}"
            f"{steered}; coefficients {list(self.coefficients)}, {[len(one.texts) for one in self.variants]} tokens)"
        )

    def _repr_html_(self) -> str:
        from persona_lens.live.static_page import write_static  # which builds on this file

        return write_static(self)
