"""What the page works with: a model, vectors, where they act, and what is known of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.interventions.from_vectors import steer
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import describe_model
from persona_lens.models.text.templates import TemplateArguments, freeze_arguments
from persona_lens.monitoring.monitor import PersonaMonitor
from persona_lens.monitoring.readings import TraitMonitor
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.tried import read_tried


@dataclass(frozen=True, eq=False)
class Setup:
    """What a page works with, checked.

    Args:
        model: The model.
        vectors: By trait.
        layers: Where each vector acts, by trait.
        monitor: Knows what is ordinary before an answer; None without.
        ordinary: What is ordinary at a token, for some of the traits.
        sampling: How answers are drawn if the page says nothing else.
        template_arguments: What the chat template reads besides the messages.
    """

    model: HookedModel
    vectors: Mapping[str, PersonaVector]
    layers: Mapping[str, int]
    monitor: PersonaMonitor | None
    ordinary: Mapping[str, OrdinaryProjections]
    sampling: Sampling
    template_arguments: TemplateArguments | None = None

    @classmethod
    def of(
        cls,
        model: HookedModel,
        vectors: Mapping[str, PersonaVector],
        layers: Mapping[str, int] | None,
        monitor: PersonaMonitor | None,
        ordinary: Mapping[str, OrdinaryProjections] | None,
        sampling: Sampling,
        template_arguments: TemplateArguments | None = None,
    ) -> Setup:
        """Check all of it against the model and each other.

        Raises:
            InvalidArgumentError: No vectors, traits that are not among them, a vector of which nothing says where it
                acts, or template arguments that the template does not read.
            ModelMismatchError: A vector, a monitor or what is ordinary, of another model.
            LayerOutOfRangeError: A layer that the model does not have.
        """
        if not vectors:
            raise InvalidArgumentError.of("vectors", "hold at least one vector", vectors)
        given, known = dict(layers or {}), dict(ordinary or {})
        for name, named in (("layers", given), ("ordinary", known)):
            if strange := sorted(set(named) - set(vectors)):
                raise InvalidArgumentError.of(name, f"be of traits of `vectors`, {list(vectors)}", strange)
        for trait, vector in vectors.items():
            vector.check_model(model)
            read_tried(vector)  # refused here if it is none, not where the page asks for it
            if trait not in given:
                given[trait] = _require_tried_layer(trait, vector)
            check_layer(given[trait], vector.model.n_layers)
            vector.check_layer(given[trait])
        for trait, one in known.items():
            one.check_vector(vectors[trait])
        if monitor is not None:
            if monitor.model.fingerprint != (info := describe_model(model)).fingerprint:
                raise ModelMismatchError.of("monitor", f"be of the model, {info.name}", monitor.model.name)
            if strange := [one.trait for one in monitor.traits if one.trait not in vectors]:
                rule = f"watch traits of `vectors` alone, {list(vectors)}"
                raise InvalidArgumentError.of("monitor", rule, strange, "Give their vectors too.")
        freeze_arguments(model.tokenizer, template_arguments)
        return cls(model, dict(vectors), given, monitor, known, sampling, template_arguments)

    def steer(self, coefficients: Mapping[str, float]) -> Intervention:
        """Return what adds each vector so many times, at its own layer."""
        intervention = NOTHING
        for trait, coefficient in coefficients.items():
            if coefficient:
                intervention += steer(self.vectors[trait], layer=self.layers[trait], coefficient=coefficient)
        return intervention

    def describe(self) -> dict[str, Any]:
        """Return what the page shows before anything is asked."""
        watched = {} if self.monitor is None else {one.trait: one for one in self.monitor.traits}
        traits = []
        for trait, vector in self.vectors.items():
            layer, tried = self.layers[trait], read_tried(vector)
            usual = tried.coefficient if tried.layer == layer else None
            known, monitor = self.ordinary.get(trait), watched.get(trait)
            traits.append(
                {
                    "name": trait,
                    "layer": layer,
                    "tried": usual,
                    # Twice what was tried is seldom coherent; a vector that was tried nowhere has a usual beginning.
                    "reach": math.ceil(2 * abs(usual or 2.0)),
                    "ordinaryMean": None if known is None else write_finite(known.mean.tolist()),
                    "monitor": None if monitor is None else _describe_monitor(monitor, vector),
                }
            )
        return {
            "model": describe_model(self.model).name,
            "nLayers": self.model.cfg.n_layers,
            "traits": traits,
            "maxNewTokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature,
            "seed": self.sampling.seed,
        }


def _describe_monitor(monitor: TraitMonitor, vector: PersonaVector) -> dict[str, Any]:
    """Return a monitor's thresholds: for prompts, and for answers where it reads them along this very vector."""
    is_same = torch.allclose(monitor.unit, vector.units[monitor.layer], atol=1e-5)
    return {
        "layer": monitor.layer,
        "quantiles": list(monitor.quantiles),
        "thresholds": list(monitor.thresholds),
        "answerThresholds": list(monitor.response_thresholds) if is_same else [],
    }


def write_finite(values: Sequence[float]) -> list[float | None]:
    """Return numbers as the page shows them; JSON knows no others than finite ones."""
    return [round(value, 3) if math.isfinite(value) else None for value in values]


def _require_tried_layer(trait: str, vector: PersonaVector) -> int:
    layer = read_tried(vector).layer
    if layer is None:
        rule = f"say where the vector of {trait!r} acts, as it was tried nowhere"
        hint = f"layers={{{trait!r}: {vector.model.n_layers // 2}}} is a beginning; sweep_layers finds a layer."
        raise InvalidArgumentError.of("layers", rule, None, hint)
    return layer
