"""Run a TransformerLens model over a slot cache: prompts, single steps and continuations, with ragged rows.

Both classes run the model's own modules, so that hooks on the residual stream and on the heads' outputs (``hook_z``)
fire as they do in an ordinary forward pass; attention before these is computed leanly. Hooks there would not fire, so
they are refused.

- ``HookedDecoder`` walks a ``HookedTransformer``'s blocks with its weights and hook points.
- ``BridgeDecoder`` runs the Hugging Face model under a ``TransformerBridge``. While it runs, the wrappers inside
  the blocks step aside; the blocks' own hooks stay, and so does ``hook_z``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from persona_lens.errors import HooksPresentError
from persona_lens.models.engine.attention import SlotCache
from persona_lens.models.engine.bridge_decoder import BridgeDecoder, list_head_outputs, unwrapped_blocks
from persona_lens.models.engine.hooked_decoder import HookedDecoder
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sharing import working

# Hook points whose value the lean attention never forms.
_UNREACHED_HOOKS = (
    "hook_attn_scores", "hook_pattern", "hook_result", "hook_rot_q", "hook_rot_k",
    "hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in",
)  # fmt: skip


@runtime_checkable
class Decoder(Protocol):
    """What sampling and scoring ask of a model."""

    def new_cache(self, n_slots: int, max_length: int) -> SlotCache:
        """Return an empty cache for ``n_slots`` rows of up to ``max_length`` tokens."""
        ...

    def extend(
        self, tokens: Int[Tensor, "row pos"], starts: Int[Tensor, " row"], cache: SlotCache
    ) -> Float[Tensor, "row pos d_model"]:
        """Append tokens to the first rows of a cache; return what ``unembed`` reads."""
        ...

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Return the logits of hidden states that ``extend`` returned."""
        ...


@contextmanager
def open_decoder(model: HookedModel) -> Iterator[Decoder]:
    """Yield the decoder of a model, with gradients off.

    Args:
        model: A HookedTransformer or a TransformerBridge.

    Raises:
        UnsupportedModelError: The architecture has a feature that the lean attention does not compute.
        HooksPresentError: A hook sits where the lean attention would pass it by.
        ModelBusyError: The model does something else.
    """
    check_no_hidden_hooks(model)
    with working(model), torch.no_grad():
        if isinstance(model, TransformerBridge):
            with unwrapped_blocks(model):
                yield BridgeDecoder(model)
        else:
            yield HookedDecoder(model)


def check_no_hidden_hooks(model: HookedModel) -> None:
    """Refuse a model with hooks that sampling and scoring would pass by in silence.

    Raises:
        HooksPresentError: Names the hook points.
    """
    bridge = isinstance(model, TransformerBridge)
    served: set[HookPoint] = {point for _, point in list_head_outputs(model)} if bridge else set()

    def unreached(name: str, point: HookPoint) -> bool:
        if bridge:  # inside a block, only its own input and output and its heads' outputs are seen
            return name.startswith("blocks.") and name.count(".") > 2 and point not in served
        return name.rsplit(".", 1)[-1] in _UNREACHED_HOOKS

    hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks and unreached(name, point)]
    if hooked:
        raise HooksPresentError.of(
            "model",
            "carry no hooks inside its blocks' attention but at hook_z while persona_lens samples or scores with it",
            hooked,
            "Remove them (model.reset_hooks()), or hook the residual stream (hook_resid_pre, hook_resid_post) or the "
            "heads' outputs (hook_z).",
        )
