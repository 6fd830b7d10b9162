"""How long work is run: where its finished parts are kept, how its progress is shown, and who does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.progress_bars import ProgressFactory, no_progress, show_progress
from persona_lens.records import Record
from persona_lens.storage import Shard, ShardStore

R = TypeVar("R", bound=Record)
T = TypeVar("T")


@runtime_checkable
class Workers(Protocol):
    """Processes that share the pieces of a work, such as :class:`persona_lens.distributed.RayWorkers`."""

    def compute_each(self, pieces: Sequence[Callable[[], Any]]) -> Iterator[Any]:
        """Do each piece somewhere; yield what they return, in the order of the pieces."""
        ...


@checked
@dataclass(frozen=True, eq=False)
class Run:
    """Where the finished parts of long work are kept, how its progress is shown, and who does it.

    A run that is sent to a worker with a piece of work keeps its store there, shows nothing and has no workers.

    Args:
        store: Keeps finished shards, so that a killed run goes on where it was; None keeps nothing.
        progress: Makes a progress bar; if left out, one that appears after five seconds, unless
            :func:`persona_lens.progress` has turned bars off.
        workers: Who does pieces of work that do not depend on each other; None does them in this process, one after
            the other.

    Example:
        >>> Run().load_or_compute("part-0", lambda: Shard(records=[1, 2])).records
        [1, 2]
    """

    store: ShardStore | None = None
    progress: ProgressFactory = show_progress
    workers: Workers | None = None

    def __reduce__(self) -> tuple[type[Run], tuple[ShardStore | None, ProgressFactory]]:
        return Run, (self.store, no_progress)

    @property
    def folder(self) -> Path:
        """Where the finished parts are.

        Raises:
            InvalidArgumentError: Nothing is kept.
        """
        if self.store is None:
            raise InvalidArgumentError.of("run", "keep what is finished, with a `store`", self)
        return self.store.folder

    def part(self, config: Mapping[str, Any]) -> Run:
        """Return a run within this one, for work that depends on ``config`` too, such as one of several traits."""
        return self if self.store is None else replace(self, store=self.store.part(config))

    def load_or_compute(self, name: str, compute: Callable[[], Shard]) -> Shard:
        """Return the finished shard of that name; compute it, and keep it if there is a store, where there is none."""
        return compute() if self.store is None else self.store.load_or_compute(name, compute)

    def load_or_measure(self, name: str, kind: type[R], measure: Callable[[], R]) -> R:
        """Return the finished record of that name; measure it, and keep it if there is a store, where there is none."""
        return kind.from_json(self.load_or_compute(name, lambda: Shard(records=measure().to_json())).records)

    def compute_each(self, pieces: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Do each piece of work, in the workers if there are some; yield what they return, in the order of the pieces.

        Args:
            pieces: Functions without arguments, independent of each other.

        Raises:
            Exception: What a piece raises, or what the workers do; see
                :meth:`persona_lens.distributed.RayWorkers.compute_each`.

        Example:
            >>> list(Run().compute_each([lambda: 1, lambda: 2]))
            [1, 2]
        """
        if self.workers is None:
            yield from (piece() for piece in pieces)
        else:
            yield from cast(Iterator[T], self.workers.compute_each(pieces))
