"""The one token span: a tokenised conversation and where its response lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import ContextLengthError, InvalidArgumentError


@checked
@dataclass(frozen=True)
class TokenSpans:
    """A tokenised conversation and where its response lies.

    Args:
        tokens: Token ids of the whole conversation up to at least the response's end.
        response_start: First token of the response; the one before it is the last prompt token.
        response_end: One past the response's last token; the end-of-turn token is outside.
    """

    tokens: tuple[int, ...]
    response_start: int
    response_end: int

    @classmethod
    def join(cls, prompt: Sequence[int], response: Sequence[int]) -> TokenSpans:
        """Return the spans of a prompt and the response that follows it, which may be empty.

        Example:
            >>> TokenSpans.join((5, 6), (7,))
            TokenSpans(tokens=(5, 6, 7), response_start=2, response_end=3)
        """
        return cls((*prompt, *response), len(prompt), len(prompt) + len(response))

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """Everything before the response."""
        return self.tokens[: self.response_start]

    @property
    def response_tokens(self) -> tuple[int, ...]:
        """The response without its end-of-turn token."""
        return self.tokens[self.response_start : self.response_end]

    @property
    def is_response(self) -> Bool[Tensor, " pos"]:
        """True at the response's tokens."""
        positions = torch.arange(len(self.tokens))
        return (positions >= self.response_start) & (positions < self.response_end)


def check_token_ids(name: str, tokens: Sequence[int] | Int[Tensor, " pos"], d_vocab: int) -> None:
    """Refuse ids that are no token's; negative ones would be counted from the vocabulary's end.

    Raises:
        InvalidArgumentError: An id outside the vocabulary.
    """
    lowest, highest = min(tokens, default=0), max(tokens, default=0)
    if not 0 <= lowest <= highest < d_vocab:
        rule = f"hold token ids in [0, {d_vocab})"
        got = lowest if lowest < 0 else highest
        raise InvalidArgumentError.of(name, rule, got, "The tokenizer must be the model's own.")


def check_spans(conversations: Sequence[TokenSpans], n_ctx: int, d_vocab: int, *, min_response: int = 1) -> None:
    """Refuse conversations that a model cannot read.

    Raises:
        InvalidArgumentError: No prompt, a response shorter than ``min_response`` tokens, or an id that is no token's.
        ContextLengthError: A conversation longer than the model's context.
    """
    for index, item in enumerate(conversations):
        start, end = item.response_start, item.response_end
        if not (start > 0 and start + min_response <= end <= len(item.tokens)):
            rule = f"have a prompt of at least 1 token and a response of at least {min_response}"
            got = f"a response from {start} to {end} in {len(item.tokens)} tokens"
            raise InvalidArgumentError.of(f"conversations[{index}]", rule, got)
        if end > n_ctx:
            rule, hint = f"fit the model's context of {n_ctx} tokens", "Shorten the prompt or the response."
            raise ContextLengthError.of(f"conversations[{index}]", rule, end, hint)
        check_token_ids(f"conversations[{index}].tokens", item.tokens, d_vocab)
