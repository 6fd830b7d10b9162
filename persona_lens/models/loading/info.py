"""What identifies a model in results, and the hashes that tell models apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading.adapters import read_origin
from persona_lens.models.loading.hugging_face import find_blocks

# Rows of each weight that are hashed: training moves all of them.
_ROWS_OF_EMBEDDINGS = 64
_ROWS = 16
# The bridge names a Hugging Face module with its wrapper's attribute in between.
_WRAPPED = "_original_component."
_PROJECTIONS = {
    "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
    "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
}  # fmt: skip


@dataclass(frozen=True)
class ModelInfo:
    """What identifies a model in results.

    Args:
        name: As it was loaded.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        n_ctx: Context length in tokens.
        dtype: Element type of the weights.
        backend: ``hooked`` or ``bridge``.
        fingerprint: Hash of a sample of every weight, rounded to bfloat16: the same for both backends and for float32
            and bfloat16, another after fine-tuning.
        weight_processing: ``none`` for all that :func:`load_model` loads: the residual stream is the Hugging Face
            model's. ``layer norm folded`` for a HookedTransformer that was loaded elsewhere with folding.
        base_fingerprint: Fingerprint of the model that an adapter was merged into; None without an adapter, or where
            the base's weights cannot be named. Vectors of the base may be used on such a model.
    """

    name: str
    n_layers: int
    d_model: int
    n_ctx: int
    dtype: str
    backend: str
    fingerprint: str
    weight_processing: str
    base_fingerprint: str | None = None


def describe_model(model: HookedModel) -> ModelInfo:
    """Return what identifies a model in results.

    Args:
        model: HookedTransformer or TransformerBridge.
    """
    cfg = model.cfg
    digest, origin = fingerprint(model), read_origin(model)
    if origin is not None:  # a small adapter may leave alone every weight that is sampled, after rounding
        digest = hashlib.sha256(f"{digest} {origin.adapter_hash}".encode()).hexdigest()[:16]
    return ModelInfo(
        name=str(cfg.model_name),
        n_layers=int(cfg.n_layers),
        d_model=int(cfg.d_model),
        n_ctx=int(cfg.n_ctx),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        backend="bridge" if isinstance(model, TransformerBridge) else "hooked",
        fingerprint=digest,
        # TransformerLens renames the normalisation when it folds its weights into the next layer.
        weight_processing="layer norm folded" if str(cfg.normalization_type).endswith("Pre") else "none",
        base_fingerprint=origin.base_fingerprint if origin else None,
    )


def fingerprint(model: HookedModel) -> str:
    """Return a hash of a sample of every weight of the blocks and of the embeddings, rounded to bfloat16.

    The same for both backends and for float32 and bfloat16, as far as an architecture has the usual seven
    projections in each block; for others, each backend hashes the weights as it stores them.

    Args:
        model: HookedTransformer or TransformerBridge.
    """
    cfg = model.cfg
    shape = (cfg.n_layers, cfg.d_model, cfg.n_heads)
    if isinstance(model, TransformerBridge):
        hf_model = model.original_model
        shifted = _stores_norms_shifted(hf_model)
        blocks = [_name_weights(block) for block in model.blocks]
        return _hash_weights(shape, _hugging_face_embeddings(hf_model, shifted), blocks, shifted)
    shifted = str(cfg.original_architecture).startswith("Gemma")
    embeddings = {"unembed": model.unembed.W_U.T} | ({} if shifted else {"embed": model.embed.W_E})
    return _hash_weights(shape, embeddings, [_name_hooked_weights(block) for block in model.blocks], shifted)


def fingerprint_hugging_face(hf_model: Any) -> str | None:
    """Return the fingerprint that the model will have as a TransformerLens model; None where it cannot be known."""
    config = hf_model.config.get_text_config()
    blocks = [_name_weights(block) for block in find_blocks(hf_model)]
    if any({name for name, weight in block.items() if weight.ndim > 1} != _PROJECTIONS for block in blocks):
        return None
    shifted = _stores_norms_shifted(hf_model)
    shape = (len(blocks), config.hidden_size, config.num_attention_heads)
    return _hash_weights(shape, _hugging_face_embeddings(hf_model, shifted), blocks, shifted)


def _stores_norms_shifted(hf_model: Any) -> bool:
    """Whether TransformerLens stores norms as 1 + w and scales the embedding, which then are not alike."""
    return str(hf_model.config.get_text_config().model_type).startswith("gemma")


def _hugging_face_embeddings(hf_model: Any, shifted: bool) -> dict[str, Tensor]:
    embeddings = {"unembed": hf_model.get_output_embeddings().weight}
    return embeddings if shifted else embeddings | {"embed": hf_model.get_input_embeddings().weight}


def _name_weights(block: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a block of Hugging Face's, wrapped by the bridge or not."""
    return {name.replace(_WRAPPED, ""): weight for name, weight in block.named_parameters()}


def _name_hooked_weights(block: Any) -> dict[str, Tensor]:
    """Return the weights of a HookedTransformer's block, under Hugging Face's names and in its shapes."""
    attn: Any = block.attn
    mlp: Any = getattr(block, "mlp", None)
    if not isinstance(getattr(mlp, "W_gate", None), Tensor):  # no block that load_model makes
        return _name_weights(block)
    named = {"self_attn.o_proj.weight": attn.W_O.flatten(0, 1).T, "self_attn.o_proj.bias": attn.b_O}
    for head in "QKV":
        # Keys and values of grouped heads are stored once, under a name of their own, and repeated when they are read.
        own = attn._parameters
        named[f"self_attn.{head.lower()}_proj.weight"] = own.get(f"_W_{head}", own.get(f"W_{head}")).mT.flatten(0, 1)
        named[f"self_attn.{head.lower()}_proj.bias"] = own.get(f"_b_{head}", own.get(f"b_{head}")).flatten()
    for name, weight, bias in (("gate", mlp.W_gate, None), ("up", mlp.W_in, mlp.b_in), ("down", mlp.W_out, mlp.b_out)):
        named |= {f"mlp.{name}_proj.weight": weight.T} | ({} if bias is None else {f"mlp.{name}_proj.bias": bias})
    norms = {
        "input_layernorm": block.ln1,
        "post_attention_layernorm": block.ln2,
        "self_attn.q_norm": getattr(attn, "q_norm", None),
        "self_attn.k_norm": getattr(attn, "k_norm", None),
    }
    return named | {f"{name}.weight": norm.w for name, norm in norms.items() if hasattr(norm, "w")}


def _hash_weights(
    shape: tuple[int, int, int], embeddings: Mapping[str, Tensor], blocks: Sequence[Mapping[str, Tensor]], shifted: bool
) -> str:
    digest = hashlib.sha256(" ".join(map(str, shape)).encode())
    for name, weight in embeddings.items():
        _hash_weight(digest, name, weight, _ROWS_OF_EMBEDDINGS)
    for block in blocks:
        for name, weight in sorted(block.items()):
            # A HookedTransformer holds zeros where Hugging Face has no bias.
            absent = name.endswith("bias") and not weight.any()
            if not absent and not (shifted and "norm" in name):
                _hash_weight(digest, name, weight, _ROWS)
    return digest.hexdigest()[:16]


def _hash_weight(digest: Any, name: str, weight: Tensor, n_rows: int) -> None:
    """Hash rows spread over a matrix, or the whole of a vector, in bfloat16."""
    sample = weight.detach()
    if sample.ndim > 1:
        sample = sample[torch.linspace(0, len(sample) - 1, n_rows).long().to(sample.device)]
    digest.update(name.encode())
    digest.update(sample.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
