"""What work costs, in the processor's seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed(costs: dict[str, float], name: str) -> Iterator[None]:
    """Note the processor's seconds, of all threads, that something takes.

    Example:
        >>> costs: dict[str, float] = {}
        >>> with timed(costs, "adding up"):
        ...     total = sum(range(1000))
        >>> costs["adding up"] >= 0
        True
    """
    began = time.process_time()
    yield
    costs[name] = time.process_time() - began
