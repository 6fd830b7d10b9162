"""The residual stream of a forward pass, or the heads' outputs, pooled inside the hooks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from persona_lens.errors import HookNeverFiredError
from persona_lens.models.hooks.points import HookFn, HookPair
from persona_lens.models.hooks.sites import hook_name


class ResidualRecorder:
    """Keeps a pooled copy of every layer's residual stream, or of its heads' outputs, of the latest forward pass.

    Args:
        n_layers: Number of layers.
        name: Names a layer's hook point: its output, unless it is that of its heads.
    """

    def __init__(self, n_layers: int, name: Callable[[int], str] = hook_name) -> None:
        self.n_layers = n_layers
        self._name = name
        self._pool: Callable[[Tensor, int], Tensor] = lambda residual, layer: residual
        self._pooled: dict[int, Tensor] = {}

    def expect(self, pool: Callable[[Tensor, int], Tensor]) -> None:
        """Set what the hook keeps of the next passes, given a residual stream ``[row, pos, d_model]`` and its layer."""
        self._pool = pool
        self._pooled = {}

    def hook_pairs(self) -> list[HookPair]:
        """Return the TransformerLens ``(name, fn)`` pairs."""
        return [(self._name(layer), self._make_hook(layer)) for layer in range(self.n_layers)]

    def read(self) -> Tensor:
        """Return what was kept of the latest pass, layer by layer: ``[layer, ...]``.

        Raises:
            HookNeverFiredError: A layer's hook was not reached since :meth:`expect`.
        """
        if len(self._pooled) != self.n_layers:
            missing = sorted(set(range(self.n_layers)) - self._pooled.keys())
            raise HookNeverFiredError(
                f"The activations of layers {missing} were never seen: no forward pass reached their hooks."
            )
        return torch.stack([self._pooled[layer] for layer in range(self.n_layers)])

    def _make_hook(self, layer: int) -> HookFn:
        def record(residual: Tensor, hook: object) -> None:
            self._pooled[layer] = self._pool(residual, layer)

        return record
