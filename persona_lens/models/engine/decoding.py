"""Run a TransformerLens model over a slot cache: prompts, single steps and continuations, with ragged rows.

Both classes run the model's own modules, so that hooks on the residual stream fire as they do in an ordinary
forward pass; only attention is computed leanly. Hooks inside attention would not fire, so they are refused.

- ``HookedDecoder`` walks a ``HookedTransformer``'s blocks with its weights and hook points.
- ``BridgeDecoder`` runs the Hugging Face model under a ``TransformerBridge``. While it runs, the wrappers inside
  the blocks step aside; the blocks' own hooks stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from persona_lens.errors import HooksPresentError, UnsupportedModelError, describe_violation
from persona_lens.models.engine.attention import SlotCache, Span, attend_grouped
from persona_lens.models.hooked_model import HookedModel

# Hook points whose value the lean attention never forms.
_UNREACHED_HOOKS = (
    "hook_attn_scores", "hook_pattern", "hook_result", "hook_rot_q", "hook_rot_k", "hook_z",
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
    """
    check_no_hidden_hooks(model)
    with torch.no_grad():
        if isinstance(model, TransformerBridge):
            with _unwrapped_blocks(model):
                yield BridgeDecoder(model)
        else:
            yield HookedDecoder(model)


def check_no_hidden_hooks(model: HookedModel) -> None:
    """Refuse a model with hooks that sampling and scoring would pass by in silence.

    Raises:
        HooksPresentError: Names the hook points.
    """
    bridge = isinstance(model, TransformerBridge)

    def unreached(name: str) -> bool:
        if bridge:  # inside a block, only the block's own input and output are seen
            return name.startswith("blocks.") and name.count(".") > 2
        return name.rsplit(".", 1)[-1] in _UNREACHED_HOOKS

    hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks and unreached(name)]
    if hooked:
        raise HooksPresentError(
            describe_violation(
                "model",
                "carry no hooks inside its blocks' attention while persona_lens samples or scores with it",
                hooked,
                "Remove them (model.reset_hooks()), or hook the residual stream: hook_resid_pre, hook_resid_post.",
            )
        )


class HookedDecoder:
    """Runs a HookedTransformer. See :class:`Decoder`."""

    def __init__(self, model: HookedModel) -> None:
        self.model = model
        self.cfg = cfg = model.cfg
        unsupported = [
            name
            for name, present in (
                (f"positional_embedding_type={cfg.positional_embedding_type!r}",
                 cfg.positional_embedding_type not in ("rotary", "standard")),
                ("attention_dir", cfg.attention_dir != "causal"),
                ("use_attn_in / use_split_qkv_input / use_attn_result / use_hook_mlp_in",
                 cfg.use_attn_in or cfg.use_split_qkv_input or cfg.use_attn_result or cfg.use_hook_mlp_in),
                ("attn_only", cfg.attn_only),
                ("load_in_4bit", cfg.load_in_4bit),
                ("use_attention_sinks", getattr(cfg, "use_attention_sinks", False)),
                ("use_logn_attn", getattr(cfg, "use_logn_attn", False)),
                ("use_dynamic_ntk_rope", getattr(cfg, "use_dynamic_ntk_rope", False)),
                ("clip_qkv", getattr(cfg, "clip_qkv", None) is not None),
                (f"architecture {cfg.original_architecture}", "Olmo" in (cfg.original_architecture or "")),
            )
            if present
        ]  # fmt: skip
        if unsupported:
            raise UnsupportedModelError(
                describe_violation(
                    "model",
                    "have rotary or standard positions and plain causal attention for sampling as a HookedTransformer",
                    ", ".join(unsupported),
                    'Load it with load_model(..., backend="bridge").',
                )
            )
        self._rotary: dict[str, tuple[Tensor, Tensor]] = {}

    def new_cache(self, n_slots: int, max_length: int) -> SlotCache:
        """See :class:`Decoder`."""
        n_kv_heads = self.cfg.n_key_value_heads or self.cfg.n_heads
        return SlotCache(
            self.cfg.n_layers, n_slots, max_length, n_kv_heads, self.cfg.d_head, self.cfg.dtype, self._device
        )

    @property
    def _device(self) -> torch.device:
        return self.model.W_E.device

    def extend(
        self, tokens: Int[Tensor, "row pos"], starts: Int[Tensor, " row"], cache: SlotCache
    ) -> Float[Tensor, "row pos d_model"]:
        """See :class:`Decoder`."""
        model, cfg = self.model, self.cfg
        span = Span(starts, tokens.shape[1])
        residual = model.hook_embed(model.embed(tokens))
        if cfg.positional_embedding_type == "standard":
            residual = residual + model.hook_pos_embed(model.pos_embed.W_pos[span.positions])
        rotations: dict[str, tuple[Tensor, Tensor]] = {}
        for layer, block in enumerate(model.blocks):
            kind = block.attn.attn_type
            if cfg.positional_embedding_type == "rotary" and kind not in rotations:
                rotations[kind] = self._rotation(block.attn, span)
            residual = self._run_block(layer, block, residual, span, cache, rotations.get(kind))
        return residual

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """See :class:`Decoder`."""
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        # What the module does, hooks included, but without copying W_U where it is laid out for this use.
        unembed = self.model.unembed
        read = unembed.hook_in(self.model.ln_final(flat))
        logits = unembed.hook_out(F.linear(read, unembed.W_U.T, unembed.b_U))
        cap = self.cfg.output_logits_soft_cap
        if cap and cap > 0:
            logits = cap * torch.tanh(logits / cap)
        return logits.reshape(*hidden.shape[:-1], -1)

    def _rotation(self, attn: HookedModel, span: Span) -> tuple[Tensor, Tensor]:
        """Return cos and sin at the span's positions, ``[row, pos, 1, rotary_dim]``."""
        needed = span.key_length
        if attn.attn_type not in self._rotary or self._rotary[attn.attn_type][0].shape[0] < needed:
            sin, cos = attn.calculate_sin_cos_rotary(
                self.cfg.rotary_dim, needed, base=attn._rotary_base(), dtype=self.cfg.dtype
            )
            self._rotary[attn.attn_type] = cos.to(self._device), sin.to(self._device)
        cos, sin = self._rotary[attn.attn_type]
        return cos[span.positions][:, :, None], sin[span.positions][:, :, None]

    def _run_block(
        self,
        layer: int,
        block: HookedModel,
        residual: Tensor,
        span: Span,
        cache: SlotCache,
        rotation: tuple[Tensor, Tensor] | None,
    ) -> Float[Tensor, "row pos d_model"]:
        """Do what TransformerBlock.forward does, normalising once and attending leanly."""
        cfg = self.cfg
        residual = block.hook_resid_pre(residual)
        attn_out = self._attend(layer, block.attn, block.ln1(residual), span, cache, rotation)
        if cfg.use_normalization_before_and_after:
            attn_out = block.ln1_post(attn_out)
        attn_out = block.hook_attn_out(attn_out)
        if cfg.parallel_attn_mlp:
            return block.hook_resid_post(residual + attn_out + block.apply_mlp(block.ln2(residual)))
        middle = block.hook_resid_mid(residual + attn_out)
        return block.hook_resid_post(middle + block.apply_mlp(block.ln2(middle)))

    def _attend(
        self,
        layer: int,
        attn: HookedModel,
        normalized: Tensor,
        span: Span,
        cache: SlotCache,
        rotation: tuple[Tensor, Tensor] | None,
    ) -> Float[Tensor, "row pos d_model"]:
        queries, keys, values = attn.calculate_qkv_matrices(normalized, normalized, normalized)
        if rotation is not None:
            n_heads = queries.shape[2]
            rotated = self._rotate(attn, torch.cat((queries, keys), dim=2), *rotation)
            queries, keys = rotated[:, :, :n_heads], rotated[:, :, n_heads:]
        all_keys, all_values = cache.append(layer, keys.transpose(1, 2), values.transpose(1, 2), span)
        window = self.cfg.window_size if attn.attn_type == "local" else None
        cap = self.cfg.attn_scores_soft_cap
        z = attend_grouped(
            queries.transpose(1, 2),
            all_keys,
            all_values,
            span.mask(queries.dtype, window),
            1.0 / float(attn.attn_scale),
            cap if cap and cap > 0 else None,
        )
        # A view, not a copy, where load_model has laid the weights out for it.
        weight = rearrange(attn.W_O, "head d_head d_model -> d_model (head d_head)")
        return F.linear(rearrange(z, "row head pos d_head -> row pos (head d_head)"), weight, attn.b_O)

    def _rotate(self, attn: HookedModel, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotary_dim = cos.shape[-1]
        turned, passed = heads[..., :rotary_dim], heads[..., rotary_dim:]
        if self.cfg.rotary_adjacent_pairs:
            flipped = attn.rotate_every_two(turned)
        else:
            first, second = turned.chunk(2, dim=-1)
            flipped = torch.cat((-second, first), dim=-1)
        turned = turned * cos + flipped * sin
        return turned if passed.shape[-1] == 0 else torch.cat((turned, passed), dim=-1)


_HF_ATTENTION = "persona_lens_slots"


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
    **_: object,
) -> tuple[Tensor, None]:
    """Lean attention behind the Hugging Face attention interface."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend_grouped(query, key, value, attention_mask, scale, softcap).transpose(1, 2).contiguous(), None


# Both are Hugging Face's own extension points; the mask is always given, so its builder just hands it on.
ALL_ATTENTION_FUNCTIONS.register(_HF_ATTENTION, _attend_for_hugging_face)
ALL_MASK_ATTENTION_FUNCTIONS.register(_HF_ATTENTION, lambda *args, attention_mask=None, **kwargs: attention_mask)


class BridgeDecoder:
    """Runs the Hugging Face model under a TransformerBridge. See :class:`Decoder`."""

    def __init__(self, model: HookedModel) -> None:
        self.model = model
        self.hf_model = model.original_model
        self.config = self.hf_model.config.get_text_config()

    def new_cache(self, n_slots: int, max_length: int) -> SlotCache:
        """See :class:`Decoder`."""
        config = self.config
        n_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        weight = self.hf_model.get_input_embeddings().weight
        return SlotCache(config.num_hidden_layers, n_slots, max_length, n_kv_heads, d_head, weight.dtype, weight.device)

    def extend(
        self, tokens: Int[Tensor, "row pos"], starts: Int[Tensor, " row"], cache: SlotCache
    ) -> Float[Tensor, "row pos d_model"]:
        """See :class:`Decoder`."""
        span = Span(starts, tokens.shape[1])
        dtype = cache.keys.dtype
        # Hugging Face either lists each layer's kind, or (Mistral) gives all layers one window.
        kinds = getattr(self.config, "layer_types", None) or ()
        window = getattr(self.config, "sliding_window", None)
        mask: Tensor | dict[str, Tensor] = span.mask(dtype, None if kinds else window)
        if "sliding_attention" in kinds:
            mask = {"full_attention": span.mask(dtype), "sliding_attention": span.mask(dtype, window)}
        trunk = getattr(self.hf_model, self.hf_model.base_model_prefix)
        return trunk(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=span.positions,
            past_key_values=_HuggingFaceCache(cache, span),
            use_cache=True,
        ).last_hidden_state

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """See :class:`Decoder`."""
        logits = self.hf_model.get_output_embeddings()(hidden)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits


@contextmanager
def _unwrapped_blocks(model: HookedModel) -> Iterator[None]:
    """Let the modules inside the blocks run without their hook wrappers, and attention run on a slot cache."""
    config = model.original_model.config.get_text_config()
    restore: list[tuple[nn.Module, str, nn.Module]] = []

    def unwrap(module: HookedModel) -> None:
        for name, child in list(module._modules.items()):
            raw = getattr(child, "original_component", None)
            if raw is not None:
                restore.append((module, name, child))
                module._modules[name] = raw
                unwrap(raw)
            elif child is not None:
                unwrap(child)

    implementation = config._attn_implementation
    try:
        for block in model.blocks:
            unwrap(block.original_component)
        config._attn_implementation = _HF_ATTENTION
        yield
    finally:
        config._attn_implementation = implementation
        for module, name, child in reversed(restore):
            module._modules[name] = child
