"""Progress bars, chosen by the caller: the library shows none by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm.auto import tqdm

Advance = Callable[[int], object]
ProgressFactory = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with a label and a total; yields a function that advances the bar."""


def count_nothing(n: int) -> None:
    """Advance no bar."""


@contextmanager
def no_progress(label: str, total: int) -> Iterator[Advance]:
    """Show nothing."""
    yield count_nothing


@contextmanager
def show_progress(label: str, total: int) -> Iterator[Advance]:
    """Show a bar with the time left, in a notebook or a terminal."""
    with tqdm(desc=label, total=total, smoothing=0.05) as bar:
        yield bar.update
