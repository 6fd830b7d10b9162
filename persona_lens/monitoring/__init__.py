"""Does a response show the trait? Its last prompt token read before it is generated, its tokens as they come."""

from __future__ import annotations

from persona_lens.monitoring.alarms import GoOn, SteerWith, Stop, TokenReading, TokenTraitReading
from persona_lens.monitoring.answers import AnswerReading, read_answers
from persona_lens.monitoring.correlation import MonitoringCorrelation, measure_monitoring
from persona_lens.monitoring.detectors import DetectorChoice, choose_detector, project_at_every_layer
from persona_lens.monitoring.graded import GradedProjections
from persona_lens.monitoring.monitor import PersonaMonitor
from persona_lens.monitoring.ordinary_responses import OrdinaryResponses
from persona_lens.monitoring.prompts import project_last_prompt_token
from persona_lens.monitoring.readings import TraitMonitor, TurnReading
from persona_lens.monitoring.reflected import ReflectedConversations
from persona_lens.monitoring.reflecting import reflect
from persona_lens.monitoring.reflection import (
    AnotherAnswer,
    InNumbers,
    InWords,
    OtherMonitor,
    OwnAnswer,
    ReadingSource,
    Reflection,
    Remind,
    SayNothing,
    Wording,
)
from persona_lens.monitoring.score_map import ScoreMap, fit_score_map
from persona_lens.monitoring.streaming import ReadToken, stream_tokens
from persona_lens.monitoring.watched import WatchedConversation

__all__ = [
    "AnotherAnswer", "AnswerReading", "DetectorChoice", "GoOn", "GradedProjections", "InNumbers", "InWords",
    "MonitoringCorrelation", "OrdinaryResponses", "OtherMonitor", "OwnAnswer", "PersonaMonitor", "ReadToken",
    "ReadingSource", "ReflectedConversations", "Reflection", "Remind", "SayNothing", "ScoreMap", "SteerWith",
    "Stop", "TokenReading", "TokenTraitReading", "TraitMonitor", "TurnReading", "WatchedConversation", "Wording",
    "choose_detector", "fit_score_map", "measure_monitoring", "project_at_every_layer", "project_last_prompt_token",
    "read_answers", "reflect", "stream_tokens",
]  # fmt: skip
