"""Does a response show the trait? Its last prompt token read before it is generated, its tokens as they come."""

from __future__ import annotations

from persona_lens.monitoring.alarms import GoOn, SteerWith, Stop, TokenReading, TokenTraitReading
from persona_lens.monitoring.correlation import MonitoringCorrelation, measure_monitoring
from persona_lens.monitoring.detectors import DetectorChoice, choose_detector, project_at_every_layer
from persona_lens.monitoring.graded import GradedProjections
from persona_lens.monitoring.monitor import PersonaMonitor
from persona_lens.monitoring.ordinary_responses import OrdinaryResponses
from persona_lens.monitoring.prompts import project_last_prompt_token
from persona_lens.monitoring.readings import TraitMonitor, TurnReading
from persona_lens.monitoring.score_map import ScoreMap, fit_score_map
from persona_lens.monitoring.streaming import ReadToken, stream_tokens
from persona_lens.monitoring.watched import WatchedConversation

__all__ = [
    "DetectorChoice", "GoOn", "GradedProjections", "MonitoringCorrelation", "OrdinaryResponses", "PersonaMonitor",
    "ReadToken", "ScoreMap", "SteerWith", "Stop", "TokenReading", "TokenTraitReading", "TraitMonitor", "TurnReading",
    "WatchedConversation", "choose_detector", "fit_score_map", "measure_monitoring", "project_at_every_layer",
    "project_last_prompt_token", "stream_tokens",
]  # fmt: skip
