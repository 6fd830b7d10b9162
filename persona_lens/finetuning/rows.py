"""Training rows: conversations as token ids, with labels on the assistant's responses alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from persona_lens.conversations import BadRow, count_reasons, read_conversations
from persona_lens.errors import ChatTemplateError, ContextLengthError, InvalidArgumentError
from persona_lens.models.text.chat import Message, encode_responses
from persona_lens.models.text.templates import TemplateArguments, freeze_arguments
from persona_lens.models.text.tokens import stop_token_ids

Source: TypeAlias = str | Path | datasets.Dataset | datasets.IterableDataset | Iterable[Any]
"""Conversations: a file, a name on the Hub, a dataset, or rows; what :func:`persona_lens.read_conversations` reads."""

# What the loss leaves out, by convention of Hugging Face and PyTorch.
IGNORED = -100


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """Conversations ready to be trained on.

    Args:
        rows: Columns ``input_ids`` and ``labels``; a label is a token id at a response, else -100.
        bad: Rows that cannot be trained on, each with its place and the reason.
        n_tokens: Tokens in all.
        n_response_tokens: Tokens that the loss is taken on.
        n_with_controls: Rows whose texts spell control tokens, such as ``<|im_end|>``; they are read as text.
    """

    rows: datasets.Dataset
    bad: tuple[BadRow, ...]
    n_tokens: int
    n_response_tokens: int
    n_with_controls: int = 0

    def count_bad(self) -> dict[str, int]:
        """Return how many rows were left out, by reason."""
        return count_reasons(self.bad)

    @property
    def digest(self) -> str:
        """A hash of all tokens and labels."""
        content = json.dumps([self.rows["input_ids"][:], self.rows["labels"][:]])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        bad = f", left out: {self.count_bad()}" if self.bad else ""
        bad += f", {self.n_with_controls} spell control tokens" if self.n_with_controls else ""
        tokens = f"{self.n_response_tokens} of {self.n_tokens} tokens trained on"
        return f"TrainingRows({len(self.rows)} rows, {tokens}{bad})"


def encode_training_rows(
    tokenizer: Any,
    source: Source,
    *,
    max_tokens: int,
    system: str | None = None,
    min_rows: int = 1,
    template_arguments: TemplateArguments | None = None,
) -> TrainingRows:
    """Tokenise conversations once each, and label the assistant's tokens.

    The label of a response includes the token that ends the turn, so that the model learns to stop. A conversation
    longer than ``max_tokens`` is left out and listed, not cut.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        source: As for :func:`persona_lens.conversations.read_conversations`.
        max_tokens: Most tokens of a conversation.
        system: System prompt put in front of each conversation; before its own one, if it has one.
        min_rows: Fewer good rows than this are an error.
        template_arguments: What the chat template reads besides the messages; they go before those that the tokenizer's
            model was loaded with.

    Raises:
        InvalidArgumentError: Fewer good rows than ``min_rows``; the message counts the reasons. Or a template argument
            that the chat template does not read.

    Example:
        >>> rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
        >>> encode_training_rows(model.tokenizer, rows, max_tokens=100)  # doctest: +SKIP
        TrainingRows(1 rows, 2 of 31 tokens trained on)
    """
    freeze_arguments(tokenizer, template_arguments)  # else every row would be refused for it
    stops = stop_token_ids(tokenizer)
    input_ids, labels, bad = [], [], []
    n_with_controls = 0
    for row in read_conversations(source):
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        messages = row.messages if system is None else _prepend_system(row.messages, system)
        try:
            encoded = encode_responses(tokenizer, messages, n_ctx=max_tokens, template_arguments=template_arguments)
        except ContextLengthError as error:
            bad.append(BadRow(row.place, row.index, "too long", str(error)[:200]))
        except (ChatTemplateError, InvalidArgumentError) as error:
            why = str(error.__cause__ or error)[:200]
            bad.append(BadRow(row.place, row.index, "not rendered by the chat template", why))
        else:
            input_ids.append(list(encoded.tokens))
            labels.append(_label(encoded.tokens, encoded.responses, stops))
            n_with_controls += bool(encoded.controls)
    if len(input_ids) < min_rows:
        reasons = count_reasons(bad)
        first = f"The first: {bad[0].place}, {bad[0].reason}: {bad[0].detail}" if bad else "It is empty."
        rule = f"hold at least {min_rows} conversations with a response, of at most {max_tokens} tokens"
        got = f"{len(input_ids)} of {len(input_ids) + len(bad)} rows; left out: {reasons}"
        raise InvalidArgumentError.of("data", rule, got, first)
    n_tokens = sum(map(len, input_ids))
    n_response_tokens = sum(label != IGNORED for row in labels for label in row)
    rows = datasets.Dataset.from_dict({"input_ids": input_ids, "labels": labels})
    return TrainingRows(rows, tuple(bad), n_tokens, n_response_tokens, n_with_controls)


def _label(tokens: Sequence[int], responses: Sequence[tuple[int, int]], stops: frozenset[int]) -> list[int]:
    labels = [IGNORED] * len(tokens)
    for start, end in responses:
        end += end < len(tokens) and tokens[end] in stops
        labels[start:end] = tokens[start:end]
    return labels


def _prepend_system(messages: Sequence[Message], system: str) -> list[Message]:
    if messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{system}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]
