"""Interventions at sites: what is done to which layer of which row, as TransformerLens hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from persona_lens.errors import HookNeverFiredError, HooksPresentError, InvalidArgumentError, describe_violation
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer, hook_name
from persona_lens.tensors.operations import Intervention

HookFn = Callable[..., Tensor | None]
HookPair = tuple[str, HookFn]

Positions = Literal["response", "prompt", "all"]
"""Where an intervention acts: ``response`` is the last prompt token and every generated one (the paper's
inference-time steering, section 3.2), ``prompt`` every prompt token, ``all`` both."""


@dataclass(frozen=True, eq=False)
class SiteIntervention:
    """An intervention on the output of one layer.

    Args:
        layer: Zero-based block index.
        intervention: What is done to the residual stream there.
    """

    layer: int
    intervention: Intervention


def check_site_interventions(sites: Sequence[SiteIntervention], n_layers: int, d_model: int) -> None:
    """Refuse interventions that do not fit a model.

    Raises:
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: A direction of another width.
    """
    for site in sites:
        check_layer(site.layer, n_layers)
        width = site.intervention.direction.shape[-1]
        if width != d_model:
            raise InvalidArgumentError(
                describe_violation(
                    "direction",
                    f"have the model's width d_model={d_model}",
                    width,
                    "Was the vector extracted from another model?",
                )
            )


def check_unsteered(model: HookedModel) -> None:
    """Refuse a model that carries hooks where the plain model is to be measured or to judge.

    Raises:
        HooksPresentError: Names the hook points.
    """
    hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    if hooked:
        rule = "carry no hooks here: it is the unsteered model that samples, is measured and judges"
        hint = "Leave the steering context first, or call model.reset_hooks()."
        raise HooksPresentError(describe_violation("model", rule, hooked, hint))


class RowInterventions:
    """Applies to each row of a batch its own interventions, through one hook a layer.

    Assign the batch's interventions with :meth:`assign`; the hooks read them at every forward pass. Rows that
    share an intervention object are treated together.

    Args:
        layers: The layers that any row will ever use; each gets a hook.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = sorted(set(layers))
        self._groups: dict[int, list[tuple[Tensor, Intervention]]] = {}

    def assign(self, rows: Sequence[Sequence[SiteIntervention]], device: torch.device) -> None:
        """Set the interventions of rows ``0 .. len(rows)``; an empty sequence leaves a row alone."""
        members: dict[tuple[int, int, int], tuple[Intervention, list[int]]] = {}
        for row, sites in enumerate(rows):
            steps: dict[int, int] = {}
            for site in sites:
                # A row's own order holds at each layer, whatever the rows beside it: its n-th is its n-th.
                step = steps[site.layer] = steps.get(site.layer, -1) + 1
                key = (step, site.layer, id(site.intervention))
                members.setdefault(key, (site.intervention, []))[1].append(row)
        self._groups = {}
        for (_, layer, _), (intervention, indices) in sorted(members.items(), key=lambda member: member[0][0]):
            self._groups.setdefault(layer, []).append((torch.tensor(indices, device=device), intervention))

    def hook_pairs(self) -> list[HookPair]:
        """Return the TransformerLens ``(name, fn)`` pairs."""
        return [(hook_name(layer), self._make_hook(layer)) for layer in self.layers]

    def _make_hook(self, layer: int) -> HookFn:
        def intervene(residual: Tensor, hook: object) -> Tensor | None:
            groups = self._groups.get(layer)
            if not groups:
                return None
            for rows, intervention in groups:
                residual = residual.index_copy(0, rows, intervention(residual[rows]))
            return residual

        return intervene


class ResidualRecorder:
    """Keeps a pooled copy of every layer's residual stream of the latest forward pass.

    Args:
        n_layers: Number of layers.
    """

    def __init__(self, n_layers: int) -> None:
        self.n_layers = n_layers
        self._pool: Callable[[Tensor], Tensor] = lambda residual: residual
        self._pooled: dict[int, Tensor] = {}

    def expect(self, pool: Callable[[Tensor], Tensor]) -> None:
        """Set how the next passes are pooled: ``[row, pos, d_model]`` to ``[row, d_model]``, inside the hook."""
        self._pool = pool
        self._pooled = {}

    def hook_pairs(self) -> list[HookPair]:
        """Return the TransformerLens ``(name, fn)`` pairs."""
        return [(hook_name(layer), self._make_hook(layer)) for layer in range(self.n_layers)]

    def read(self) -> Tensor:
        """Return the latest pass as ``[layer, row, d_model]``.

        Raises:
            HookNeverFiredError: A layer's hook was not reached since :meth:`expect`.
        """
        if len(self._pooled) != self.n_layers:
            missing = sorted(set(range(self.n_layers)) - self._pooled.keys())
            raise HookNeverFiredError(
                f"The residual stream of layers {missing} was never seen: no forward pass reached their hooks."
            )
        return torch.stack([self._pooled[layer] for layer in range(self.n_layers)])

    def _make_hook(self, layer: int) -> HookFn:
        def record(residual: Tensor, hook: object) -> None:
            self._pooled[layer] = self._pool(residual)

        return record


@contextmanager
def attached(model: HookedModel, pairs: Sequence[HookPair]) -> Iterator[None]:
    """Attach hook pairs to either model class for the length of a ``with`` block, by exception too."""
    with model.hooks(fwd_hooks=list(pairs)):
        yield
