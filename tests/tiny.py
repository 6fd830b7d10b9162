"""Random models of real architectures, with a byte-level chat tokenizer: small oracles for tests."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
}


def make_tokenizer(*, template: str = CHATML) -> PreTrainedTokenizerFast:
    """Every byte is a token; three special tokens; ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:2],
    )
    fast.chat_template = template
    return fast


def make_tokenizer_without_system_role() -> PreTrainedTokenizerFast:
    """As Gemma's: the template raises at a system message."""
    return make_tokenizer(template=_NO_SYSTEM + CHATML)


def make_hf_model(architecture: str, seed: int = 0, n_ctx: int = 256):
    """Three layers, d_model 48, six heads over two key/value heads; weights scaled up so that logits are not flat."""
    config_class, model_class = _CLASSES[architecture]
    extra = {"sliding_window": 12} if architecture in ("gemma2", "mistral") else {}
    config = config_class(
        vocab_size=259, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=n_ctx, bos_token_id=256, eos_token_id=257,
        pad_token_id=256, tie_word_embeddings=architecture.startswith("gemma"), **extra,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
            else:
                parameter.mul_(6.0)
    return model


def save_tiny(folder, architecture: str, seed: int = 0, n_ctx: int = 256) -> str:
    """Write model and tokenizer as a Hugging Face folder."""
    make_hf_model(architecture, seed, n_ctx).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)
