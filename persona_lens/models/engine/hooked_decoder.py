"""Run a HookedTransformer over a slot cache: its blocks, weights and hook points, with lean attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from persona_lens.errors import UnsupportedModelError
from persona_lens.models.engine.attention import SlotCache, Span, attend_grouped


class HookedDecoder:
    """Runs a HookedTransformer. See :class:`persona_lens.models.engine.decoding.Decoder`."""

    def __init__(self, model: Any) -> None:  # TransformerLens 4 has no HookedTransformer to name
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
            raise UnsupportedModelError.of(
                "model",
                "have rotary or standard positions and plain causal attention for sampling as a HookedTransformer",
                ", ".join(unsupported),
                'Load it with load_model(..., backend="bridge").',
            )
        self._device: torch.device = model.W_E.device
        self._rotary: dict[str, tuple[Tensor, Tensor]] = {}

    def new_cache(self, n_slots: int, max_length: int) -> SlotCache:
        """See :class:`persona_lens.models.engine.decoding.Decoder`."""
        n_kv_heads = self.cfg.n_key_value_heads or self.cfg.n_heads
        return SlotCache(
            self.cfg.n_layers, n_slots, max_length, n_kv_heads, self.cfg.d_head, self.cfg.dtype, self._device
        )

    def extend(
        self, tokens: Int[Tensor, "row pos"], starts: Int[Tensor, " row"], cache: SlotCache
    ) -> Float[Tensor, "row pos d_model"]:
        """See :class:`persona_lens.models.engine.decoding.Decoder`."""
        model, cfg = self.model, self.cfg
        span = Span(starts, tokens.shape[1])
        residual: Tensor = model.hook_embed(model.embed(tokens))
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
        """See :class:`persona_lens.models.engine.decoding.Decoder`."""
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        # What the module does, hooks included, but without copying W_U where it is laid out for this use.
        unembed = self.model.unembed
        read = unembed.hook_in(self.model.ln_final(flat))
        logits: Tensor = unembed.hook_out(F.linear(read, unembed.W_U.T, unembed.b_U))
        cap = self.cfg.output_logits_soft_cap
        if cap and cap > 0:
            logits = cap * torch.tanh(logits / cap)
        return logits.reshape(*hidden.shape[:-1], -1)

    def _rotation(self, attn: Any, span: Span) -> tuple[Tensor, Tensor]:
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
        block: Any,
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
            middle, read = residual + attn_out, residual
        else:
            middle = read = block.hook_resid_mid(residual + attn_out)
        output: Tensor = block.hook_resid_post(middle + block.apply_mlp(block.ln2(read)))
        return output

    def _attend(
        self,
        layer: int,
        attn: Any,
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
        outputs: Tensor = attn.hook_z(z.transpose(1, 2))
        # A view, not a copy, where load_model has laid the weights out for it.
        weight = rearrange(attn.W_O, "head d_head d_model -> d_model (head d_head)")
        return F.linear(outputs.flatten(2), weight, attn.b_O)

    def _rotate(self, attn: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotary_dim = cos.shape[-1]
        turned, passed = heads[..., :rotary_dim], heads[..., rotary_dim:]
        if self.cfg.rotary_adjacent_pairs:
            flipped = attn.rotate_every_two(turned)
        else:
            first, second = turned.chunk(2, dim=-1)
            flipped = torch.cat((-second, first), dim=-1)
        turned = turned * cos + flipped * sin
        return turned if passed.shape[-1] == 0 else torch.cat((turned, passed), dim=-1)
