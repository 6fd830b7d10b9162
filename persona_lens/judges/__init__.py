"""Judges: who says how strongly a response shows a trait."""

from persona_lens.judges.cache import CachedJudge, ScoreCache
from persona_lens.judges.claude import ClaudeJudge
from persona_lens.judges.default import default_judge
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

__all__ = [
    "Agreement", "CachedJudge", "ClaudeJudge", "ExpectedScoreJudge", "IdentifiedJudge", "Judge", "JudgeSeparation",
    "Judgement", "LikelihoodCalibration", "LikelihoodJudge", "OpenAIJudge", "PanelResult", "ScoreCache",
    "calibrate_likelihood_judge", "compare_scores", "default_judge", "judge_with_panel", "measure_separation",
    "read_spot_check", "write_spot_check",
]  # fmt: skip
