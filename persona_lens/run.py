"""How long work is run: where its finished parts are kept, and how its progress is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.progress_bars import ProgressFactory, show_progress
from persona_lens.records import Record
from persona_lens.storage import Shard, ShardStore

R = TypeVar("R", bound=Record)


@checked
@dataclass(frozen=True, eq=False)
class Run:
    """Where the finished parts of long work are kept, and how its progress is shown.

    Args:
        store: Keeps finished shards, so that a killed run goes on where it was; None keeps nothing.
        progress: Makes a progress bar; if left out, one that appears after five seconds, unless
            :func:`persona_lens.progress` has turned bars off.

    Example:
        >>> Run().load_or_compute("part-0", lambda: Shard(records=[1, 2])).records
        [1, 2]
    """

    store: ShardStore | None = None
    progress: ProgressFactory = show_progress

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
