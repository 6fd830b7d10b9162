"""Typed tensor operations: directions, projections, pooling, and what can be done to activations."""

from persona_lens.tensors.directions import (
    cosine,
    layer_increments,
    mean_difference,
    normalize,
    project,
    project_layers,
    sample_random_directions,
)
from persona_lens.tensors.gating import Gate
from persona_lens.tensors.operations import Ablate, Add, Cap, KeepNorm, Operation, restore_norm
from persona_lens.tensors.rotation import Rotate
from persona_lens.tensors.subspace import AblateSubspace

__all__ = [
    "Ablate", "AblateSubspace", "Add", "Cap", "Gate", "KeepNorm", "Operation", "Rotate", "cosine", "layer_increments",
    "mean_difference", "normalize", "project", "project_layers", "restore_norm", "sample_random_directions",
]  # fmt: skip
