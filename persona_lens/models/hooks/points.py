"""Hook pairs on a model: attached for a while, and looked for where none may be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from persona_lens.errors import HookNeverFiredError, HooksPresentError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sharing import guard, holding, working

T = TypeVar("T")
HookFn = Callable[..., Tensor | None]
"""A TransformerLens hook function: activation and ``hook`` in, the changed activation out, or None to leave it."""
HookPair = tuple[str, HookFn]
"""The name of a hook point and what to call there."""


# Every second one: TransformerLens counts one up on the way in. Far above the depth of any nesting.
_LEVELS = itertools.count(1_000_000, 2)


@contextmanager
def attached(model: HookedModel, pairs: Sequence[HookPair]) -> Iterator[None]:
    """Attach hook pairs to either model class for work that ends by itself; by exception too, none is left.

    Raises:
        ModelBusyError: The model does something else.
    """
    with working(model), _at_a_level_of_their_own(model, pairs):
        yield


@contextmanager
def held(model: HookedModel, pairs: Sequence[HookPair]) -> Iterator[None]:
    """Attach hook pairs for a while that may never end, such as a user's ``with`` block.

    Raises:
        ModelBusyError: The model does something else.
    """
    with holding(model), _at_a_level_of_their_own(model, pairs):
        yield


@contextmanager
def _at_a_level_of_their_own(model: HookedModel, pairs: Sequence[HookPair]) -> Iterator[None]:
    """Attach hook pairs, and take off these and no others, in whatever order such contexts end.

    TransformerLens takes off the hooks of a level, which is how deeply ``model.hooks`` is nested when it ends.
    """
    level, outer = next(_LEVELS), model.context_level
    context = model.hooks(fwd_hooks=[(name, guard(model, fn)) for name, fn in pairs])
    model.context_level = level
    try:
        context.__enter__()
    finally:
        model.context_level = outer
    try:
        yield
    finally:
        outer, model.context_level = model.context_level, level + 1
        context.__exit__(None, None, None)
        model.context_level = outer


def check_unsteered(model: HookedModel) -> None:
    """Refuse a model that carries hooks where the plain model is to be measured or to judge.

    Raises:
        HooksPresentError: Names the hook points.
    """
    hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    if hooked:
        rule = "carry no hooks here: it is the unsteered model that samples, is measured and judges"
        hint = "Leave the steering context first, or call model.reset_hooks()."
        raise HooksPresentError.of("model", rule, hooked, hint)


class FiringWatch:
    """Knows which hook functions a forward pass has reached."""

    def __init__(self) -> None:
        self._idle: dict[int, str] = {}
        self._n_watched = 0

    def watch(self, label: str, fn: Callable[..., T]) -> Callable[..., T]:
        """Return a function that does as ``fn`` and is known by ``label`` until it is first called."""
        number = self._n_watched = self._n_watched + 1
        self._idle[number] = label

        def call(*args: object, **kwargs: object) -> T:
            # Passed on unread: the signature is that of whatever framework the hook is for.
            self._idle.pop(number, None)
            return fn(*args, **kwargs)

        return call

    def check(self, hint: str) -> None:
        """Raise if a function was never called.

        Raises:
            HookNeverFiredError: Names the labels.
        """
        if self._idle:
            rule = "be reached by a forward pass, all of them"
            raise HookNeverFiredError.of("hooks", rule, list(self._idle.values()), hint)
