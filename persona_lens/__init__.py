"""persona_lens: persona vectors for TransformerLens models.

Find the direction of a character trait in a model's residual stream, choose a layer for it, steer along it, watch it,
keep fine-tuning from moving it, and screen training data for it. Method: "Persona Vectors" (arXiv 2507.21509).

The names here are those that a notebook needs; everything else is one room further: ``pl.judges``, ``pl.evaluation``,
``pl.interventions``, ``pl.monitoring``, ``pl.finetuning``, ``pl.screening``, ``pl.tensors``, ``pl.plots`` and others.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import Any as _Any

from persona_lens import (
    conversations,
    errors,
    evaluation,
    finetuning,
    interventions,
    judges,
    models,
    monitoring,
    records,
    screening,
    statistics,
    storage,
    tensors,
    traits,
    vectors,
)
from persona_lens.conversations import read_conversations
from persona_lens.evaluation.capability import measure_capability
from persona_lens.evaluation.conditions import Condition, score_conditions
from persona_lens.evaluation.confirmation import confirm_choice
from persona_lens.evaluation.ordinary import measure_ordinary_projections
from persona_lens.evaluation.strength import calibrate
from persona_lens.evaluation.sweep import sweep_layers
from persona_lens.evaluation.tracing import trace
from persona_lens.finetuning.planning import plan_prevention
from persona_lens.finetuning.settings import FinetuneSettings
from persona_lens.finetuning.shift import measure_shift
from persona_lens.finetuning.training import finetune
from persona_lens.finetuning.trait_data import trait_dataset
from persona_lens.interventions.from_vectors import ablate, cap, steer
from persona_lens.interventions.hooks import ablation_hooks, capping_hooks, hooked, steering, steering_hooks
from persona_lens.models.engine.activations import cache_residual_stream
from persona_lens.models.engine.answers import ask
from persona_lens.models.engine.sampling import Sampling
from persona_lens.models.hooks.intervention import Intervention
from persona_lens.models.loading import describe_model, load_model
from persona_lens.monitoring.monitor import PersonaMonitor
from persona_lens.progress_bars import progress
from persona_lens.run import Run
from persona_lens.screening.screen import screen
from persona_lens.storage import ShardStore
from persona_lens.tensors.directions import cosine, project
from persona_lens.traits.library import list_traits, load_trait
from persona_lens.traits.trait import Trait
from persona_lens.vectors.extraction import extract_persona_vector
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.ready import load_vector
from persona_lens.vectors.written import read_persona_vector

__version__ = _version("persona-lens")

__all__ = [
    "Condition",
    "FinetuneSettings",
    "Intervention",
    "PersonaMonitor",
    "PersonaVector",
    "Run",
    "Sampling",
    "ShardStore",
    "Trait",
    "__version__",
    "ablate",
    "ablation_hooks",
    "ask",
    "cache_residual_stream",
    "calibrate",
    "cap",
    "capping_hooks",
    "confirm_choice",
    "conversations",
    "cosine",
    "describe_model",
    "errors",
    "evaluation",
    "extract_persona_vector",
    "finetune",
    "finetuning",
    "hooked",
    "interventions",
    "judges",
    "list_traits",
    "load_model",
    "load_trait",
    "load_vector",
    "measure_capability",
    "measure_ordinary_projections",
    "measure_shift",
    "models",
    "monitoring",
    "plan_prevention",
    "plots",
    "progress",
    "project",
    "read_conversations",
    "read_persona_vector",
    "records",
    "score_conditions",
    "screen",
    "screening",
    "statistics",
    "steer",
    "steering",
    "steering_hooks",
    "storage",
    "sweep_layers",
    "tensors",
    "trace",
    "trait_dataset",
    "traits",
    "vectors",
]


def __getattr__(name: str) -> _Any:
    """Load the figures' room when it is first asked for: plotly takes a second."""
    if name == "plots":
        return _import_module("persona_lens.plots")
    raise AttributeError(f"module 'persona_lens' has no attribute {name!r}")
