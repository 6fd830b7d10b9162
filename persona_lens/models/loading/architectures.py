"""Which architectures can be held: read from a configuration, before any weight is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from persona_lens.errors import UnsupportedModelError

# Those that tests/models/test_architectures.py holds against Hugging Face's models, layer by layer and token by token;
# docs/howto/architectures.md shows them. Others are compared when they are loaded (parity.py).
TESTED = frozenset({
    "FalconForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoXForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForCausalLM", "GemmaForCausalLM", "Glm4ForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM",
    "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM",
    "OlmoeForCausalLM", "Phi3ForCausalLM", "PhiForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "SmolLM3ForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM",
})  # fmt: skip
_KINDS_OF_LAYERS = {"full_attention", "sliding_attention"}


def check_architecture(config: Any, model_class: type[nn.Module]) -> None:
    """Refuse an architecture whose attention the sampler cannot compute over its cache.

    Args:
        config: The Hugging Face configuration.
        model_class: The Hugging Face class that will hold the weights.

    Raises:
        UnsupportedModelError: Names the class and what stands in the way.
    """
    text, reasons = config.get_text_config(), []
    if getattr(config, "is_encoder_decoder", False):
        reasons.append("it has an encoder beside its decoder")
    if getattr(text, "num_attention_heads", None) is None:
        reasons.append("it has no attention heads")
    others = sorted({str(kind) for kind in getattr(text, "layer_types", None) or ()} - _KINDS_OF_LAYERS)
    if others:
        reasons.append(f"it has layers of {', '.join(others)}")
    if getattr(text, "kv_lora_rank", None):
        reasons.append("its keys and values are compressed into one latent (MLA)")
    if _head_widths_differ(text):
        reasons.append("its layers have heads of different widths")
    if getattr(text, "alibi", False) or getattr(text, "use_alibi", False):
        reasons.append("it tells positions by a bias on the scores (ALiBi)")
    name = model_class.__name__
    if not reasons and name not in TESTED and not getattr(model_class, "_supports_attention_backend", False):
        reasons.append("its attention in transformers takes no other kernel")
    if reasons:
        rule = "have plain causal attention, full or in a window, in every layer"
        hint = "docs/howto/architectures.md lists what runs."
        raise UnsupportedModelError.of("model", rule, f"{name}: {'; '.join(reasons)}", hint)


def finish_logits(logits: Tensor, config: Any) -> Tensor:
    """Return a model's logits from what its unembedding gives: scaled (Cohere, Granite) and capped (Gemma).

    Args:
        logits: What the output embeddings give.
        config: The Hugging Face text configuration.
    """
    # Cohere multiplies, Granite divides.
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * (logits / cap).tanh() if cap else logits


def _head_widths_differ(config: Any) -> bool:
    try:
        getattr(config, "head_dim", None)
    except Exception:  # what transformers raises at a value that each layer has for itself
        return True
    return False
