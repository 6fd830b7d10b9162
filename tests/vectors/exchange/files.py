"""Vectors and files for the tests of exchange."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import persona_lens as pl
from persona_lens.models.loading import ModelInfo

N_LAYERS, D_MODEL = 4, 6
INFO = ModelInfo("tiny", N_LAYERS, D_MODEL, 64, "float32", "hooked", "f" * 16, "none")
WRITERS = {
    "paper": (pl.vectors.write_paper_vector, pl.vectors.read_paper_vector),
    "assistant-axis": (pl.vectors.write_assistant_axis, pl.vectors.read_assistant_axis),
    "steering-vectors": (pl.vectors.write_steering_vector, pl.vectors.read_steering_vector),
    "trait-interp": (pl.vectors.write_trait_interp, pl.vectors.read_trait_interp),
    "gguf": (pl.vectors.write_control_vector, pl.vectors.read_control_vector),
}
# Every finite float32, subnormal numbers, negative zero and the largest included; no row of zeros, which means absence.
finite_rows = arrays.arrays(
    "float32", (N_LAYERS, D_MODEL), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
).filter(lambda rows: bool((rows != 0).any(axis=1).all()))


def make_directions(rows=None, position="response_mean"):
    if rows is None:
        rows = torch.randn(N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(0))
    vector = pl.PersonaVector("calm", INFO, {position: torch.as_tensor(rows)}, position)
    return pl.vectors.LayerDirections.of(vector)


def as_bytes(directions, layers):
    return {layer: directions.by_layer[layer].numpy().tobytes() for layer in layers}
