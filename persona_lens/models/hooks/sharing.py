"""One model, one user at a time: work from another thread waits, and what would mix with other work is refused.

Hooks act on every forward pass of a model, whoever runs it. So a model knows who works with it (sampling, scoring,
reading; it ends by itself, and others wait) and who holds hooks on it (a ``with`` block; others are refused, as it may
never end). Work whose results are read one by one is suspended between two of them; until it goes on, the model does
nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

from persona_lens.errors import ModelBusyError
from persona_lens.models.hooked_model import HookedModel

T = TypeVar("T")

# Another thread that reads its results one by one is given this many seconds to take the next.
_PATIENCE = 10.0
_RULE = "do one thing at a time"


class _Users:
    """Who works with a model, and who holds hooks on it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.worker: int | None = None  # a thread
        self.depth = 0
        self.suspended_since: float | None = None
        self.holders: Counter[int] = Counter()

    def wait_for_turn(self) -> None:
        """Wait until no other thread works; the condition is held.

        Raises:
            ModelBusyError: Another thread holds hooks, or results are being read one by one.
        """
        me = threading.get_ident()
        while self.worker not in (None, me):
            waited = 0.0 if self.suspended_since is None else time.monotonic() - self.suspended_since
            if waited >= _PATIENCE:
                got = "another thread that has begun to read results and does not go on"
                raise ModelBusyError.of("model", _RULE, got, "Let it read them to the end, or close its iterator.")
            self.changed.wait(_PATIENCE)
        if any(count for thread, count in self.holders.items() if thread != me):
            got = "hooks that another thread holds on it"
            raise ModelBusyError.of("model", _RULE, got, "Leave that `with` block first, or load the model twice.")
        if self.suspended_since is not None:
            got = "an iterator over its results that is half read"
            raise ModelBusyError.of("model", _RULE, got, "Read it to the end first, or make a list of it.")


_DRAWING = threading.RLock()


@contextmanager
def drawing() -> Iterator[None]:
    """Have torch's global random numbers to oneself; other threads that would draw from them wait."""
    with _DRAWING:
        yield


_USERS: WeakKeyDictionary[HookedModel, _Users] = WeakKeyDictionary()
_MAKING = threading.Lock()


def _users_of(model: HookedModel) -> _Users:
    with _MAKING:
        return _USERS.setdefault(model, _Users())


@contextmanager
def working(model: HookedModel) -> Iterator[None]:
    """Have a model to oneself for work that ends by itself; other threads' work waits. One thread may nest it.

    Raises:
        ModelBusyError: Another thread holds hooks on it, or an iterator over its results is half read.
    """
    users = _users_of(model)
    with users.changed:
        users.wait_for_turn()
        users.worker, users.depth = threading.get_ident(), users.depth + 1
    try:
        yield
    finally:
        with users.changed:
            users.depth -= 1
            if users.depth == 0:  # an iterator may be closed by another thread than the one that began it
                users.worker = None
                users.changed.notify_all()


@contextmanager
def holding(model: HookedModel) -> Iterator[None]:
    """Hold hooks on a model for a while that may never end; other threads are refused meanwhile.

    Raises:
        ModelBusyError: As :func:`working`.
    """
    users, me = _users_of(model), threading.get_ident()
    with users.changed:
        users.wait_for_turn()
        users.holders[me] += 1
    try:
        yield
    finally:
        users.holders[me] -= 1


def reading_one_by_one(model: HookedModel, results: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield results of a model's work; between two of them the work is suspended, and the model does nothing else."""
    users = _users_of(model)
    with closing(results):
        for result in results:
            users.suspended_since = time.monotonic()
            try:
                yield result
            finally:
                users.suspended_since = None


def guard(model: HookedModel, fn: Callable[..., T]) -> Callable[..., T]:
    """Return a hook function that refuses passes which are not its owner's.

    Args:
        model: Whose hook it will be.
        fn: Called by the thread that called this, and not while its work is suspended.
    """
    users, owner = _users_of(model), threading.get_ident()

    # Passed on unread: the signature is TransformerLens' own.
    def call(*args: object, **kwargs: object) -> T:
        if threading.get_ident() != owner:
            got = "a forward pass in another thread than the one whose hooks it carries"
            raise ModelBusyError.of("model", _RULE, got, "Wait for that thread, or load the model twice.")
        if users.suspended_since is not None:
            got = "a forward pass while an iterator over its results is half read"
            raise ModelBusyError.of("model", _RULE, got, "Read it to the end first, or make a list of it.")
        return fn(*args, **kwargs)

    return call
