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
from persona_lens.tensors.operations import Ablate, Add, Cap, KeepNorm, Operation, restore_norm

__all__ = [
    "Ablate", "Add", "Cap", "KeepNorm", "Operation", "cosine", "layer_increments", "mean_difference", "normalize",
    "project", "project_layers", "restore_norm", "sample_random_directions",
]  # fmt: skip
