"""Persona vectors: the type, and how they are found."""

from persona_lens.vectors.again import extract_again
from persona_lens.vectors.classification import LinearClassifier, fit_classifier, score_held_out
from persona_lens.vectors.cleaned import CleanedDifference, WithoutShared
from persona_lens.vectors.contents.autoencoder_training import AutoencoderSettings, train_autoencoder
from persona_lens.vectors.contents.autoencoders import SparseAutoencoder, load_autoencoder, read_autoencoder
from persona_lens.vectors.contents.features import DecompositionCheck, FeatureCosine, check_decomposition, rank_features
from persona_lens.vectors.contents.reconstruction import Reconstruction, measure_reconstruction, read_response_tokens
from persona_lens.vectors.contents.sparse_sums import SparseSum, sum_sparsely, sum_token_directions
from persona_lens.vectors.contents.words import JacobianLayer, JacobianWords, read_jacobian_words
from persona_lens.vectors.estimators import Estimator, FirstComponent, MeanDifference, find_vector
from persona_lens.vectors.exchange.assistant_axis import read_assistant_axis, write_assistant_axis
from persona_lens.vectors.exchange.control_vectors import read_control_vector, write_control_vector
from persona_lens.vectors.exchange.directions import LayerDirections
from persona_lens.vectors.exchange.paper import read_paper_vector, write_paper_vector
from persona_lens.vectors.exchange.steering_vectors import read_steering_vector, write_steering_vector
from persona_lens.vectors.exchange.trait_interp import read_trait_interp, write_trait_interp
from persona_lens.vectors.extraction import extract_persona_vector
from persona_lens.vectors.heads import HeadChoice, HeadPairs, choose_heads, read_head_pairs
from persona_lens.vectors.last_token import read_last_tokens, read_statements
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.pairs import ActivationPairs, read_pairs, read_response_means
from persona_lens.vectors.persona_vector import TOKEN_POSITIONS, ExtractionCounts, PersonaVector, TokenPosition
from persona_lens.vectors.preference import optimise_vector
from persona_lens.vectors.probes import LogisticProbe, ShrunkLDA
from persona_lens.vectors.quality.assessing import assess_vector
from persona_lens.vectors.quality.card import NullMargin, VectorQuality
from persona_lens.vectors.quality.confounds import StyleConfound, correlate_length, measure_style
from persona_lens.vectors.quality.data import QualityData, read_quality_data
from persona_lens.vectors.quality.repeats import Repeats, compare_repeats
from persona_lens.vectors.quality.separation import Separation, cross_validate_separation, measure_separation
from persona_lens.vectors.quality.specificity import Specificity, measure_specificity
from persona_lens.vectors.quality.stability import Stability, measure_stability
from persona_lens.vectors.quality.unembedding import UnembeddedLayer, Unembedding, read_unembedding
from persona_lens.vectors.ready import list_ready_vectors, load_vector
from persona_lens.vectors.sampled import sample_pairs
from persona_lens.vectors.written import read_persona_vector

__all__ = [
    "TOKEN_POSITIONS", "ActivationPairs", "AutoencoderSettings", "CleanedDifference", "DecompositionCheck",
    "Estimator", "ExtractionCounts", "FeatureCosine", "FirstComponent", "HeadChoice", "HeadPairs", "JacobianLayer",
    "JacobianWords", "LayerDirections", "LinearClassifier", "LogisticProbe", "MeanDifference", "NullMargin",
    "OrdinaryProjections", "PersonaVector", "QualityData", "Reconstruction", "Repeats", "Separation", "ShrunkLDA",
    "SparseAutoencoder", "SparseSum", "Specificity", "Stability", "StyleConfound", "TokenPosition", "UnembeddedLayer",
    "Unembedding", "VectorQuality", "WithoutShared", "assess_vector", "check_decomposition", "choose_heads",
    "compare_repeats", "correlate_length", "cross_validate_separation", "extract_again", "extract_persona_vector",
    "find_vector", "fit_classifier", "list_ready_vectors", "load_autoencoder", "load_vector",
    "measure_reconstruction", "measure_separation", "measure_specificity", "measure_stability", "measure_style",
    "optimise_vector", "rank_features", "read_assistant_axis", "read_autoencoder", "read_control_vector",
    "read_head_pairs", "read_jacobian_words", "read_last_tokens", "read_pairs", "read_paper_vector",
    "read_persona_vector", "read_quality_data", "read_response_means", "read_response_tokens", "read_statements",
    "read_steering_vector", "read_trait_interp", "read_unembedding", "sample_pairs", "score_held_out", "sum_sparsely",
    "sum_token_directions", "train_autoencoder", "write_assistant_axis", "write_control_vector", "write_paper_vector",
    "write_steering_vector", "write_trait_interp",
]  # fmt: skip
