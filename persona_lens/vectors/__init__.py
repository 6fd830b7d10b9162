"""Persona vectors: the type, and how they are found."""

from persona_lens.vectors.extraction import extract_persona_vector
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.persona_vector import TOKEN_POSITIONS, ExtractionCounts, PersonaVector, TokenPosition
from persona_lens.vectors.ready import list_ready_vectors, load_vector
from persona_lens.vectors.written import read_persona_vector

__all__ = [
    "TOKEN_POSITIONS", "ExtractionCounts", "OrdinaryProjections", "PersonaVector", "TokenPosition",
    "extract_persona_vector", "list_ready_vectors", "load_vector", "read_persona_vector",
]  # fmt: skip
