"""The hashes that tell models apart: of a sample of every weight, the same in every dtype.

Rounding comes in between: a weight that was rounded to float16 and then to bfloat16 is not always the one that was
rounded to bfloat16 at once, and TransformerLens adds one to Gemma's norms. No hash of the weights as they lie in memory
agrees in all cases. A model therefore keeps the fingerprint of the weights that it was loaded from, beside a hash of
what they became: while that holds, so does the fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformer_lens.model_bridge import TransformerBridge

from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading.checkpoints import name_method
from persona_lens.models.loading.source import ModelSource

# Rows of each matrix that are hashed, spread evenly: training moves all of them. Vectors are hashed whole.
_ROWS_OF_EMBEDDINGS = 64
_ROWS = 16
# The bridge names a Hugging Face module with its wrapper's attribute in between.
_WRAPPED = "_original_component."
_ORIGIN = "persona_lens_origin"


@dataclass(frozen=True)
class Origin:
    """Where the weights of a loaded model come from.

    Args:
        fingerprint: Of the weights that it was loaded from, before they were rounded to its dtype.
        as_loaded: Hashes of what they became: as they lie in memory, and after a rounding to float16.
        base_fingerprint: Of the model that an adapter was merged into; None without one.
        source: What it was loaded from.
    """

    fingerprint: str
    as_loaded: frozenset[str]
    base_fingerprint: str | None
    source: ModelSource


def remember_origin(model: HookedModel, fingerprint: str, base_fingerprint: str | None, source: ModelSource) -> None:
    """Note in a model that was just loaded where its weights come from."""
    as_loaded = {_hash_in_memory(model, dtype) for dtype in (None, torch.float16)}
    model.__dict__[_ORIGIN] = Origin(fingerprint, frozenset(as_loaded), base_fingerprint, source)


def read_origin(model: HookedModel) -> Origin | None:
    """Return where a model's weights come from; None if it was loaded elsewhere."""
    return model.__dict__.get(_ORIGIN)


def forget_origin(model: HookedModel) -> None:
    """Make a model as if it were loaded elsewhere."""
    model.__dict__.pop(_ORIGIN, None)


def fingerprint(model: HookedModel) -> str:
    """Return the fingerprint of the weights that a model was loaded from, or that of its own.

    Of its own where it was loaded elsewhere, or changed since: the same as of the Hugging Face model, as far as both
    store their weights alike; that is in float32 and bfloat16, of the architectures that a HookedTransformer can hold,
    but for Gemma's.

    Args:
        model: HookedTransformer or TransformerBridge.
    """
    origin = read_origin(model)
    if origin is not None and _hash_in_memory(model) in origin.as_loaded:
        return origin.fingerprint
    if isinstance(model, TransformerBridge):
        return fingerprint_hugging_face(model.original_model)
    named = _name_hooked_weights(model)
    return _hash_in_memory(model) if named is None else _hash_weights(model.cfg.n_heads, named)


def fingerprint_hugging_face(hf_model: Any) -> str:
    """Return a hash of a sample of every weight of a Hugging Face model, rounded to bfloat16.

    The same in float32 and bfloat16; another after fine-tuning, if that changed any weight of the sample by more than
    the rounding. Of quantised weights the codes are hashed: another model than the one that was quantised.
    """
    # Named apart, as they may be one tensor, or, once more than one part of a program has them, two.
    n_heads = hf_model.config.get_text_config().num_attention_heads
    if read_quantization(hf_model) is not None:
        stored = _name_stored_weights(hf_model)
        return _hash_weights(n_heads, stored, embeddings=_list_embeddings(hf_model, stored))
    named = {"embed": hf_model.get_input_embeddings().weight, "unembed": hf_model.get_output_embeddings().weight}
    for name, weight in hf_model.named_parameters():
        if not any(weight is embedding for embedding in named.values()):
            named[name.replace(_WRAPPED, "")] = weight
    return _hash_weights(n_heads, named)


def read_quantization(hf_model: Any) -> str | None:
    """Return how a Hugging Face model's weights are quantised, in transformers' word for it; None if they are not."""
    config = getattr(hf_model.config, "quantization_config", None)
    if config is None or not getattr(hf_model, "is_quantized", False):
        return None
    named = name_method(config)
    return None if named == "gguf" else named  # whose weights are whole once they are read


def _name_stored_weights(hf_model: Any) -> dict[str, Tensor]:
    """Return a quantised model's codes, and the weights that were left as they are, by name.

    Without the codes' scales: bitsandbytes rounds and reorders them when it first computes on a CPU.
    """
    with _as_it_was(hf_model):
        stored = hf_model.state_dict()  # which lays codes out as they are in files
    named: dict[str, Tensor] = {}
    for name, _ in [*hf_model.named_parameters(), *hf_model.named_buffers()]:  # each once, under its first name
        if isinstance(weight := stored.get(name), Tensor):
            named |= {f"{name}{inner}".replace(_WRAPPED, ""): codes for inner, codes in _list_codes(weight)}
    return named


@contextmanager
def _as_it_was(hf_model: Any) -> Iterator[None]:
    """Give each weight the codes and scales back that it had before the block.

    bitsandbytes (0.50) lays 4-bit codes out anew for a CPU as it first computes with them, and back to save them, but
    not their scales: a model whose state was read once would compute with those in a wrong order from then on.
    """
    states = [(one, getattr(one, "quant_state", None)) for one in hf_model.parameters()]
    kept = [(one, one.data, state, dict(vars(state))) for one, state in states if state is not None]
    try:
        yield
    finally:
        for weight, data, state, attributes in kept:
            weight.data = data
            vars(state).clear()
            vars(state).update(attributes)


def _list_codes(weight: Any) -> list[tuple[str, Tensor]]:
    """Return a weight, or of one that is several tensors, as torchao's are, those of integers."""
    if not is_traceable_wrapper_subclass(weight):
        # bitsandbytes keeps 4-bit codes as one column, of which so many rows would be so many codes.
        is_column = weight.ndim == 2 and weight.shape[1] == 1 and not weight.is_floating_point()
        return [("", weight.reshape(-1) if is_column else weight)]
    inner = ((name, getattr(weight, name)) for name in weight.__tensor_flatten__()[0])
    found = [(f".{name}{rest}", codes) for name, one in inner for rest, codes in _list_codes(one)]
    return [(name, codes) for name, codes in found if not codes.is_floating_point() or codes.itemsize == 1]


def fingerprint_adapted(merged: Any, adapter_hash: str) -> str:
    """Return the fingerprint of a Hugging Face model with a merged adapter, however little that changed.

    Args:
        merged: The model.
        adapter_hash: SHA-256 of the adapter's weights.
    """
    return hashlib.sha256(f"{fingerprint_hugging_face(merged)} {adapter_hash}".encode()).hexdigest()[:16]


def _hash_in_memory(model: Any, rounded_to: torch.dtype | None = None) -> str:
    if isinstance(model, TransformerBridge) and read_quantization(model.original_model) is not None:
        return _hash_weights(model.cfg.n_heads, _name_stored_weights(model.original_model), rounded_to)
    # Along the longer axis: a row of TransformerLens' unembedding is as long as the vocabulary.
    weights = {
        name: weight.T if weight.ndim == 2 and weight.shape[0] < weight.shape[1] else weight
        for name, weight in model.named_parameters()
    }
    return _hash_weights(model.cfg.n_heads, weights, rounded_to)


def _name_hooked_weights(model: Any) -> dict[str, Tensor] | None:
    """Return a HookedTransformer's weights under Llama's names and in its shapes; None if it stores others."""
    is_gated = all(isinstance(getattr(block.mlp, "W_gate", None), Tensor) for block in model.blocks)
    if not is_gated or str(model.cfg.original_architecture).startswith("Gemma") or not hasattr(model.ln_final, "w"):
        return None
    named = {"embed": model.embed.W_E, "unembed": model.unembed.W_U.T, "model.norm.weight": model.ln_final.w}
    for layer, block in enumerate(model.blocks):
        named |= {f"model.layers.{layer}.{name}": weight for name, weight in _name_block_weights(block).items()}
    return named


def _name_block_weights(block: Any) -> dict[str, Tensor]:
    attn, mlp = block.attn, block.mlp
    named = {"self_attn.o_proj.weight": attn.W_O.flatten(0, 1).T, "self_attn.o_proj.bias": attn.b_O}
    for head in "QKV":
        # Keys and values of grouped heads are stored once, under a name of their own, and repeated when they are read.
        own = attn._parameters
        named[f"self_attn.{head.lower()}_proj.weight"] = own.get(f"_W_{head}", own.get(f"W_{head}")).mT.flatten(0, 1)
        named[f"self_attn.{head.lower()}_proj.bias"] = own.get(f"_b_{head}", own.get(f"b_{head}")).flatten()
    for name, weight, bias in (("gate", mlp.W_gate, None), ("up", mlp.W_in, mlp.b_in), ("down", mlp.W_out, mlp.b_out)):
        named |= {f"mlp.{name}_proj.weight": weight.T} | ({} if bias is None else {f"mlp.{name}_proj.bias": bias})
    norms: dict[str, nn.Module | None] = {
        "input_layernorm": block.ln1,
        "post_attention_layernorm": block.ln2,
        "self_attn.q_norm": getattr(attn, "q_norm", None),
        "self_attn.k_norm": getattr(attn, "k_norm", None),
    }
    return named | {f"{name}.weight": norm.w for name, norm in norms.items() if isinstance(norm, nn.Module)}


def _list_embeddings(hf_model: Any, names: Collection[str]) -> frozenset[str]:
    """Return the names of a Hugging Face model's token embeddings, of those given."""
    module = hf_model.get_input_embeddings()
    prefix = next(name for name, one in hf_model.named_modules() if one is module).replace(_WRAPPED, "")
    return frozenset(name for name in names if name.startswith(f"{prefix}.weight"))


def _hash_weights(
    n_heads: int,
    weights: Mapping[str, Tensor],
    rounded_to: torch.dtype | None = None,
    embeddings: frozenset[str] | None = None,
) -> str:
    """Hash a sample of every weight, with more rows of embeddings: those named, or, as ever, all that are called so."""
    digest = hashlib.sha256(str(n_heads).encode())
    for name, weight in sorted(weights.items()):
        # A HookedTransformer holds zeros where Hugging Face has no bias.
        if name.rpartition(".")[2].startswith("b") and not weight.any():
            continue
        is_embedding = "embed" in name if embeddings is None else name in embeddings
        sample = _sample(weight.detach(), _ROWS_OF_EMBEDDINGS if is_embedding else _ROWS)
        digest.update(f"{name} {list(weight.shape)}".encode())
        if sample.is_floating_point() and sample.itemsize > 1:
            sample = sample.to("cpu", rounded_to or sample.dtype).to(torch.bfloat16)
        digest.update(sample.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(weight: Tensor, n_rows: int) -> Tensor:
    """Return rows spread over a matrix, or over matrices as if they were one; a vector whole."""
    if weight.ndim < 2:
        return weight
    shape = weight.shape[:-1]
    rows = torch.linspace(0, shape.numel() - 1, n_rows).long().to(weight.device)
    return weight[torch.unravel_index(rows, shape)]
