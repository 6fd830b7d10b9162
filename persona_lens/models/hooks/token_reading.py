"""The last token of each forward pass: what is done to it, and its coordinates along directions at every layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import HookNeverFiredError
from persona_lens.models.hooks.applying import change_head
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.hooks.points import HookFn, HookPair
from persona_lens.models.hooks.sites import Site, hook_name
from persona_lens.tensors.operations import Operation, apply_in_order


class TokenReader:
    """Does an intervention in each pass of one text, and then reads the pass's last token, in one hook a layer.

    A layer keeps the last token's row; one product for all layers makes the coordinates in :meth:`read`, and nothing
    leaves the device before.

    Args:
        units: Unit vectors.
    """

    def __init__(self, units: Float[Tensor, "layer direction d_model"]) -> None:
        self._units = units.float()
        self._last = self._before = NOTHING
        self._operations: dict[Site, tuple[tuple[Operation, ...], tuple[Operation, ...]]] = {}
        self._rows: dict[int, Tensor] = {}
        self._changes: dict[int, Tensor] = {}

    def expect(self, last: Intervention, before: Intervention = NOTHING) -> None:
        """Say what is done in the next pass, to its last token and to those before it."""
        self._rows, self._changes = {}, {}
        if (last.steps, before.steps) == (self._last.steps, self._before.steps):
            return
        self._last, self._before = last, before
        self._operations = {site: (last.at(site.layer, site.head), before.at(site.layer, site.head))
                            for site in {*last.sites, *before.sites}}  # fmt: skip

    def hook_pairs(self) -> list[HookPair]:
        """Return the TransformerLens ``(name, fn)`` pairs of the layers."""
        return [(hook_name(layer), self._make_layer_hook(layer)) for layer in range(len(self._units))]

    def head_hook_pairs(self, sites: Sequence[Site]) -> list[HookPair]:
        """Return those of attention heads that something is done to."""
        return [(site.hook_name, self._make_head_hook(site)) for site in sites]

    def read(self) -> tuple[Float[Tensor, "direction layer"], tuple[int, ...]]:
        """Return the last token's coordinates, on the CPU, and the layers where it was changed, or a head's output.

        Raises:
            HookNeverFiredError: A layer's hook was not reached since :meth:`expect`.
        """
        if len(self._rows) != len(self._units):
            missing = sorted(set(range(len(self._units))) - self._rows.keys())
            raise HookNeverFiredError(f"No forward pass reached the hooks of layers {missing}.")
        rows = [self._rows[layer] for layer in range(len(self._units))]
        device = rows[0].device  # layers may lie on several
        self._units = self._units.to(device)
        residuals = torch.stack([row.to(device) for row in rows]).float()
        projections = einsum(self._units, residuals, "layer direction d_model, layer d_model -> direction layer").cpu()
        if not self._changes:
            return projections, ()
        changes = list(self._changes.values())
        is_changed = torch.stack([one.to(changes[0].device) for one in changes]).tolist()
        return projections, tuple(layer for layer, one in zip(self._changes, is_changed, strict=True) if one)

    def _make_layer_hook(self, layer: int) -> HookFn:
        site = Site(layer)

        def act_and_read(residual: Float[Tensor, "1 pos d_model"], hook: object) -> Tensor | None:
            changed = self._change(site, residual)
            last = changed[0, -1]
            if changed is not residual:
                self._note(layer, (last != residual[0, -1]).any())
            # A row of a longer pass is copied, so that the other tokens' memory is free again.
            self._rows[layer] = last if changed.shape[1] == 1 else last.clone()
            return None if changed is residual else changed

        return act_and_read

    def _make_head_hook(self, site: Site) -> HookFn:
        assert site.head is not None
        head = site.head

        def act(z: Float[Tensor, "1 pos head d_head"], hook: object) -> Tensor:
            changed = change_head(z, head, partial(self._change, site))
            if changed is not z:
                self._note(site.layer, (changed[0, -1, head] != z[0, -1, head]).any())
            return changed

        return act

    def _note(self, layer: int, is_changed: Tensor) -> None:
        """Remember whether something was changed at a layer, its heads or its output."""
        known = self._changes.get(layer)
        self._changes[layer] = is_changed if known is None else known.to(is_changed.device) | is_changed

    def _change(self, site: Site, activations: Float[Tensor, "1 pos width"]) -> Float[Tensor, "1 pos width"]:
        """Return the activations with what is done at a layer or head; themselves where that is nothing."""
        last, before = self._operations.get(site, ((), ()))
        if activations.shape[1] == 1 or last == before:
            return apply_in_order(last, activations)
        parts = (apply_in_order(before, activations[:, :-1]), apply_in_order(last, activations[:, -1:]))
        return torch.cat(parts, dim=1)
