"""Operations applied in order at some tokens: the one way for hooks, for the rows of a batch and for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.models.hooks.intervention import Intervention
from persona_lens.models.hooks.points import HookFn, HookPair
from persona_lens.models.hooks.sites import Site
from persona_lens.tensors.operations import Add, Operation, apply_in_order


def apply_operations(
    residual: Float[Tensor, "row pos d_model"],
    operations: Sequence[Operation],
    is_chosen: Bool[Tensor, "row pos"] | None = None,
) -> Float[Tensor, "row pos d_model"]:
    """Apply operations in order at the chosen tokens; None chooses all. The argument is left as it is."""
    changed = apply_in_order(operations, residual)
    if changed is residual or is_chosen is None:
        return changed
    return torch.where(is_chosen[..., None], changed, residual)


def change_head(
    z: Float[Tensor, "row pos head d_head"], head: int, change: Callable[[Tensor], Tensor]
) -> Float[Tensor, "row pos head d_head"]:
    """Return heads' outputs of which one is changed; the others are the same bit by bit, and the argument is left."""
    output = z[:, :, head]
    changed = change(output)
    return z if changed is output else z.select_scatter(changed, 2, head)


class RowInterventions:
    """Applies to each row of a batch its own intervention, through one hook a layer or head.

    Assign the batch's interventions with :meth:`assign`; the hooks read them at every forward pass. All additions at
    a site are one operation; of the others, rows that share one are treated together.

    Args:
        sites: The layers and heads that any row will ever use; each gets a hook.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self.sites = sorted(set(sites), key=lambda site: site.order)
        self._changes: dict[Site, list[Callable[[Tensor], Tensor]]] = {}

    def assign(self, rows: Sequence[Intervention], device: torch.device) -> None:
        """Set the interventions of rows ``0 .. len(rows)``; an empty one leaves a row alone."""
        members: dict[Site, dict[tuple[int, int], list[tuple[int, Operation]]]] = {}
        for row, intervention in enumerate(rows):
            steps: dict[Site, int] = {}
            for one in intervention.steps:
                # A row's own order holds at each site, whatever the rows beside it: its n-th is its n-th.
                step = steps[one.site] = steps.get(one.site, -1) + 1
                key = (step, 0 if isinstance(one.operation, Add) else id(one.operation))
                if not (isinstance(one.operation, Add) and one.operation.coefficient == 0):
                    members.setdefault(one.site, {}).setdefault(key, []).append((row, one.operation))
        self._changes = {
            site: [_make_change(members[site][key], device) for key in sorted(members[site], key=lambda key: key[0])]
            for site in members
        }

    def hook_pairs(self) -> list[HookPair]:
        """Return the TransformerLens ``(name, fn)`` pairs."""
        return [(site.hook_name, self._make_hook(site)) for site in self.sites]

    def _make_hook(self, site: Site) -> HookFn:
        def change_all(activations: Tensor) -> Tensor:
            for change in self._changes[site]:
                activations = change(activations)
            return activations

        def intervene(activations: Tensor, hook: object) -> Tensor | None:
            if site not in self._changes:
                return None
            if site.head is None:
                return change_all(activations)
            return change_head(activations, site.head, change_all)

        return intervene


def _make_change(members: Sequence[tuple[int, Operation]], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Put one step of some rows together: additions, done at once, or one operation that they share."""
    rows = torch.tensor([row for row, _ in members], device=device)
    operation = members[0][1]
    added = [one.scaled.to(device) for _, one in members if isinstance(one, Add)]
    shifts = torch.stack(added)[:, None] if added else None

    def change(residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        chosen = residual[rows]
        return residual.index_copy(0, rows, operation(chosen) if shifts is None else chosen + shifts.to(residual))

    return change
