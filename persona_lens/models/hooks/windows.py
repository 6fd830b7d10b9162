"""Which of a response's tokens an intervention acts at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError


@checked
@dataclass(frozen=True)
class Window:
    """Some of a response's tokens: ``start``, ``start + every``, ... before ``stop``.

    Token 0 is the prompt's last token, whose output the first token of the response is drawn from; token ``t`` is the
    response's ``t``-th, whose output the next one is drawn from. So ``Window(stop=n)`` reaches what the first ``n``
    tokens of the response are drawn from, and ``Window(start=n)`` leaves these alone. No other token of the prompt is
    in any window. Special tokens count as any others.

    Args:
        start: The first token.
        stop: The first token that is no longer meant; None for no end.
        every: Of the tokens from ``start`` on, each so manieth.

    Raises:
        InvalidArgumentError: ``start`` is negative, ``stop`` not after it, or ``every`` below 1.

    Example:
        >>> [token for token in range(10) if token in Window(start=2, stop=9, every=3)]
        [2, 5, 8]
    """

    start: int = 0
    stop: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.start < 0:
            raise InvalidArgumentError.of("start", "be at least 0, the prompt's last token", self.start)
        if self.stop is not None and self.stop <= self.start:
            raise InvalidArgumentError.of("stop", f"be after `start`, here {self.start}, or None", self.stop)
        if self.every < 1:
            raise InvalidArgumentError.of("every", "be at least 1", self.every)

    def __contains__(self, token: int) -> bool:
        return bool(self._hold(token))

    def select(self, tokens: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
        """Return which tokens are in the window; those of the prompt before its last have negative numbers."""
        selected: Tensor = self._hold(tokens)
        return selected

    def _hold(self, token: Any) -> Any:
        """Say for one token, or for many, whether it is in the window."""
        is_reached = (token >= self.start) & ((token - self.start) % self.every == 0)
        return is_reached if self.stop is None else is_reached & (token < self.stop)
