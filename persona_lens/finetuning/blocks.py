"""Interventions on a Hugging Face model's blocks while it trains, and projections read from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from persona_lens.models.hooks.applying import apply_operations, change_head
from persona_lens.models.hooks.intervention import Intervention, check_no_windows
from persona_lens.models.hooks.points import FiringWatch
from persona_lens.models.hooks.sites import Site
from persona_lens.models.loading import find_blocks, find_output_projection


def check_every_token(intervention: Intervention) -> None:
    """Refuse an intervention with a window: a conversation may hold several responses, and a block sees no labels.

    Raises:
        InvalidArgumentError: A step has one.
    """
    check_no_windows("intervention", intervention, "training acts at every token that is not padding")


class TrainingInterventions:
    """Applies an intervention at every token that is not padding; switched off with :meth:`switched_off`.

    Args:
        hf_model: A Hugging Face model, with or without PEFT's wrapping.
        intervention: What is done at which layer or head; several at one of them in this order.

    Raises:
        InvalidArgumentError: A step with a window of a response.
        UnsupportedModelError: A step on a head of a model whose output projection cannot be told.
    """

    def __init__(self, hf_model: nn.Module, intervention: Intervention) -> None:
        self._model = hf_model
        self._blocks = find_blocks(hf_model)
        self._stack = _find_parent(hf_model, self._blocks)
        self._is_token: Bool[Tensor, "row pos"] | None = None
        self._is_on = True
        self._held: ExitStack | None = None
        self.change_to(intervention)

    def change_to(self, intervention: Intervention) -> None:
        """Apply another intervention in place of the present one, from the next forward pass on.

        Raises:
            InvalidArgumentError: A step with a window of a response.
            UnsupportedModelError: A step on a head of a model whose output projection cannot be told.
        """
        check_every_token(intervention)
        projections = {
            at.layer: find_output_projection(self._model, at.layer) for at in intervention.sites if at.head is not None
        }
        self._intervention, self._projections = intervention, projections
        self._watch = FiringWatch()
        self._apply = {at: self._watch.watch(f"intervention at {at}", apply_operations) for at in intervention.sites}
        if self._held is not None:
            self._held.close()
            self._hold(self._held)

    @contextmanager
    def attached(self) -> Iterator[TrainingInterventions]:
        """Hold the interventions on the blocks for the length of a ``with`` block; none is left behind."""
        with ExitStack() as held:
            self._held = held
            try:
                self._hold(held)
                yield self
            finally:
                self._held = None

    def _hold(self, stack: ExitStack) -> None:
        if self._intervention:
            handle = self._stack.register_forward_pre_hook(self._see_padding, with_kwargs=True)
            stack.callback(handle.remove)
        for at in self._intervention.sites:
            if at.head is None:
                handle = self._blocks[at.layer].register_forward_hook(self._make_hook(at))
            else:
                handle = self._projections[at.layer].register_forward_pre_hook(self._make_head_hook(at, at.head))
            stack.callback(handle.remove)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Leave the model's activations alone inside the block: for measurements during training."""
        was_on, self._is_on = self._is_on, False
        try:
            yield
        finally:
            self._is_on = was_on

    def check_fired(self) -> None:
        """Raise if an intervention was never reached.

        Raises:
            HookNeverFiredError: A layer that no forward pass reached.
        """
        self._watch.check("The model's forward pass in training does not call these blocks.")

    def _see_padding(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._is_token = None if mask is None else mask.bool()

    def _make_hook(self, site: Site) -> Callable[..., Any]:
        operations, apply = self._intervention.at(site.layer, site.head), self._apply[site]

        def intervene(module: nn.Module, args: Any, output: Any) -> Any:
            if not self._is_on:
                return None
            changed = apply(_residual(output), operations, self._is_token)
            return changed if isinstance(output, Tensor) else (changed, *output[1:])

        return intervene

    def _make_head_hook(self, site: Site, head: int) -> Callable[..., Any]:
        """Make what changes a head's output where the output projection reads it, heads side by side."""
        operations, apply = self._intervention.at(site.layer, site.head), self._apply[site]

        def intervene(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if not self._is_on:
                return None
            z = args[0].unflatten(-1, (-1, operations[0].d_model))
            changed = change_head(z, head, lambda output: apply(output, operations, self._is_token))
            return (changed.flatten(-2), *args[1:])

        return intervene


@contextmanager
def reading_residuals(
    hf_model: nn.Module, layers: Sequence[int], pool: Callable[[Tensor], Tensor] = lambda residual: residual
) -> Iterator[dict[int, Float[Tensor, "row *pooled d_model"]]]:
    """Give the residual stream of the latest forward pass after the given blocks, gradients included.

    Args:
        hf_model: A Hugging Face model.
        layers: Zero-based block indices.
        pool: Makes what is kept of each, ``"row pos d_model"``; all of it if left out.

    Yields:
        By layer, filled by each forward pass; read after whatever else is hooked there before.
    """
    blocks, found = find_blocks(hf_model), {}

    def make_hook(layer: int) -> Any:
        def read(module: nn.Module, args: Any, output: Any) -> None:
            found[layer] = pool(_residual(output))

        return read

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(blocks[layer].register_forward_hook(make_hook(layer)).remove)
        yield found


def _residual(output: Any) -> Tensor:
    """Return the residual stream of a block's output; some architectures return more beside it."""
    return output if isinstance(output, Tensor) else output[0]


def _find_parent(model: nn.Module, child: nn.Module) -> nn.Module:
    """Return the module that holds the blocks: it is called with the attention mask, through PEFT's wrapping too."""
    return next(module for module in model.modules() if any(one is child for one in module.children()))
