"""Results as Plotly figures and coloured text. Nothing here computes a result."""

from __future__ import annotations

from persona_lens.plots.agreement import plot_agreement
from persona_lens.plots.finetuning import (
    plot_finetuning_scores,
    plot_finetuning_shift,
    plot_mitigation,
    plot_trajectory,
)
from persona_lens.plots.geometry import list_written_tokens, plot_trait_geometry
from persona_lens.plots.loss import plot_loss
from persona_lens.plots.monitoring import plot_monitoring
from persona_lens.plots.predicting import plot_predictors, plot_projection_difference, plot_real_conversations
from persona_lens.plots.screening import plot_screening, report_screening
from persona_lens.plots.separation import plot_sample_separation
from persona_lens.plots.steering import plot_steering_modes, plot_token_positions
from persona_lens.plots.sweep import plot_sweep
from persona_lens.plots.tokens import plot_trace
from persona_lens.plots.traits import plot_trait_survey
from persona_lens.plots.vector import plot_vector
from persona_lens.plots.watched import plot_monitor

__all__ = [
    "list_written_tokens",
    "plot_agreement",
    "plot_finetuning_scores",
    "plot_finetuning_shift",
    "plot_loss",
    "plot_mitigation",
    "plot_monitor",
    "plot_monitoring",
    "plot_predictors",
    "plot_projection_difference",
    "plot_real_conversations",
    "plot_sample_separation",
    "plot_screening",
    "plot_steering_modes",
    "plot_sweep",
    "plot_token_positions",
    "plot_trace",
    "plot_trait_geometry",
    "plot_trait_survey",
    "plot_trajectory",
    "plot_vector",
    "report_screening",
]
