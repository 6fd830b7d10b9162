"""What a monitor says of a token while a response grows, and what may be answered to its alarms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooks.intervention import Intervention
from persona_lens.records import Record


@checked
@dataclass(frozen=True)
class TokenTraitReading(Record):
    """One trait's reading at one token of a response.

    Args:
        trait: The trait's name.
        projection: Of this token, in residual-stream units.
        quantile: Fraction of ordinary response tokens with a lower projection; None if the monitor has not seen any.
        mean: Mean projection of the response up to this token.
        mean_quantile: Fraction of ordinary responses, of those that are long enough to be judged, whose running mean
            never rises so high; None before the first token at which it is judged, and if the monitor has not seen any.
        alert: Number of thresholds that the running mean exceeds; 0 is ordinary.
    """

    trait: str
    projection: float
    quantile: float | None
    mean: float
    mean_quantile: float | None
    alert: int


@checked
@dataclass(frozen=True)
class TokenReading(Record):
    """A monitor's reading of one token of a response.

    Args:
        index: From 0 in the response.
        token_id: Its id.
        text: What the response's text grew by; empty inside a character of several tokens.
        traits: The readings, in the order of the monitor's traits.
        acting: The layers at which the intervention given to the stream, or by an alarm, changed this token.
    """

    index: int
    token_id: int
    text: str
    traits: tuple[TokenTraitReading, ...]
    acting: tuple[int, ...] = ()

    @property
    def alert(self) -> int:
        """The highest of the traits' alerts."""
        return max(one.alert for one in self.traits)

    def of(self, trait: str) -> TokenTraitReading:
        """Return one trait's reading.

        Raises:
            InvalidArgumentError: The trait is not watched.
        """
        found = {one.trait: one for one in self.traits}
        if trait not in found:
            raise InvalidArgumentError.of("trait", f"be one of {', '.join(found)}", trait)
        return found[trait]


@checked
@dataclass(frozen=True)
class GoOn:
    """Answer to an alarm: nothing changes."""


@checked
@dataclass(frozen=True)
class Stop:
    """Answer to an alarm: this token is the response's last."""


@checked
@dataclass(frozen=True, eq=False)
class SteerWith:
    """Answer to an alarm: do this too, from the next token that the model takes in on, in place of an earlier alarm's.

    The token behind this one has been drawn by then; what is drawn after it is drawn from steered activations.

    Args:
        intervention: Added to the one that the stream was given, at the tokens that ``sampling.positions`` says. A
            window of it counts from the response's first token, not from the alarm: one that has ended by then never
            acts.
    """

    intervention: Intervention


AlarmAnswer: TypeAlias = GoOn | Stop | SteerWith
"""What an alarm may be answered."""

Alarm: TypeAlias = Callable[[TokenReading], AlarmAnswer]
"""Called with each token at which a trait's running mean is above a threshold."""
