"""Tiny random models of many architectures: what is peculiar to each is there, and switched on."""

from __future__ import annotations

import torch
import transformers as hf

N_LAYERS, D_MODEL, WINDOW = 4, 48, 12
_SHAPE = {
    "vocab_size": 259, "hidden_size": D_MODEL, "intermediate_size": 80, "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 6, "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 258,
    "pad_token_id": 256, "tie_word_embeddings": False,
}  # fmt: skip
_GROUPED = _SHAPE | {"num_key_value_heads": 2, "head_dim": 8}
_OLD = {
    "vocab_size": 259, "n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": 6, "n_positions": 256, "bos_token_id": 256,
    "eos_token_id": 258, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
_GEMMA = {"tie_word_embeddings": True, "sliding_window": WINDOW}
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_LINEAR = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
_LATENT = {
    "num_key_value_heads": 6, "head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 40, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1,
}  # fmt: skip
_EYES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def _gemma3_with_eyes():
    text = hf.Gemma3TextConfig(**_GROUPED | _GEMMA | _MIXED).to_dict()
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 255, "boi_token_index": 254, "eoi_token_index": 253}
    return hf.Gemma3Config(text_config=text, vision_config=_EYES, **tokens)


# As a model card names them: class, and configuration.
ARCHITECTURES = {
    "Llama 3": ("LlamaForCausalLM", lambda: hf.LlamaConfig(**_GROUPED, rope_parameters=_LLAMA3_ROPE)),
    "Mistral": ("MistralForCausalLM", lambda: hf.MistralConfig(**_GROUPED, sliding_window=WINDOW)),
    "Qwen2, Qwen2.5": ("Qwen2ForCausalLM", lambda: hf.Qwen2Config(**_GROUPED)),
    "Qwen3": ("Qwen3ForCausalLM", lambda: hf.Qwen3Config(**_GROUPED)),
    "Gemma": ("GemmaForCausalLM", lambda: hf.GemmaConfig(**_GROUPED | {"tie_word_embeddings": True})),
    "Gemma 2": ("Gemma2ForCausalLM", lambda: hf.Gemma2Config(**_GROUPED | _GEMMA)),
    "Gemma 3 (text)": ("Gemma3ForCausalLM", lambda: hf.Gemma3TextConfig(**_GROUPED | _GEMMA | _MIXED)),
    "Gemma 3 (with vision; its text part)": ("Gemma3ForConditionalGeneration", _gemma3_with_eyes),
    "Phi-3, Phi-4": ("Phi3ForCausalLM", lambda: hf.Phi3Config(**_GROUPED, sliding_window=WINDOW)),
    "OLMo 2": ("Olmo2ForCausalLM", lambda: hf.Olmo2Config(**_GROUPED)),
    "OLMo 3": ("Olmo3ForCausalLM", lambda: hf.Olmo3Config(**_GROUPED | _MIXED)),
    "GPT-2": ("GPT2LMHeadModel", lambda: hf.GPT2Config(**_OLD)),
    "GPT-NeoX, Pythia": ("GPTNeoXForCausalLM", lambda: hf.GPTNeoXConfig(**_SHAPE, hidden_dropout=0.0)),
    "gpt-oss": (
        "GptOssForCausalLM",
        lambda: hf.GptOssConfig(**_GROUPED | _MIXED, num_local_experts=4, num_experts_per_tok=2, rope_parameters=_YARN),
    ),
    "Mixtral": ("MixtralForCausalLM", lambda: hf.MixtralConfig(**_GROUPED, num_local_experts=4)),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", lambda: hf.Qwen3MoeConfig(**_GROUPED | _EXPERTS)),
    "Qwen2-MoE": (
        "Qwen2MoeForCausalLM",
        lambda: hf.Qwen2MoeConfig(**_GROUPED | _EXPERTS, shared_expert_intermediate_size=40),
    ),
    "OLMoE": ("OlmoeForCausalLM", lambda: hf.OlmoeConfig(**_GROUPED, num_experts=4, num_experts_per_tok=2)),
    "SmolLM3": ("SmolLM3ForCausalLM", lambda: hf.SmolLM3Config(**_GROUPED)),
    "Granite": (
        "GraniteForCausalLM",
        lambda: hf.GraniteConfig(
            **_GROUPED, residual_multiplier=0.5, attention_multiplier=0.3, embedding_multiplier=3.0, logits_scaling=2.0
        ),
    ),
    "GLM-4": ("Glm4ForCausalLM", lambda: hf.Glm4Config(**_GROUPED)),
    "StableLM": ("StableLmForCausalLM", lambda: hf.StableLmConfig(**_GROUPED, hidden_dropout=0.0)),
    "StarCoder2": (
        "Starcoder2ForCausalLM",
        lambda: hf.Starcoder2Config(**_GROUPED, residual_dropout=0.0, embedding_dropout=0.0),
    ),
    "Phi-1, Phi-2": ("PhiForCausalLM", lambda: hf.PhiConfig(**_SHAPE, resid_pdrop=0.0)),
    "GPT-J": ("GPTJForCausalLM", lambda: hf.GPTJConfig(**_OLD, rotary_dim=4, tie_word_embeddings=False)),
    "Falcon": ("FalconForCausalLM", lambda: hf.FalconConfig(**_SHAPE)),
    # Held against Hugging Face's model when they are loaded, as every architecture is that is not tested here.
    "Command R (Cohere)": ("CohereForCausalLM", lambda: hf.CohereConfig(**_GROUPED, logit_scale=0.5)),
    "Nemotron": ("NemotronForCausalLM", lambda: hf.NemotronConfig(**_GROUPED)),
    # Refused.
    "Qwen3-Next": (
        "Qwen3NextForCausalLM",
        lambda: hf.Qwen3NextConfig(**_GROUPED | _EXPERTS | _LINEAR, shared_expert_intermediate_size=40),
    ),
    "Llama 4 (text)": (
        "Llama4ForCausalLM",
        lambda: hf.Llama4TextConfig(**_GROUPED, intermediate_size_mlp=80, num_local_experts=2, attention_chunk_size=16),
    ),
    "Gemma 4 (text)": ("Gemma4ForCausalLM", lambda: hf.Gemma4TextConfig(**_GROUPED | _MIXED)),
    "DeepSeek-V3": ("DeepseekV3ForCausalLM", lambda: hf.DeepseekV3Config(**_SHAPE | _LATENT)),
    "Phi-3.5-MoE": ("PhimoeForCausalLM", lambda: hf.PhimoeConfig(**_GROUPED, num_local_experts=4)),
    "BLOOM": ("BloomForCausalLM", lambda: hf.BloomConfig(**_SHAPE, n_layer=N_LAYERS, n_head=6)),
    "Mamba": ("MambaForCausalLM", lambda: hf.MambaConfig(vocab_size=259, hidden_size=D_MODEL, num_hidden_layers=2)),
}


def make_architecture(name: str):
    """Make a model whose weights are scaled up so that logits are not flat, and whose norms and biases do something."""
    class_name, make_config = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = getattr(hf, class_name)(make_config()).eval()
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            if "norm" in place or ".ln_" in place:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif place.endswith(("bias", "sinks")):
                parameter.normal_(std=0.2)
            else:
                parameter.mul_(6.0)
    return model
