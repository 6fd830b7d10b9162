"""How well a model does what its training data shows: the loss on given responses, nothing intervening."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.conversations import BadRow, read_conversations
from persona_lens.errors import InvalidArgumentError
from persona_lens.finetuning.rows import Source
from persona_lens.models.engine.likelihood import mean_log_likelihoods
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.text.chat import EncodedConversation, encode_conversation


@checked
def measure_task_loss(model: HookedModel, data: Source) -> Float[Tensor, " row"]:
    """Return each conversation's loss on its last response, in nats a token.

    Whether an intervention in training cost something is seen here, on rows held out, with the intervention off; the
    loss that training reports was taken with it on.

    Args:
        model: HookedTransformer or TransformerBridge.
        data: Conversations, as for :func:`persona_lens.finetune`.

    Raises:
        InvalidArgumentError: A row that is no conversation, or none at all.
        ContextLengthError: A conversation longer than the model's context.

    Example:
        >>> import persona_lens as pl
        >>> pl.finetuning.measure_task_loss(model, "held_out.jsonl").mean()  # doctest: +SKIP
    """
    return measure_encoded(model, read_task(model, data))


def read_task(model: HookedModel, data: Source) -> list[EncodedConversation]:
    """Read the conversations that a loss is taken on, once for all models of one tokenizer.

    Raises:
        InvalidArgumentError: A row that is no conversation, or none at all.
        ContextLengthError: A conversation longer than the model's context.
    """
    encoded = []
    for row in read_conversations(data):
        if isinstance(row, BadRow):
            rule = "hold conversations that end with a response"
            raise InvalidArgumentError.of("data", rule, f"{row.place}: {row.reason}: {row.detail}")
        encoded.append(encode_conversation(model.tokenizer, row.messages, n_ctx=model.cfg.n_ctx))
    if not encoded:
        raise InvalidArgumentError.of("data", "hold at least one conversation", "none")
    return encoded


def measure_encoded(model: HookedModel, encoded: Sequence[EncodedConversation]) -> Float[Tensor, " row"]:
    """Return each conversation's loss on its last response, in nats a token."""
    return -torch.tensor(mean_log_likelihoods(model, encoded))
