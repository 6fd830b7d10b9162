"""Results as Plotly figures and coloured text. Nothing here computes a result."""

from __future__ import annotations

from persona_lens.plots.agreement import plot_agreement
from persona_lens.plots.drift import plot_drift
from persona_lens.plots.heads import plot_heads
from persona_lens.plots.loss import plot_loss
from persona_lens.plots.monitoring import plot_monitoring
from persona_lens.plots.quality import plot_quality
from persona_lens.plots.screening import plot_screening, report_screening
from persona_lens.plots.shift import plot_shift
from persona_lens.plots.signal import plot_signal
from persona_lens.plots.sweep import plot_sweep
from persona_lens.plots.tokens import plot_trace
from persona_lens.plots.vector import plot_vector
from persona_lens.plots.watched import plot_monitor

__all__ = [
    "plot_agreement", "plot_drift", "plot_heads", "plot_loss", "plot_monitor", "plot_monitoring",
    "plot_quality", "plot_screening", "plot_shift", "plot_signal", "plot_sweep", "plot_trace", "plot_vector",
    "report_screening",
]  # fmt: skip
