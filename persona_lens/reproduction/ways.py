"""Ways to steer, each with a strength that is set by what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.interventions.hooks import intervention_hooks
from persona_lens.models.engine.activations import cache_residual_stream
from persona_lens.models.engine.divergence import token_divergence
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.hooks.points import attached
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.spans import TokenSpans
from persona_lens.records import Record

# A strength meets a divergence if it is as near as this, as a ratio; so many trials are made for each.
_TOLERANCE = 1.08
_MOST_TRIALS = 8


@dataclass(frozen=True, eq=False)
class Way:
    """How a direction was found, and what is done with it.

    Args:
        estimator: What found it.
        intervention: What is done.
        make: From a strength above 0, which moves more the higher it is.
        most: The highest strength that means anything.
        start: A strength to begin a search with.
    """

    estimator: str
    intervention: str
    make: Callable[[float], Intervention]
    most: float = 1e4
    start: float = 1.0

    @property
    def name(self) -> str:
        """Both in one text."""
        return f"{self.estimator}, {self.intervention}"


@dataclass(frozen=True)
class Strength(Record):
    """A way's strength, and what it costs.

    Args:
        strength: In the intervention's own unit.
        kl: From the unsteered to the steered next-token distributions, in nats a token of the meter's responses.
    """

    strength: float
    kl: float


class DivergenceMeter:
    """Measures how far interventions move the next-token distributions of responses; without them they are read once.

    Args:
        model: The model, unsteered.
        spans: The responses.
    """

    def __init__(self, model: HookedModel, spans: Sequence[TokenSpans]) -> None:
        self.model = model
        self.spans = spans
        self.padded = pad_right([span.tokens for span in self.spans])
        self.plain = self._predict(NOTHING)

    def measure(self, intervention: Intervention) -> float:
        """Return the mean divergence from the unsteered model, in nats a token."""
        by_response = [
            token_divergence(plain, steered).double().mean()
            for plain, steered in zip(self.plain, self._predict(intervention), strict=True)
        ]
        return float(torch.stack(by_response).mean())

    def read_tokens(self, layer: int) -> Float[Tensor, "token d_model"]:
        """Return the residual stream after a layer, at every token of the responses, unsteered."""
        residual = cache_residual_stream(self.model, self.padded.tokens, is_padding=self.padded.is_padding)[layer]
        rows = [residual[row, span.response_start : span.response_end] for row, span in enumerate(self.spans)]
        return torch.cat(rows).float().cpu()

    def _predict(self, intervention: Intervention) -> list[Tensor]:
        """Return each response's logits, in the model's dtype."""
        lengths = [span.response_start for span in self.spans]
        hooks = intervention_hooks(intervention, positions="response", prompt_length=lengths) if intervention else []
        device = self.model.cfg.device
        with torch.no_grad(), attached(self.model, hooks):
            mask = (~self.padded.is_padding).long().to(device)
            logits = self.model(self.padded.tokens.to(device), return_type="logits", attention_mask=mask)
        rows = enumerate(self.spans)
        return [logits[row, span.response_start - 1 : span.response_end - 1].clone() for row, span in rows]


def find_strengths(way: Way, meter: DivergenceMeter, targets: Sequence[float]) -> list[Strength]:
    """Find the strengths that cost given divergences, ascending; the strongest there is where none costs as much."""
    known = []

    def measure(strength: float) -> Strength:
        known.append(Strength(strength, meter.measure(way.make(strength))))
        return known[-1]

    latest = measure(min(way.start, way.most))
    found = []
    for target in targets:
        for _ in range(_MOST_TRIALS):
            nearest = min(known, key=lambda one: _distance(one.kl, target))
            if _distance(nearest.kl, target) <= math.log(_TOLERANCE):
                break
            guess = _guess(sorted(known, key=lambda one: one.strength), target)
            if guess >= way.most and latest.strength == way.most:
                break
            latest = measure(min(guess, way.most))
        found.append(min(known, key=lambda one: _distance(one.kl, target)))
    return found


def _distance(kl: float, target: float) -> float:
    """Return how far apart two divergences are, in logarithms."""
    return abs(math.log(kl / target)) if kl > 0 else math.inf


def _guess(known: Sequence[Strength], target: float) -> float:
    """Guess the strength that costs a divergence: between two that are known, or by its growth with the square."""
    for weak, strong in pairwise(known):
        if weak.kl <= target <= strong.kl:
            share = math.log(target / weak.kl) / math.log(strong.kl / weak.kl) if weak.kl > 0 else 0.5
            return weak.strength * math.pow(strong.strength / weak.strength, min(max(share, 0.1), 0.9))
    outer = known[-1] if known[-1].kl < target else known[0]
    factor = math.sqrt(target / outer.kl) if outer.kl > 0 else 4.0
    return outer.strength * min(max(factor, 0.25), 4.0)
