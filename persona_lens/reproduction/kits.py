"""What a trait is measured with: its judge, its vector and a layer, from earlier results where they fit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from persona_lens.judges.judgement import IdentifiedJudge
from persona_lens.judges.likelihood import LikelihoodJudge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import describe_model
from persona_lens.reproduction.arguments import BaseArguments
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.reproduction.layer_sweep import JudgeNote, LayerSweep, VectorNote
from persona_lens.reproduction.written_vectors import read_written_vector
from persona_lens.run import Run
from persona_lens.traits.trait import Trait
from persona_lens.traits.written import list_written_traits
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
        n_pairs: Most of a trait's instruction pairs.
        n_questions: Most of a trait's extraction and of its evaluation questions.
        n_examples: Most written examples of each half; None takes all.
    """

    temperature: float
    max_new_tokens: int
    extraction_rollouts: int
    rollouts: int
    n_pairs: int = field(default=5, kw_only=True)
    n_questions: int = field(default=20, kw_only=True)
    n_examples: int | None = field(default=None, kw_only=True)

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
        vector: The vector that layer_sweep.py left, if it is this model's.
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


def find_sources(model: HookedModel, trait: str, folder: Path, *, layer: int | None = None) -> Sources:
    """Look for a trait's vector and layer in the results folder.

    Args:
        model: The model.
        trait: The trait's name.
        folder: Where layer_sweep.py wrote.
        layer: The layer asked for, if any; else that of the layer sweep, else the middle one.
    """
    fingerprint, n_layers = describe_model(model).fingerprint, model.cfg.n_layers
    vector, vector_source = None, "made by this run"
    path = folder / f"vector_{trait}.safetensors"
    if path.exists():
        found = PersonaVector.load(path)
        if (found.trait, found.model.fingerprint) == (trait, fingerprint):
            vector = found
            vector_source = f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    chosen, layer_source = n_layers // 2, "middle layer"
    path = folder / f"layer_sweep_{trait}.json"
    if layer is not None:
        chosen, layer_source = check_layer(layer, n_layers), "--layer"
    elif path.exists():
        swept = LayerSweep.load(path)
        if swept.sweep.model.fingerprint == fingerprint:
            chosen, layer_source = swept.choice.layer, f"chosen by steering in {path.name}"
    return Sources(vector, vector_source, chosen, layer_source)


@dataclass(frozen=True, eq=False)
class TraitKit:
    """All that a trait is measured with, made from the base model.

    The layer is layer_sweep.py's, chosen by steering on half of the evaluation questions.

    Args:
        trait: The trait.
        judge: Says how strongly the trait shows, and how coherent a response is.
        second: Says again how strongly it shows, and shares neither model nor prompt with ``judge``; None for a trait
            without written examples, for which no such judge can be made.
        vector: The vector.
        sources: Where vector and layer are from.
    """

    trait: Trait
    judge: IdentifiedJudge
    second: IdentifiedJudge | None
    vector: PersonaVector
    sources: Sources

    @property
    def layer(self) -> int:
        """Zero-based block index at which projections are taken and vectors added."""
        return self.sources.layer

    @property
    def judge_note(self) -> JudgeNote:
        """What scores rest on."""
        if isinstance(self.judge, LikelihoodJudge):
            return JudgeNote(self.judge.name, self.judge.n_pairs, self.judge.calibration)
        return JudgeNote(self.judge.name)

    @property
    def vector_note(self) -> VectorNote:
        """What steering rests on."""
        return VectorNote(self.vector.counts, self.vector.provenance)


def prepare_kit(
    model: HookedModel, trait: Trait, sources: Sources, profile: Profile, run: Run, arguments: BaseArguments
) -> TraitKit:
    """Make a trait's judges, and its vector if none was found, as a profile says.

    A trait with written examples has two judges that were measured before they are believed, and a vector read from the
    examples; any other has the likelihood judge, which was not, and a vector of the model's own responses.

    Args:
        model: The model, unsteered.
        trait: The trait.
        sources: What is there of it from earlier runs.
        profile: How much is sampled.
        run: Keeps what is this run's own.
        arguments: Whose judges are shared with other scripts.
    """
    print(f"{trait.name}: vector {sources.vector_source}; layer {sources.layer}, {sources.layer_source}")
    shared = arguments.share(model)
    judges = prepare_judges(model, trait, profile.sample_once(arguments.seed), shared, n_examples=profile.n_examples)
    is_written = trait.name in list_written_traits()
    vector = sources.vector
    if vector is None and is_written:
        vector = read_written_vector(model, trait.name, profile.n_examples, shared)
    elif vector is None:
        sampling = profile.sample_extraction(arguments.seed)
        vector = extract_persona_vector(model, trait, judge=judges.likelihood, sampling=sampling, run=run)
    return TraitKit(trait, judges.choosing, judges.sentences if is_written else None, vector, sources)
