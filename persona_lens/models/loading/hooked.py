"""HookedTransformers made of Hugging Face models: configuration, weights, and the weights' memory order."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from persona_lens.errors import UnsupportedModelError
from persona_lens.models.loading.process_wide import empty_weights

# TransformerLens' function that converts an architecture's weights.
CONVERTERS = {
    "LlamaForCausalLM": "convert_llama_weights",
    "MistralForCausalLM": "convert_mistral_weights",
    "Qwen2ForCausalLM": "convert_qwen2_weights",
    "Qwen3ForCausalLM": "convert_qwen3_weights",
    "GemmaForCausalLM": "convert_gemma_weights",
    "Gemma2ForCausalLM": "convert_gemma_weights",
}
if importlib.util.find_spec("transformer_lens.HookedTransformer") is None:  # TransformerLens 4
    CONVERTERS = {}


def build_hooked(name: str, hf_model: Any, tokenizer: Any, dtype: torch.dtype) -> Any:
    """Make a HookedTransformer of a Hugging Face model, its weights neither folded nor centred."""
    # Gone in TransformerLens 4, where only the bridge is used.
    from transformer_lens import HookedTransformer
    from transformer_lens.pretrained import weight_conversions

    cfg = _derive_config(name, hf_model, dtype)
    with empty_weights():
        model = HookedTransformer(cfg, tokenizer, move_to_device=False)
    state = getattr(weight_conversions, CONVERTERS[cfg.original_architecture])(hf_model, cfg)
    _place_weights(model, state, hf_model.device)
    optimize_memory_layout(model)
    return model.to(hf_model.device, print_details=False).eval()  # its buffers


def _place_weights(model: Any, state: dict[str, Tensor], device: torch.device) -> None:
    """Give each parameter its weight: the Hugging Face model's own memory, in other axes, so that it is held once.

    Of weights that are one tensor there, as tied embeddings, each gets its own, as HookedTransformer has it: a change
    of one would change the other.

    Raises:
        UnsupportedModelError: A parameter without a weight, a weight without a place, or one of another shape.
    """
    places = {name: parameter.shape for name, parameter in model.named_parameters()}
    weights = {name: weight.shape for name, weight in state.items()}
    if weights != places:
        odd = [name for name in {**places, **weights} if weights.get(name) != places.get(name)]
        rule = "have the weights that TransformerLens expects of its architecture, each of its shape"
        raise UnsupportedModelError.of("model", rule, f"others at {', '.join(odd[:5])}", 'Pass backend="bridge".')
    taken: set[int] = set()
    for name, parameter in list(model.named_parameters()):
        weight = state.pop(name).detach().to(device, parameter.dtype)
        storage = weight.untyped_storage().data_ptr()
        weight = weight.clone() if storage in taken else weight
        taken.add(storage)
        module, _, own = name.rpartition(".")
        setattr(model.get_submodule(module), own, nn.Parameter(weight))


def _derive_config(name: str, hf_model: Any, dtype: torch.dtype) -> Any:
    """Derive a HookedTransformerConfig from the Hugging Face config.

    Raises:
        UnsupportedModelError: A rope scaling or attention bias that HookedTransformer cannot hold.
    """
    from transformer_lens import HookedTransformerConfig

    hf = hf_model.config
    architecture = hf.architectures[0]
    d_head = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    rope = dict(getattr(hf, "rope_parameters", None) or {})
    fields: dict[str, Any] = {
        "model_name": name,
        "original_architecture": architecture,
        "n_layers": hf.num_hidden_layers,
        "d_model": hf.hidden_size,
        "n_ctx": hf.max_position_embeddings,
        "d_head": d_head,
        "n_heads": hf.num_attention_heads,
        "d_mlp": hf.intermediate_size,
        "d_vocab": hf.vocab_size,
        "act_fn": getattr(hf, "hidden_activation", None) or hf.hidden_act,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "eps": hf.rms_norm_eps,
        "positional_embedding_type": "rotary",
        "rotary_dim": d_head,
        "rotary_base": rope.get("rope_theta", 10000.0),
        "rotary_adjacent_pairs": False,
        "n_key_value_heads": hf.num_key_value_heads,
        "use_qk_norm": architecture == "Qwen3ForCausalLM",
        "dtype": dtype,
        "device": str(hf_model.device),
        "init_weights": False,  # all are loaded
    }
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        fields |= {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_by_parts_factor": rope["factor"],
        }
    elif kind != "default":
        rule = "have plain or llama3 rope scaling for the hooked backend"
        raise UnsupportedModelError.of("model", rule, kind, 'Pass backend="bridge".')
    biases = [key for key in ("attention_bias", "mlp_bias") if getattr(hf, key, False)]
    if biases and architecture != "Qwen2ForCausalLM":
        # TransformerLens' conversions for the other architectures leave these weights out.
        rule = "have no biases for the hooked backend"
        raise UnsupportedModelError.of("model", rule, biases, 'Pass backend="bridge".')
    windows = [kind == "sliding_attention" for kind in (getattr(hf, "layer_types", None) or ())]
    if any(windows) or (architecture == "MistralForCausalLM" and getattr(hf, "sliding_window", None)):
        fields |= {
            "use_local_attn": True,
            "window_size": hf.sliding_window,
            "attn_types": ["local" if local else "global" for local in windows or [True] * hf.num_hidden_layers],
        }
    if architecture == "Gemma2ForCausalLM":
        fields |= {
            "use_normalization_before_and_after": True,
            "attn_scale": hf.query_pre_attn_scalar**0.5,
            "attn_scores_soft_cap": hf.attn_logit_softcapping or -1.0,
            "output_logits_soft_cap": hf.final_logit_softcapping or -1.0,
        }
    return HookedTransformerConfig(**fields)


def optimize_memory_layout(model: Any) -> None:
    """Store a HookedTransformer's weights in the memory order in which its forward pass uses them.

    TransformerLens 3.9 lays its weights out anew in every forward pass (``W_gate.T.contiguous()`` and the like).
    Stored in that order to begin with, the same calls become views: same shapes, same values, bit-identical logits,
    about 1.8 times the tokens a second. Done in place; doing it twice changes nothing.

    Args:
        model: A HookedTransformer.
    """

    def store_as(parameter: nn.Parameter, *order: int) -> None:
        """Make ``parameter.permute(order)`` contiguous."""
        inverse = [order.index(axis) for axis in range(len(order))]
        parameter.data = parameter.data.permute(order).contiguous().permute(inverse)

    for block in model.blocks:
        attn = block.attn
        for name in ("W_Q", "_W_K", "_W_V", "W_K", "W_V"):
            if isinstance(parameter := attn._parameters.get(name), nn.Parameter) and parameter.ndim == 3:
                store_as(parameter, 0, 2, 1)  # used as (head d_head) d_model
        store_as(attn.W_O, 2, 0, 1)  # used as d_model (head d_head)
        for name in ("W_gate", "W_in", "W_out"):
            weight = getattr(getattr(block, "mlp", None), name, None)
            if isinstance(weight, nn.Parameter) and weight.ndim == 2:
                store_as(weight, 1, 0)
    store_as(model.unembed.W_U, 1, 0)
