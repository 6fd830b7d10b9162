"""What a trait is measured with: its judge, its vector and a layer, from earlier results where they fit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from persona_lens.judges.likelihood import LikelihoodJudge, calibrate_likelihood_judge
from persona_lens.models.engine.sampling import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import describe_model
from persona_lens.reproduction.layer_sweep import JudgeNote, LayerSweep, VectorNote
from persona_lens.run import Run
from persona_lens.traits.trait import Trait
from persona_lens.vectors.extraction import extract_persona_vector
from persona_lens.vectors.persona_vector import PersonaVector


@dataclass(frozen=True)
class Profile:
    """How much is sampled, whatever is measured.

    Args:
        temperature: Of every response.
        max_new_tokens: Of every response that is scored or that a vector is made from.
        extraction_rollouts: Responses per question and instruction that a vector is made from.
        rollouts: Responses per question that are scored.
        judge_pairs: Instruction pairs of the judge.
        n_pairs: Most of a trait's instruction pairs.
        n_questions: Most of a trait's extraction and of its evaluation questions.
    """

    temperature: float
    max_new_tokens: int
    extraction_rollouts: int
    rollouts: int
    judge_pairs: int
    n_pairs: int = field(default=5, kw_only=True)
    n_questions: int = field(default=20, kw_only=True)

    def sample(self, seed: int) -> Sampling:
        """Return how the responses are drawn that are scored."""
        return Sampling(self.max_new_tokens, self.temperature, rollouts=self.rollouts, seed=seed)

    def sample_once(self, seed: int) -> Sampling:
        """Return how one response is drawn to each question."""
        return replace(self.sample(seed), rollouts=1)

    def sample_extraction(self, seed: int) -> Sampling:
        """Return how the responses are drawn that a vector is made from."""
        return replace(self.sample(seed), rollouts=self.extraction_rollouts)


@dataclass(frozen=True, eq=False)
class Sources:
    """What is there of a trait from earlier runs: parts of a new run's configuration, as they come from outside it.

    Args:
        vector: The vector that layer_sweep.py left, if it is this model's and was made as asked.
        vector_source: Where the vector is from.
        layer: Zero-based block index.
        layer_source: Who chose it.
    """

    vector: PersonaVector | None
    vector_source: str
    layer: int
    layer_source: str

    def describe(self) -> dict[str, Any]:
        """Return the sources as JSON-able values."""
        return {"vector": self.vector_source, "layer": self.layer, "layer_source": self.layer_source}


def find_sources(
    model: HookedModel, trait: str, folder: Path, *, layer: int | None = None, made_by: Sampling | None = None
) -> Sources:
    """Look for a trait's vector and layer in the results folder.

    Args:
        model: The model.
        trait: The trait's name.
        folder: Where layer_sweep.py wrote.
        layer: The layer asked for, if any; else that of the layer sweep, else the middle one.
        made_by: The sampling that a vector must have been made with; None takes any.
    """
    fingerprint, n_layers = describe_model(model).fingerprint, model.cfg.n_layers
    vector, vector_source = None, "extracted by this run"
    path = folder / f"vector_{trait}.safetensors"
    if path.exists():
        found = PersonaVector.load(path)
        names = ("rollouts", "max_new_tokens", "temperature", "seed")
        is_as_asked = made_by is None or all(found.provenance.get(n) == getattr(made_by, n) for n in names)
        if is_as_asked and (found.trait, found.model.fingerprint) == (trait, fingerprint):
            vector = found
            vector_source = f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    chosen, layer_source = n_layers // 2, "middle layer"
    path = folder / f"layer_sweep_{trait}.json"
    if layer is not None:
        chosen, layer_source = check_layer(layer, n_layers), "--layer"
    elif path.exists():
        swept = LayerSweep.load(path)
        if swept.sweep.model.fingerprint == fingerprint:
            chosen, layer_source = swept.confirmation.layer, f"chosen by steering in {path.name}"
    return Sources(vector, vector_source, chosen, layer_source)


@dataclass(frozen=True, eq=False)
class TraitKit:
    """All that a trait is measured with, made from the base model.

    Judge and vector come from extraction questions. The layer is layer_sweep.py's, chosen by steering on half of the
    evaluation questions.
    """

    trait: Trait
    judge: LikelihoodJudge
    vector: PersonaVector
    sources: Sources

    @property
    def layer(self) -> int:
        """Zero-based block index at which projections are taken and vectors added."""
        return self.sources.layer

    @property
    def judge_note(self) -> JudgeNote:
        """What scores rest on."""
        return JudgeNote(self.judge.name, self.judge.n_pairs, self.judge.calibration)

    @property
    def vector_note(self) -> VectorNote:
        """What steering rests on."""
        return VectorNote(self.vector.counts, self.vector.provenance)


def prepare_kit(model: HookedModel, trait: Trait, sources: Sources, profile: Profile, seed: int, run: Run) -> TraitKit:
    """Calibrate a trait's judge, and extract its vector if none was found, as a profile says."""
    print(f"{trait.name}: vector {sources.vector_source}; layer {sources.layer}, {sources.layer_source}")
    judge = calibrate_likelihood_judge(
        model, trait, n_pairs=profile.judge_pairs, sampling=profile.sample_once(seed), run=run
    )
    vector = sources.vector or extract_persona_vector(
        model, trait, judge=judge, sampling=profile.sample_extraction(seed), run=run
    )
    return TraitKit(trait, judge, vector, sources)
