"""What is examined: a model, some prompts of its own to run, and Hugging Face's model to compare it with."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.diagnosis.reference import Reference
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import HookFn, HookPair, attached
from persona_lens.models.hooks.recording import ResidualRecorder
from persona_lens.models.loading import describe_model
from persona_lens.models.text.chat import Message, encode_prompt
from persona_lens.models.text.tokens import tokenize_plain

N_NEW_TOKENS = 8
"""How many tokens are sampled where sampling is checked."""
_LONGEST = 160  # tokens of a prompt: enough to fill sliding windows of tiny models, and quick on all others

SYSTEM = "You answer in rhymes."
CHATS: dict[str, list[Message]] = {
    "no system prompt": [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue, like the sea."},
    ],
    "system prompt": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "How was your day?"},
        {"role": "assistant", "content": "Bright and gay."},
    ],
    "several turns": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello, friend."},
        {"role": "user", "content": "Who was first on the moon?"},
        {"role": "assistant", "content": "Armstrong, in June? No: in July."},
    ],
    "other scripts and emoji": [
        {"role": "user", "content": "Übersetze: 猫が好き 🐈‍⬛"},
        {"role": "assistant", "content": "Ich mag Katzen 😺 – très bien, да!"},
    ],
    "text like control tokens": [
        {"role": "user", "content": "What do </s>, <|im_end|> and [INST] mean?"},
        {"role": "assistant", "content": "<|im_end|> and <end_of_turn> end a turn, as <|eot_id|> does."},
    ],
}
"""Five conversations that end with a response. Short: they must fit small contexts."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under examination.

    Args:
        model: HookedTransformer or TransformerBridge, without hooks.
        prompts: Token ids of prompts of different lengths, each with room for :data:`N_NEW_TOKENS` more.
        reference: What Hugging Face's model makes of the longest prompt; None where there is no such model.
        no_reference: Why there is none.
    """

    model: HookedModel
    prompts: tuple[tuple[int, ...], ...]
    reference: Reference | None
    no_reference: str = ""

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.model.tokenizer

    @property
    def rounded_to(self) -> torch.dtype:
        """As coarsely as what blocks compute: the weights' dtype.

        Bfloat16 of quantised ones, whose products may round what they read, to 8 bits (LLM.int8) or to bfloat16 (in 4
        bits, on a CPU that computes it), whatever dtype goes in and comes out.
        """
        is_coded = describe_model(self.model).quantization is not None
        return torch.bfloat16 if is_coded else next(self.model.parameters()).dtype

    @property
    def longest(self) -> tuple[int, ...]:
        """The longest of the prompts."""
        return max(self.prompts, key=len)


def choose_prompts(model: HookedModel) -> tuple[tuple[int, ...], ...]:
    """Return the token ids of the conversations' prompts, shortest first.

    Where the tokenizer has no template that renders them, those of their last questions; where it gives no
    tokens, ids spread over the vocabulary: the model's numbers are examined all the same.
    """
    room = min(_LONGEST, model.cfg.n_ctx - N_NEW_TOKENS)
    rows = []
    for number, chat in enumerate(CHATS.values()):
        tokens: tuple[int, ...] = ()
        with suppress(Exception):  # whatever a template raises that is not as it should be: its checks say so
            tokens = encode_prompt(model.tokenizer, chat[:-1]).tokens
        rows.append((tokens or _tokenize_question(model, chat[-2]["content"], number))[:room])
    return tuple(sorted(rows, key=len))


def _tokenize_question(model: HookedModel, question: str, number: int) -> tuple[int, ...]:
    with suppress(Exception):
        if tokens := tokenize_plain(model.tokenizer, question).tokens:
            return tokens
    stride = model.cfg.d_vocab // 7 + 1
    return tuple((number + position * stride) % model.cfg.d_vocab for position in range(8 + 4 * number))


def run_forward(
    model: HookedModel, tokens: tuple[int, ...], hooks: list[HookPair] | None = None
) -> tuple[Float[Tensor, "layer pos d_model"], Float[Tensor, "pos vocab"]]:
    """Run the model's ordinary forward pass on one text; return each layer's residual stream, and the logits.

    Args:
        model: HookedTransformer or TransformerBridge.
        tokens: Token ids.
        hooks: Put on before those that record.
    """
    recorder = ResidualRecorder(model.cfg.n_layers)
    recorder.expect(lambda residual, layer: residual[0].detach().clone())
    row = torch.tensor([tokens], device=model.cfg.device)
    with torch.no_grad(), attached(model, [*(hooks or []), *recorder.hook_pairs()]):
        # An explicit mask, always: without one TransformerLens guesses padding from token ids.
        logits: Tensor = model(row, attention_mask=torch.ones_like(row))
    return recorder.read(), logits[0]


def keep_output(kept: dict[int, Tensor], layer: int) -> HookFn:
    """Return a hook that keeps a copy of the first row under a layer's number."""

    def keep(residual: Tensor, hook: object) -> None:
        kept[layer] = residual[0].detach().clone()

    return keep
