"""Progress bars with the time left, in notebooks and terminals, for whatever takes longer than a few seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn

from tqdm.auto import tqdm

from persona_lens.checking import checked

Advance = Callable[[int], object]
ProgressFactory = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with a label and a total; yields a function that advances the bar."""

_SHOWN_AFTER = 5.0  # seconds
_DRAWN_EVERY = 1.0

_is_on = True


@checked
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
        ended = threading.Event()
        drawing = threading.Thread(target=_keep_drawing, args=(bar, ended), daemon=True)
        if not bar.disable:
            drawing.start()
        try:
            yield bar.update
        finally:
            ended.set()
            if not bar.disable:
                drawing.join()


def _keep_drawing(bar: tqdm[NoReturn], ended: threading.Event) -> None:
    """Draw a bar though it does not advance: the rows of a batch end together, which may take minutes."""
    wait = _SHOWN_AFTER
    while not ended.wait(wait):
        bar.refresh()
        wait = _DRAWN_EVERY
