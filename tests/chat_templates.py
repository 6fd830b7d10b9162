"""Chat templates in the manner of well-known models', of our own writing, on a tokenizer whose bytes are tokens."""

from __future__ import annotations

import torch

import persona_lens as pl
from tests.tiny import make_hf_model, make_tokenizer

_ANSWER = "{% set answer = m.content.split('</think>')[-1].lstrip() %}"

# Qwen3: an argument switches thinking off by a closed thought; the last answer always shows one, earlier ones never.
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    + _ANSWER
    + "{% set thought = m.reasoning_content if m.reasoning_content is string else '' %}"
    "<|im_start|>assistant\n{% if loop.last %}<think>\n{{ thought.strip() }}\n</think>\n\n{% endif %}"
    "{{ answer }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# DeepSeek-R1's distillations: the prompt opens the thought; no answer shows one; the system prompt stands first.
R1 = (
    "<|endoftext|>{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == 'assistant' %}"
    "{% set content = m.content %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}"
    "{% endif %}<|Assistant|>{{ content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# Gemma: no system role, the assistant is called model, contents are trimmed.
GEMMA = (
    "<|endoftext|>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
# Llama 3: today's date in a system turn that is always there; tools; contents trimmed.
LLAMA3 = (
    "<|endoftext|>{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|im_start|>system\nToday Date: {{ date_string }}\n\n{{ system }}"
    "{% if tools is defined and tools %}{{ tools | tojson }}{% endif %}<|im_end|>"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Mistral: the system prompt stands in the last user's turn; turns must alternate.
MISTRAL = (
    "<|endoftext|>{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
    "{% for m in loop_messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST]{% if loop.last and system is defined %}{{ system }}\n\n{% endif %}"
    "{{ m.content }}[/INST]{% else %}{% generation %} {{ m.content }}<|im_end|>{% endgeneration %}{% endif %}"
    "{% endfor %}"
)
# Phi: everybody's turn alike; ends with the end of text unless asked on.
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)
# gpt-oss: channels; an analysis is one of them, and only the last answer ends with its own token.
HARMONY = (
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}\n"
    "Reasoning: {{ reasoning_effort if reasoning_effort is defined else 'medium' }}<|end|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}"
    "<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# As vision models': a content is a list of parts.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SPECIAL = {
    HARMONY: ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"),
    R1: ("<|User|>", "<|Assistant|>"),
    PHI: ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    MISTRAL: ("[INST]", "[/INST]"),
}
# Added, but not special, as Qwen3 and R1 have them.
_ADDED = {QWEN3: ("<think>", "</think>"), R1: ("<think>", "</think>")}

ALL = {
    "qwen3": QWEN3, "r1": R1, "gemma": GEMMA, "llama3": LLAMA3, "mistral": MISTRAL, "phi": PHI, "harmony": HARMONY,
    "parts": PARTS,
}  # fmt: skip
THINKING = ("qwen3", "r1", "harmony", "qwen3 as text")


def tokenizer_like(name: str):
    """Return the tokenizer; ``qwen3 as text`` has markers that are no tokens of their own."""
    template = ALL[name.removesuffix(" as text")]
    tokenizer = make_tokenizer(template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *_SPECIAL.get(template, ())]})
    if template is HARMONY:
        tokenizer.eos_token = "<|return|>"
    if not name.endswith(" as text"):
        tokenizer.add_tokens(list(_ADDED.get(template, ())))
    return tokenizer


# A tiny model that thinks: the markers of its thoughts are made likely, the rest is random.
_LIKELY = {"r1": ("</think>", "<|im_end|>"), "qwen3": ("<think>", "</think>", "<|im_end|>")}


def save_thinker(folder, name: str) -> str:
    """Write a model with such a template as a Hugging Face folder; its generation configuration lists two ends."""
    hf_model, tokenizer = make_hf_model("llama", n_ctx=512), tokenizer_like(name)
    hf_model.resize_token_embeddings(len(tokenizer))
    hf_model.generation_config.eos_token_id = [258, 7]
    hf_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load_thinker(folder: str, name: str):
    """Load it, and make it think, answer and stop."""
    model = pl.load_model(folder, dtype="float32", device="cpu")
    make_likely(model, _LIKELY[name])
    return model


def make_likely(model, words, chance: float = 0.12) -> None:
    """Give each word about this chance at every step."""
    with torch.no_grad():
        model.unembed.W_U[:] *= 0.05  # so that chances hardly depend on what was said
        model.unembed.b_U[:] = 0
        odds = torch.tensor(chance * model.cfg.d_vocab / (1 - chance * len(words)))
        model.unembed.b_U[model.tokenizer.convert_tokens_to_ids(list(words))] = float(odds.log())
