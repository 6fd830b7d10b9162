"""The one token span: a tokenised conversation and where its response lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import ContextLengthError, InvalidArgumentError

Part = Literal["answer", "thought", "response"]
"""What of a response is meant: ``answer``, all of it where the model does not think; ``thought``; or ``response``, both
with the markers around them."""


@checked
@dataclass(frozen=True)
class Thought:
    """Where the thought of a response lies, and where its answer begins.

    Args:
        start: The thought's first token; the marker that opens it, and blanks, are outside.
        end: One past its last token; the marker that closes it is outside. Equal to ``start`` if nothing is thought.
        closed: One past the closing marker's last token; None for a thought that does not end.
        answer_start: The answer's first token that is not blank; None likewise.
    """

    start: int
    end: int
    closed: int | None = None
    answer_start: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether an answer may follow."""
        return self.closed is not None

    def shift(self, n_tokens: int) -> Thought:
        """Return the same behind so many more tokens.

        Example:
            >>> Thought(1, 3).shift(10)
            Thought(start=11, end=13, closed=None, answer_start=None)
        """
        ends = (None if one is None else one + n_tokens for one in (self.closed, self.answer_start))
        return Thought(self.start + n_tokens, self.end + n_tokens, *ends)

    def with_answer(self, answer_start: int) -> Thought:
        """Return the same with another beginning of the answer."""
        return replace(self, answer_start=answer_start)


@checked
@dataclass(frozen=True)
class TokenSpans:
    """A tokenised conversation and where its response lies.

    Args:
        tokens: Token ids of the whole conversation up to at least the response's end.
        response_start: First token of the response; the one before it is the last prompt token.
        response_end: One past the response's last token; the end-of-turn token is outside.
        thought: Where the response's thought lies; None for one without, which is all answer.
    """

    tokens: tuple[int, ...]
    response_start: int
    response_end: int
    thought: Thought | None = field(default=None, kw_only=True)

    @classmethod
    def join(cls, prompt: Sequence[int], response: Sequence[int]) -> TokenSpans:
        """Return the spans of a prompt and the response that follows it, which may be empty.

        Example:
            >>> TokenSpans.join((5, 6), (7,)).response_tokens
            (7,)
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
        return self.is_part("response")

    def find(self, part: Part) -> tuple[int, int]:
        """Return the first token of a part of the response, and one past its last; twice the same if it is empty.

        Example:
            >>> spans = TokenSpans((5, 6, 7, 8, 9), 1, 5, thought=Thought(1, 2, closed=3, answer_start=3))
            >>> spans.find("thought"), spans.find("answer"), spans.find("response")
            ((1, 2), (3, 5), (1, 5))
        """
        return find_part(part, self.response_start, self.response_end, self.thought)

    def is_part(self, part: Part) -> Bool[Tensor, " pos"]:
        """Return True at the tokens of a part of the response."""
        start, end = self.find(part)
        positions = torch.arange(len(self.tokens))
        return (positions >= start) & (positions < end)

    def draws_part(self, part: Part) -> Bool[Tensor, " pos"]:
        """Return True at the tokens that those of a part are drawn from: as a mask, what hooks take as ``positions``.

        For the ``response`` these are the prompt's last token and all after it. The answer's begin with the last token
        of the marker that closes the thought; the thought's end before it. Both together are the response's.

        Example:
            >>> spans = TokenSpans((5, 6, 7, 8, 9), 1, 5, thought=Thought(1, 2, closed=3, answer_start=3))
            >>> spans.draws_part("answer").tolist()
            [False, False, True, True, True]
        """
        positions = torch.arange(len(self.tokens))
        is_drawing = (positions >= self.response_start - 1) & (positions < self.response_end)
        if part == "response":
            return is_drawing
        switch = self.response_start if self.thought is None else self.thought.closed
        before = len(self.tokens) if switch is None else switch - 1
        return is_drawing & (positions >= before if part == "answer" else positions < before)


def find_part(part: Part, start: int, end: int, thought: Thought | None) -> tuple[int, int]:
    """Return the first token of a part of a response, and one past its last; twice the same if it is empty.

    Args:
        part: Which.
        start: The response's first token.
        end: One past its last.
        thought: Where its thought lies.
    """
    if part == "response":
        return start, end
    if part == "thought":
        return (start, start) if thought is None else (thought.start, thought.end)
    if thought is None:
        return start, end
    return (end, end) if thought.answer_start is None else (thought.answer_start, end)


def check_parts(conversations: Sequence[TokenSpans], part: Part) -> None:
    """Refuse responses without the part that is asked for.

    Raises:
        InvalidArgumentError: Names the first.
    """
    for index, item in enumerate(conversations):
        start, end = item.find(part)
        if start == end:
            rule, got = f"have a response with {'an answer' if part == 'answer' else 'a thought'}", item.thought
            raise InvalidArgumentError.of(f"conversations[{index}]", rule, got)


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
