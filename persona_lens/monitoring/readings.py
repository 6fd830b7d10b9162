"""What a monitor knows about one trait, and how it judges one projection."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.monitoring.alarms import TokenTraitReading
from persona_lens.monitoring.correlation import MonitoringCorrelation
from persona_lens.monitoring.ordinary_responses import OrdinaryResponses
from persona_lens.monitoring.score_map import ScoreMap
from persona_lens.records import Record
from persona_lens.statistics import Interval


@checked
@dataclass(frozen=True, eq=False)
class TraitMonitor(Record):
    """What a monitor knows about one trait.

    Args:
        trait: The trait's name.
        layer: Zero-based block index.
        position: Token position that the direction was taken from.
        unit: The unit direction.
        ordinary: Projections of ordinary prompts, ascending.
        quantiles: Ordinary fractions that the thresholds stand for, ascending.
        correlation: How well projections predict scores; None if no graded prompts were given.
        score_map: From projection to expected score; None without graded prompts.
        responses: What is ordinary while a response is given; None if that was not measured.
    """

    trait: str
    layer: int
    position: str
    unit: Float[Tensor, " d_model"]
    ordinary: tuple[float, ...]
    quantiles: tuple[float, ...]
    correlation: MonitoringCorrelation | None = None
    score_map: ScoreMap | None = None
    responses: OrdinaryResponses | None = None

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Projections below which the ``quantiles`` of the ordinary prompts lie."""
        return tuple(float(q) for q in np.quantile(self.ordinary, self.quantiles))

    @cached_property
    def response_thresholds(self) -> tuple[float, ...]:
        """Running means that the ``quantiles`` of ordinary responses never exceed; empty if these were not measured.

        Of the responses that are long enough to be judged.
        """
        return () if self.responses is None else self.responses.list_thresholds(self.quantiles)

    @property
    def verdict(self) -> str:
        """Why no score is expected from this trait's projections; empty if one is."""
        if self.correlation is None or self.score_map is None:
            return "not calibrated: no graded prompts were given"
        if not self.correlation.is_reliable:
            within, n = self.correlation.within, self.correlation.n_questions
            return f"not reliable for this trait: r within conditions is {within} on {n} questions"
        return ""

    def read(self, turn: int, projection: float) -> TurnReading:
        """Judge one projection."""
        return TurnReading(
            turn=turn,
            trait=self.trait,
            projection=projection,
            quantile=float(np.searchsorted(self.ordinary, projection) / len(self.ordinary)),
            alert=sum(projection > threshold for threshold in self.thresholds),
            expected_score=None if self.verdict or self.score_map is None else self.score_map.expect(projection),
            verdict=self.verdict,
        )

    def read_token(self, index: int, projection: float, mean: float) -> TokenTraitReading:
        """Judge a response at one of its tokens.

        Args:
            index: The token's, from 0.
            projection: Of the token.
            mean: Of the response up to it.
        """
        known = self.responses
        is_judged = known is not None and index + 1 >= known.n_first
        return TokenTraitReading(
            trait=self.trait,
            projection=projection,
            quantile=None if known is None else known.rank_token(projection),
            mean=mean,
            mean_quantile=known.rank_mean(mean) if known is not None and is_judged else None,
            alert=sum(mean > threshold for threshold in self.response_thresholds) if is_judged else 0,
        )


@checked
@dataclass(frozen=True)
class TurnReading(Record):
    """One trait's reading before one of the assistant's turns.

    Args:
        turn: The assistant's turn that comes next, counted from 1.
        trait: The trait's name.
        projection: Of the last prompt token, in residual-stream units.
        quantile: Fraction of ordinary prompts with a lower projection.
        alert: Number of thresholds that the projection exceeds; 0 is ordinary.
        expected_score: Trait score (0 to 100) to be expected of the response; None where there is a ``verdict``.
        verdict: Why no score is expected, e.g. ``not reliable for this trait``; else empty.
    """

    turn: int
    trait: str
    projection: float
    quantile: float
    alert: int
    expected_score: Interval | None
    verdict: str
