"""Operations applied in order at some tokens: the one way for hooks, for the rows of a batch and for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from persona_lens.models.hooks.intervention import Intervention
from persona_lens.models.hooks.points import HookFn, HookPair
from persona_lens.models.hooks.sites import hook_name
from persona_lens.tensors.operations import Add, Operation


def apply_operations(
    residual: Float[Tensor, "row pos d_model"],
    operations: Sequence[Operation],
    is_chosen: Bool[Tensor, "row pos"] | None = None,
) -> Float[Tensor, "row pos d_model"]:
    """Apply operations in order at the chosen tokens; None chooses all. The argument is left as it is."""
    changed = residual
    for operation in operations:
        changed = operation(changed)
    if changed is residual or is_chosen is None:
        return changed
    return torch.where(is_chosen[..., None], changed, residual)


@dataclass(frozen=True, eq=False)
class _Addition:
    """Additions to some rows of a batch, done at once."""

    rows: Int[Tensor, " row"]
    shifts: Float[Tensor, "row d_model"]

    def __call__(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        moved = residual[self.rows] + self.shifts.to(residual)[:, None]
        return residual.index_copy(0, self.rows, moved)


@dataclass(frozen=True, eq=False)
class _Change:
    """An operation on some rows of a batch."""

    rows: Int[Tensor, " row"]
    operation: Operation

    def __call__(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return residual.index_copy(0, self.rows, apply_operations(residual[self.rows], (self.operation,)))


class RowInterventions:
    """Applies to each row of a batch its own intervention, through one hook a layer.

    Assign the batch's interventions with :meth:`assign`; the hooks read them at every forward pass. All additions at
    a layer are one operation; of the others, rows that share one are treated together.

    Args:
        layers: The layers that any row will ever use; each gets a hook.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = sorted(set(layers))
        self._changes: dict[int, list[_Addition | _Change]] = {}

    def assign(self, rows: Sequence[Intervention], device: torch.device) -> None:
        """Set the interventions of rows ``0 .. len(rows)``; an empty one leaves a row alone."""
        members: dict[int, dict[tuple[int, int], list[tuple[int, Operation]]]] = {}
        for row, intervention in enumerate(rows):
            steps: dict[int, int] = {}
            for one in intervention.steps:
                # A row's own order holds at each layer, whatever the rows beside it: its n-th is its n-th.
                step = steps[one.layer] = steps.get(one.layer, -1) + 1
                adds = isinstance(one.operation, Add)
                key = (step, 0 if adds else id(one.operation))
                if not (isinstance(one.operation, Add) and one.operation.coefficient == 0):
                    members.setdefault(one.layer, {}).setdefault(key, []).append((row, one.operation))
        self._changes = {
            layer: [_make_change(members[layer][key], device) for key in sorted(members[layer], key=lambda key: key[0])]
            for layer in members
        }

    def hook_pairs(self) -> list[HookPair]:
        """Return the TransformerLens ``(name, fn)`` pairs."""
        return [(hook_name(layer), self._make_hook(layer)) for layer in self.layers]

    def _make_hook(self, layer: int) -> HookFn:
        def intervene(residual: Tensor, hook: object) -> Tensor | None:
            changes = self._changes.get(layer)
            if not changes:
                return None
            for change in changes:
                residual = change(residual)
            return residual

        return intervene


def _make_change(members: Sequence[tuple[int, Operation]], device: torch.device) -> _Addition | _Change:
    """Put one step of some rows together: additions, or one operation that they share."""
    rows = torch.tensor([row for row, _ in members], device=device)
    shifts = [operation.scaled for _, operation in members if isinstance(operation, Add)]
    if not shifts:
        return _Change(rows, members[0][1])
    return _Addition(rows, torch.stack([shift.to(device) for shift in shifts]))
