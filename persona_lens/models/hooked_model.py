"""What this package asks of a model: what ``HookedTransformer`` and ``TransformerBridge`` share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:

    class HookedModel(Protocol):
        """A ``HookedTransformer`` or a ``TransformerBridge``; both share the hook names.

        ``Any`` stands where TransformerLens has no type that the two share.
        """

        cfg: Any
        tokenizer: Any
        training: bool
        context_level: int  # how many `hooks` contexts are open
        # The parts that both name alike. Their own parts differ.
        blocks: Any
        embed: Any
        ln_final: Any
        unembed: Any

        @property
        def hook_dict(self) -> Mapping[str, Any]:
            """The hook points by name."""

        def __call__(self, input: Any, /, **options: Any) -> Any:
            """Run the forward pass."""

        def hooks(self, fwd_hooks: Sequence[tuple[Any, Any]] = ...) -> AbstractContextManager[Any]:
            """Put hooks on while a context is open."""

        def reset_hooks(self) -> Any:
            """Take all hooks off."""

        def run_with_hooks(self, input: Any, /, *, fwd_hooks: Sequence[tuple[Any, Any]] = ...) -> Any:
            """Run the forward pass with hooks."""

        def run_with_cache(self, input: Any, /, **options: Any) -> Any:
            """Run the forward pass and return the activations too."""

        def generate(self, input: Any = ..., /, **options: Any) -> Any:
            """Sample a continuation."""

        def generate_stream(self, input: Any = ..., /, **options: Any) -> Any:
            """Sample a continuation, yielded token by token."""

        def to_tokens(self, input: Any, /, **options: Any) -> Any:
            """Tokenise a text."""

        def parameters(self) -> Iterator[nn.Parameter]:
            """The weights."""
else:
    # A run-time check of the protocol would look each member up: `hook_dict`, which the bridge makes anew every time,
    # and `blocks`, which Module keeps where Python 3.12's check does not look.
    HookedModel = nn.Module
