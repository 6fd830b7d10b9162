"""The check of the context length: as others state it, and refused beyond it."""

from __future__ import annotations

import torch

from persona_lens.diagnosis.finding import Finding
from persona_lens.diagnosis.subject import Subject
from persona_lens.errors import ContextLengthError
from persona_lens.models.engine.activations import cache_residual_stream
from persona_lens.models.text.chat import build_messages, encode_prompt

_UNSTATED = 10**9  # what tokenizers say that state no length is far above


def check_context(subject: Subject) -> Finding:
    """The context is as long as configuration and tokenizer say, and a prompt beyond it is refused, not cut."""
    name, n_ctx = "context length", int(subject.model.cfg.n_ctx)
    stated = _list_stated(subject)
    seen = f"{n_ctx} tokens; " + "; ".join(f"{who} {'states none' if n is None else n}" for who, n in stated.items())
    shorter = {who: n for who, n in stated.items() if n is not None and n < n_ctx}
    if shorter:
        cure = f"Keep prompt and response within {min(shorter.values())} tokens, or set model.cfg.n_ctx to it."
        return Finding(name, False, f"{seen}.", cure)
    fault = _find_fault(subject, n_ctx)
    if fault:
        cure = "Count tokens yourself before the model runs: what is cut in silence changes every result."
        return Finding(name, False, f"{seen}. {fault}", cure)
    return Finding(name, True, f"{seen}. Longer prompts are refused.")


def _list_stated(subject: Subject) -> dict[str, int | None]:
    config = subject.reference.config if subject.reference else None
    length = getattr(subject.tokenizer, "model_max_length", None)
    return {
        "the configuration": getattr(config, "max_position_embeddings", None),
        "the tokenizer": int(length) if length is not None and length < _UNSTATED else None,
    }


def _find_fault(subject: Subject, n_ctx: int) -> str:
    """Try a text that is too long, as tokens and as words."""
    tokens = torch.zeros((1, n_ctx + 1), dtype=torch.long)
    try:
        cache_residual_stream(subject.model, tokens)
    except ContextLengthError:
        pass
    else:
        return f"{n_ctx + 1} tokens were not refused."
    if not getattr(subject.tokenizer, "chat_template", None):
        return ""
    chat = build_messages("word " * n_ctx)
    n_tokens = len(encode_prompt(subject.tokenizer, chat).tokens)
    if n_tokens <= n_ctx:
        return f"A prompt of {n_ctx} words was cut to {n_tokens} tokens."
    try:
        encode_prompt(subject.tokenizer, chat, n_ctx=n_ctx)
    except ContextLengthError:
        return ""
    return f"A prompt of {n_tokens} tokens was not refused."
