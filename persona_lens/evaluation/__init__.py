"""Conditions and their scores: what is done to a model, what it then says, and at what cost."""

from persona_lens.evaluation.capability import Capability, measure_capability
from persona_lens.evaluation.conditions import Condition, ConditionScores, rescore, score_conditions, score_responses
from persona_lens.evaluation.confirmation import Confirmation, confirm_choice
from persona_lens.evaluation.conversing import Conversations, converse
from persona_lens.evaluation.drift import Course, Drift
from persona_lens.evaluation.drift_measurement import measure_drift
from persona_lens.evaluation.multiple_choice import MultipleChoiceItem, load_multiple_choice
from persona_lens.evaluation.null_margin import measure_null_margin
from persona_lens.evaluation.ordinary import measure_ordinary_projections
from persona_lens.evaluation.statement_judgement import judge_statements
from persona_lens.evaluation.strength import SteeringStrength, calibrate
from persona_lens.evaluation.sweep import LayerChoice, RandomNull, SweepResult, sweep_layers
from persona_lens.evaluation.tracing import Trace, trace

__all__ = [
    "Capability", "Condition", "ConditionScores", "Confirmation", "Conversations", "Course", "Drift", "LayerChoice",
    "MultipleChoiceItem", "RandomNull", "SteeringStrength", "SweepResult", "Trace", "calibrate", "confirm_choice",
    "converse", "judge_statements", "load_multiple_choice", "measure_capability", "measure_drift",
    "measure_null_margin", "measure_ordinary_projections", "rescore", "score_conditions", "score_responses",
    "sweep_layers", "trace",
]  # fmt: skip
