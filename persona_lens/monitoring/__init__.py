"""Will the next response show the trait? The last prompt token's projection, read before anything is generated."""

from __future__ import annotations

from persona_lens.monitoring.correlation import MonitoringCorrelation, measure_monitoring
from persona_lens.monitoring.detectors import DetectorChoice, choose_detector, project_at_every_layer
from persona_lens.monitoring.graded import GradedProjections
from persona_lens.monitoring.monitor import PersonaMonitor
from persona_lens.monitoring.prompts import project_last_prompt_token
from persona_lens.monitoring.readings import TraitMonitor, TurnReading
from persona_lens.monitoring.score_map import ScoreMap, fit_score_map
from persona_lens.monitoring.streaming import ReadToken, stream_tokens
from persona_lens.monitoring.watched import WatchedConversation

__all__ = [
    "DetectorChoice", "GradedProjections", "MonitoringCorrelation", "PersonaMonitor", "ReadToken", "ScoreMap",
    "TraitMonitor", "TurnReading", "WatchedConversation", "choose_detector", "fit_score_map", "measure_monitoring",
    "project_at_every_layer", "project_last_prompt_token", "stream_tokens",
]  # fmt: skip
