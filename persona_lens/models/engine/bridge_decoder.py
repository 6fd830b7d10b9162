"""Run the Hugging Face model under a TransformerBridge over a slot cache, with lean attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from persona_lens.errors import UnsupportedModelError
from persona_lens.models.engine.attention import SlotCache, Span, attend_grouped
from persona_lens.models.hooks.sharing import guard
from persona_lens.models.hooks.sites import heads_hook_name
from persona_lens.models.loading.architectures import check_architecture, finish_logits
from persona_lens.models.loading.hugging_face import count_kv_heads, read_head_shape

_HF_ATTENTION = "persona_lens_slots"
# Tensors that attention is handed and that change nothing: where tokens lie is in the mask.
_NOT_ATTENDED = {"position_ids", "cache_position"}


class _HuggingFaceCache(Cache):
    """A SlotCache behind the ``update`` method that Hugging Face attention calls."""

    def __init__(self, cache: SlotCache, span: Span) -> None:
        super().__init__(layers=[])
        self.slots, self.span = cache, span

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        return self.slots.append(layer_idx, key_states, value_states, self.span)


def _attend_for_hugging_face(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **more: object,
) -> tuple[Tensor, None]:
    """Lean attention behind the Hugging Face attention interface.

    Raises:
        UnsupportedModelError: The architecture hands over a tensor that is not known here, such as a bias on positions.
    """
    unknown = sorted(name for name, value in more.items() if isinstance(value, Tensor) and name not in _NOT_ATTENDED)
    if unknown:
        rule, got = "have plain causal attention", f"{type(module).__name__} with {', '.join(unknown)}"
        raise UnsupportedModelError.of("model", rule, got, "docs/howto/architectures.md lists what runs.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend_grouped(query, key, value, attention_mask, scale, softcap, s_aux).transpose(1, 2).contiguous(), None


# Both are Hugging Face's own extension points; the mask is always given, so its builder just hands it on.
ALL_ATTENTION_FUNCTIONS.register(_HF_ATTENTION, _attend_for_hugging_face)
ALL_MASK_ATTENTION_FUNCTIONS.register(_HF_ATTENTION, lambda *args, attention_mask=None, **kwargs: attention_mask)


class BridgeDecoder:
    """Runs the Hugging Face model under a bridge. See :class:`persona_lens.models.engine.decoding.Decoder`."""

    def __init__(self, model: TransformerBridge) -> None:
        hf_model: Any = model.original_model
        check_architecture(hf_model.config, type(hf_model))  # it may have been loaded elsewhere
        self.hf_model, self.config = hf_model, hf_model.config.get_text_config()

    def new_cache(self, n_slots: int, max_length: int) -> SlotCache:
        """See :class:`persona_lens.models.engine.decoding.Decoder`."""
        config = self.config
        _, d_head = read_head_shape(config)
        weight = self.hf_model.get_input_embeddings().weight
        shape = (config.num_hidden_layers, n_slots, max_length, count_kv_heads(config), d_head)
        return SlotCache(*shape, weight.dtype, weight.device)

    def extend(
        self, tokens: Int[Tensor, "row pos"], starts: Int[Tensor, " row"], cache: SlotCache
    ) -> Float[Tensor, "row pos d_model"]:
        """See :class:`persona_lens.models.engine.decoding.Decoder`."""
        span = Span(starts, tokens.shape[1])
        dtype = cache.keys.dtype
        # Hugging Face either lists each layer's kind, or (Mistral) gives all layers one window.
        kinds = getattr(self.config, "layer_types", None) or ()
        window = getattr(self.config, "sliding_window", None)
        mask: Tensor | dict[str, Tensor] = span.mask(dtype, None if kinds else window)
        if "sliding_attention" in kinds:
            mask = {"full_attention": span.mask(dtype), "sliding_attention": span.mask(dtype, window)}
        trunk = getattr(self.hf_model, self.hf_model.base_model_prefix)
        hidden: Tensor = trunk(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=span.positions,
            past_key_values=_HuggingFaceCache(cache, span),
            use_cache=True,
        ).last_hidden_state
        return hidden

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """See :class:`persona_lens.models.engine.decoding.Decoder`."""
        logits: Tensor = self.hf_model.get_output_embeddings()(hidden)
        return finish_logits(logits, self.config)


def list_head_outputs(model: Any) -> list[tuple[nn.Module, HookPoint]]:
    """Return each block's output projection with the hook point at what it reads: the heads' outputs, ``hook_z``.

    A block without such a pair, as some architectures have, is left out.
    """
    points, found = model.hook_dict, []
    for layer, block in enumerate(model.blocks):
        output = getattr(getattr(block, "attn", None), "o", None)
        if output is not None and points.get(heads_hook_name(layer)) is output.hook_in:
            found.append((output.original_component, output.hook_in))
    return found


@contextmanager
def without_wrappers(model: Any) -> Iterator[None]:
    """Let the modules inside a bridge's blocks run as Hugging Face wrote them.

    Args:
        model: A TransformerBridge.
    """
    restore: list[tuple[nn.Module, str, nn.Module]] = []

    def unwrap(module: Any) -> None:
        for name, child in list(module._modules.items()):
            raw = getattr(child, "original_component", None)
            if raw is not None:
                restore.append((module, name, child))
                module._modules[name] = raw
            if child is not None:
                unwrap(child if raw is None else raw)

    try:
        for block in model.blocks:
            unwrap(block.original_component)
        yield
    finally:
        for module, name, child in reversed(restore):
            module._modules[name] = child


@contextmanager
def unwrapped_blocks(model: Any) -> Iterator[None]:
    """Let the modules inside the blocks run without their hook wrappers, and attention run on a slot cache.

    ``hook_z`` is still called, by the output projections themselves.

    Args:
        model: A TransformerBridge.
    """
    hf_model: Any = model.original_model
    config = hf_model.config.get_text_config()
    implementation = config._attn_implementation
    trunk = getattr(hf_model, hf_model.base_model_prefix)
    # Meanwhile it attends on slot caches alone: an ordinary forward pass would come out wrong.
    handles = [trunk.register_forward_pre_hook(guard(model, lambda module, args: None))]
    handles += [
        module.register_forward_pre_hook(lambda module, args, point=point: (point(args[0]), *args[1:]))
        for module, point in list_head_outputs(model)
    ]
    try:
        with without_wrappers(model):
            config._attn_implementation = _HF_ATTENTION
            yield
    finally:
        for handle in handles:
            handle.remove()
        config._attn_implementation = implementation
