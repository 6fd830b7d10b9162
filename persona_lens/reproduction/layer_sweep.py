"""The result of experiments/layer_sweep.py, which most other experiments start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_lens.evaluation.confirmation import Confirmation
from persona_lens.evaluation.sweep import SweepResult
from persona_lens.judges.likelihood import JudgeSeparation, LikelihoodCalibration
from persona_lens.records import Record
from persona_lens.vectors.persona_vector import ExtractionCounts

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


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


@dataclass(frozen=True, eq=False, repr=False)
class LayerSweep(Record):
    """A trait's layer sweep with all that it rests on.

    Args:
        config: Model, trait, profile, seed and versions.
        judge: The judge.
        separation: How well the judge tells the two sides of held-out questions apart.
        vector: The vector.
        norms: Its norm at each layer, in residual-stream units.
        split_half_cosine: Cosine between two halves of the questions, for each token position and layer.
        sweep: The sweep, on every other evaluation question.
        confirmation: The chosen setting, on the rest.
    """

    config: dict[str, Any]
    judge: JudgeNote
    separation: JudgeSeparation
    vector: VectorNote
    norms: tuple[float, ...]
    split_half_cosine: dict[str, tuple[float, ...]]
    sweep: SweepResult
    confirmation: Confirmation

    def plot(self) -> Figure:
        """Draw the sweep with the confirmation in its title; returns a plotly Figure."""
        from persona_lens.plots.sweep import plot_sweep  # plotly is imported only when drawing

        return plot_sweep(self.sweep, self.confirmation)

    def __repr__(self) -> str:
        one = self.confirmation
        return (
            f"LayerSweep({self.sweep.trait!r} on {self.sweep.model.name!r}, layer {one.layer} × {one.coefficient:g}: "
            f"score {one.baseline} → {one.steered} on fresh questions)"
        )
