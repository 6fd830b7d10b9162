"""Persona vectors: the type, and how they are found."""

from persona_lens.vectors.estimators import Estimator, MeanDifference, find_vector
from persona_lens.vectors.extraction import extract_persona_vector
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.pairs import ActivationPairs, read_pairs
from persona_lens.vectors.persona_vector import TOKEN_POSITIONS, ExtractionCounts, PersonaVector, TokenPosition
from persona_lens.vectors.ready import list_ready_vectors, load_vector
from persona_lens.vectors.written import read_persona_vector

__all__ = [
    "TOKEN_POSITIONS", "ActivationPairs", "Estimator", "ExtractionCounts", "MeanDifference", "OrdinaryProjections",
    "PersonaVector", "TokenPosition", "extract_persona_vector", "find_vector", "list_ready_vectors", "load_vector",
    "read_pairs", "read_persona_vector",
]  # fmt: skip
