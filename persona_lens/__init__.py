"""persona_lens: persona vectors for TransformerLens models.

Find the direction of a character trait in a model's residual stream, choose a layer for it, steer along it, watch it,
keep fine-tuning from moving it, and screen training data for it. Method: "Persona Vectors" (arXiv 2507.21509).

The names here are those that a notebook needs; everything else is one room further: ``pl.judges``, ``pl.evaluation``,
``pl.interventions``, ``pl.monitoring``, ``pl.finetuning``, ``pl.screening``, ``pl.space``, ``pl.distributed``,
``pl.tensors``, ``pl.plots`` and others.
"""

import sys as _sys
from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:  # for type checkers; at run time a name is imported when it is first asked for, see __getattr__
    from persona_lens import (
        conversations,
        diagnosis,
        distributed,
        errors,
        evaluation,
        finetuning,
        interventions,
        judges,
        live,
        models,
        monitoring,
        planning,
        records,
        screening,
        space,
        statistics,
        storage,
        tensors,
        traits,
        vectors,
    )
    from persona_lens.conversations import read_conversations
    from persona_lens.diagnosis.examination import doctor
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
    from persona_lens.models.engine.requests import Sampling
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
    "diagnosis",
    "distributed",
    "doctor",
    "errors",
    "evaluation",
    "extract_persona_vector",
    "finetune",
    "finetuning",
    "hooked",
    "interventions",
    "judges",
    "list_traits",
    "live",
    "load_model",
    "load_trait",
    "load_vector",
    "measure_capability",
    "measure_ordinary_projections",
    "measure_shift",
    "models",
    "monitoring",
    "plan_prevention",
    "planning",
    "plots",
    "progress",
    "project",
    "read_conversations",
    "read_persona_vector",
    "records",
    "score_conditions",
    "screen",
    "screening",
    "space",
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


# Where each name is that is no room.
_HOMES = {
    "Condition": "evaluation.conditions",
    "FinetuneSettings": "finetuning.settings",
    "Intervention": "models.hooks.intervention",
    "PersonaMonitor": "monitoring.monitor",
    "PersonaVector": "vectors.persona_vector",
    "Run": "run",
    "Sampling": "models.engine.requests",
    "ShardStore": "storage",
    "Trait": "traits.trait",
    "ablate": "interventions.from_vectors",
    "ablation_hooks": "interventions.hooks",
    "ask": "models.engine.answers",
    "cache_residual_stream": "models.engine.activations",
    "calibrate": "evaluation.strength",
    "cap": "interventions.from_vectors",
    "capping_hooks": "interventions.hooks",
    "confirm_choice": "evaluation.confirmation",
    "cosine": "tensors.directions",
    "describe_model": "models.loading",
    "doctor": "diagnosis.examination",
    "extract_persona_vector": "vectors.extraction",
    "finetune": "finetuning.training",
    "hooked": "interventions.hooks",
    "list_traits": "traits.library",
    "load_model": "models.loading",
    "load_trait": "traits.library",
    "load_vector": "vectors.ready",
    "measure_capability": "evaluation.capability",
    "measure_ordinary_projections": "evaluation.ordinary",
    "measure_shift": "finetuning.shift",
    "plan_prevention": "finetuning.planning",
    "progress": "progress_bars",
    "project": "tensors.directions",
    "read_conversations": "conversations",
    "read_persona_vector": "vectors.written",
    "score_conditions": "evaluation.conditions",
    "screen": "screening.screen",
    "steer": "interventions.from_vectors",
    "steering": "interventions.hooks",
    "steering_hooks": "interventions.hooks",
    "sweep_layers": "evaluation.sweep",
    "trace": "evaluation.tracing",
    "trait_dataset": "finetuning.trait_data",
}


def __getattr__(name: str) -> _Any:
    """Import a name when it is first asked for: the command's help needs neither torch nor TransformerLens."""
    if name not in __all__:
        raise AttributeError(f"module 'persona_lens' has no attribute {name!r}")
    home = _import_module(f"persona_lens.{_HOMES.get(name, name)}")
    value = getattr(home, name) if name in _HOMES else home
    setattr(_sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return __all__
