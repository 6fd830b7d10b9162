"""The result of experiments/layer_sweep.py, which most other experiments start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from persona_lens.evaluation.confirmation import Confirmation
from persona_lens.evaluation.sweep import SweepResult
from persona_lens.judges.likelihood import JudgeSeparation, LikelihoodCalibration
from persona_lens.plots.sweep import plot_sweep
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics.interval import Interval
from persona_lens.vectors.persona_vector import ExtractionCounts


@dataclass(frozen=True)
class JudgeNote(Record):
    """The judge that scores rest on."""

    name: str
    n_pairs: int
    calibration: LikelihoodCalibration


@dataclass(frozen=True)
class VectorNote(Record):
    """The vector that was steered with."""

    counts: ExtractionCounts
    provenance: dict[str, Any]


@dataclass(frozen=True)
class ScoreAndCoherence(Record):
    """Means over questions."""

    score: Interval
    coherence: Interval


@dataclass(frozen=True, eq=False)
class LayerSweep(Result):
    """A trait's layer sweep with all that it rests on.

    Args:
        judge: The judge.
        separation: How well the judge tells the two sides of held-out questions apart.
        vector: The vector.
        norms: Its norm at each layer, in residual-stream units.
        split_half_cosine: Cosine between two halves of the questions, for each token position and layer.
        sweep: The sweep, on every other evaluation question.
        confirmation: The chosen setting, on the rest.
    """

    judge: JudgeNote
    separation: JudgeSeparation
    vector: VectorNote
    norms: tuple[float, ...]
    split_half_cosine: dict[str, tuple[float, ...]]
    sweep: SweepResult
    confirmation: Confirmation

    @property
    def judges(self) -> dict[str, str]:
        """The trait's judge."""
        return {self.sweep.trait: self.judge.name}

    def plot(self) -> go.Figure:
        """Draw the sweep with the confirmation in its title."""
        return plot_sweep(self.sweep, self.confirmation)
