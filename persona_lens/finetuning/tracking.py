"""Persona projections watched while a model is being fine-tuned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from persona_lens.errors import InvalidArgumentError, describe_violation
from persona_lens.finetuning.blocks import TrainingInterventions, reading_residuals
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.text.chat import build_messages, encode_prompt
from persona_lens.models.text.padding import pad_right
from persona_lens.vectors.persona_vector import PersonaVector

_ROWS_AT_ONCE = 16


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
                raise InvalidArgumentError(describe_violation(name, rule, sorted(mapping)))
        unknown = sorted((self.limits or {}).keys() - self.vectors.keys())
        if unknown:
            raise InvalidArgumentError(describe_violation("limits", "have names of `vectors`", unknown))
        if not self.vectors or not all(self.questions.values()):
            raise InvalidArgumentError(
                describe_violation("questions", "hold a question for each trait", self.questions)
            )
        if self.every < 1:
            raise InvalidArgumentError(describe_violation("every", "be at least 1", self.every))
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


class TrackingCallback(TrainerCallback):
    """Measures what a :class:`Tracker` asks for; a Hugging Face Trainer callback.

    Args:
        tracker: What to measure.
        tokenizer: The model's.
        active: Interventions to switch off meanwhile.
    """

    def __init__(self, tracker: Tracker, tokenizer: Any, active: TrainingInterventions) -> None:
        self.tracker = tracker
        self.measured: list[dict[str, Any]] = []
        self._active = active
        self._prompts = {
            trait: [encode_prompt(tokenizer, build_messages(question)).tokens for question in asked]
            for trait, asked in tracker.questions.items()
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Measure before the first step; a resumed run reads what was measured before it was killed."""
        self.measured = [entry for entry in state.log_history if "projections" in entry]
        if not self.measured:
            self._measure(given["model"], state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Measure after every few steps and after the last one."""
        if state.global_step % self.tracker.every == 0 or state.global_step == state.max_steps:
            self._measure(given["model"], state, control)

    def _measure(self, model: Any, state: Any, control: Any) -> None:
        projections = {trait: self._project(model, trait) for trait in self.tracker.vectors}
        self.measured.append({"step": state.global_step, "projections": projections})
        state.log_history.append(self.measured[-1])  # kept in the checkpoints
        before = self.measured[0]["projections"]
        for trait, limit in (self.tracker.limits or {}).items():
            layer = self.tracker.layers[trait]
            moved = _mean(projections[trait]) - _mean(before[trait])
            if moved > limit * float(self.tracker.vectors[trait].norms[layer]):
                control.should_training_stop = True

    @torch.no_grad()
    def _project(self, model: Any, trait: str) -> list[float]:
        """Return each question's projection at the last prompt token."""
        layer, prompts = self.tracker.layers[trait], self._prompts[trait]
        was_training = model.training
        model.eval()
        found = []
        device = next(model.parameters()).device
        unit = self.tracker.vectors[trait].unit(layer).to(device)
        with self._active.switched_off(), reading_residuals(model, [layer]) as residuals:
            for at in range(0, len(prompts), _ROWS_AT_ONCE):
                rows = pad_right(prompts[at : at + _ROWS_AT_ONCE])
                mask = (~rows.is_padding).long().to(device)
                # One position's logits, as none are wanted.
                model(input_ids=rows.tokens.to(device), attention_mask=mask, logits_to_keep=1)
                found += (rows.take_last(residuals[layer]).float() @ unit).tolist()
        model.train(was_training)
        return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
