"""What the results of experiments on trained models have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from persona_lens.judges.likelihood import LikelihoodCalibration
from persona_lens.plots.style import COLORS
from persona_lens.statistics.interval import Interval

LEVEL_COLORS = {"normal": COLORS[0], "I": COLORS[1], "II": COLORS[3]}
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star", "cross", "pentagon", "hexagon")


@dataclass(frozen=True)
class KitJudge:
    """The judge that a trait is scored by."""

    name: str
    calibration: LikelihoodCalibration


@dataclass(frozen=True)
class Kit:
    """What a trait is measured with: vector and layer with where they are from, and the vector's norm there."""

    vector: str
    layer: int
    layer_source: str
    judge: KitJudge
    norm: float


@dataclass(frozen=True)
class ScoredModel:
    """A model's responses, scored; ``configuration`` names what intervened while they were sampled."""

    configuration: str
    score: Interval
    coherence: Interval
    by_question: tuple[float, ...]
    example: str


@dataclass(frozen=True)
class Shift:
    """A trained model's shift along a trait's vector, at the trait's layer and at every layer."""

    layer: int
    at_layer: Interval
    by_layer: tuple[float, ...]


@dataclass(frozen=True)
class Correlation:
    """A correlation over ``n`` models or datasets; too few give NaN."""

    n: int
    estimate: float
    low: float
    high: float

    @property
    def interval(self) -> Interval:
        """The correlation without its number of models."""
        return Interval(self.estimate, self.low, self.high)


class HasCoherence(Protocol):
    """What was scored and has a coherence."""

    @property
    def coherence(self) -> Interval:
        """Coherence of its responses."""


def is_coherent(measured: dict[str, HasCoherence], min_coherence: float) -> bool:
    """Whether a model's text is coherent enough under every trait for its scores to mean something."""
    return all(one.coherence.estimate >= min_coherence for one in measured.values())
