"""Judges: who says how strongly a response shows a trait."""

from persona_lens.judges.cache import CachedJudge, ScoreCache
from persona_lens.judges.claude import ClaudeJudge
from persona_lens.judges.coherent import CoherentJudge
from persona_lens.judges.default import default_judge
from persona_lens.judges.embedding import EmbeddingJudge, fit_embedding_judge
from persona_lens.judges.encoders import ResidualEncoder, SentenceEncoder, TextEncoder, load_sentence_encoder
from persona_lens.judges.expected_score import ExpectedScoreJudge
from persona_lens.judges.judgement import IdentifiedJudge, Judge, Judgement
from persona_lens.judges.likelihood import (
    JudgeSeparation,
    LikelihoodCalibration,
    LikelihoodJudge,
    calibrate_likelihood_judge,
    measure_separation,
)
from persona_lens.judges.openai_compatible import OpenAIJudge
from persona_lens.judges.panel import (
    Agreement,
    PanelResult,
    compare_scores,
    judge_with_panel,
    read_spot_check,
    write_spot_check,
)
from persona_lens.judges.temperature_samples import sample_temperatures
from persona_lens.judges.validation import (
    Contrast,
    JudgeValidation,
    TemperatureSamples,
    ValidatedJudge,
    shuffle_words,
    validate,
)

__all__ = [
    "Agreement", "CachedJudge", "ClaudeJudge", "CoherentJudge", "Contrast", "EmbeddingJudge", "ExpectedScoreJudge",
    "IdentifiedJudge", "Judge", "JudgeSeparation", "JudgeValidation", "Judgement", "LikelihoodCalibration",
    "LikelihoodJudge", "OpenAIJudge", "PanelResult", "ResidualEncoder", "ScoreCache", "SentenceEncoder",
    "TemperatureSamples", "TextEncoder", "ValidatedJudge", "calibrate_likelihood_judge", "compare_scores",
    "default_judge", "fit_embedding_judge", "judge_with_panel", "load_sentence_encoder", "measure_separation",
    "read_spot_check", "sample_temperatures", "shuffle_words", "validate", "write_spot_check",
]  # fmt: skip
