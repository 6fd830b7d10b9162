"""Progress bars with the time left, in notebooks and terminals, for whatever takes longer than a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm.auto import tqdm

Advance = Callable[[int], object]
ProgressFactory = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with a label and a total; yields a function that advances the bar."""

_SHOWN_AFTER = 5.0  # seconds

_is_on = True


def progress(shown: bool) -> None:
    """Show progress bars from now on, or none.

    A bar appears unasked where work takes longer than five seconds, in a notebook or a terminal; where standard error
    is no terminal, such as a log file, there is none.

    Args:
        shown: Whether to show them.

    Example:
        >>> import persona_lens as pl
        >>> pl.progress(False)
        >>> pl.progress(True)
    """
    global _is_on
    _is_on = shown


def count_nothing(n: int) -> None:
    """Advance no bar."""


@contextmanager
def no_progress(label: str, total: int) -> Iterator[Advance]:
    """Show nothing."""
    yield count_nothing


@contextmanager
def show_progress(label: str, total: int) -> Iterator[Advance]:
    """Show a bar with the time left once five seconds have gone by, unless :func:`progress` has turned bars off."""
    # None: tqdm itself shows nothing where standard error is no terminal; in a notebook it always shows.
    hidden = None if _is_on else True
    with tqdm(desc=label, total=total, smoothing=0.05, delay=_SHOWN_AFTER, disable=hidden, leave=False) as bar:
        yield bar.update
