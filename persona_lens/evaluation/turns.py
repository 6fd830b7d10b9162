"""Finished conversations read by an unsteered model: projections and surprise, turn by turn, in one pass each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.models.engine.decoding import open_decoder
from persona_lens.models.engine.likelihood import token_log_likelihoods
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.recording import ResidualRecorder
from persona_lens.models.text.chat import EncodedResponses, Message, encode_responses
from persona_lens.models.text.padding import pad_right
from persona_lens.progress_bars import show_progress

_TOKENS_AT_ONCE = 2048
_LENGTH_MULTIPLE = 16


@dataclass(frozen=True, eq=False)
class TurnReadings:
    """What is read of one conversation.

    Args:
        last_prompt: Projections at the token right before each response, in residual-stream units.
        response: Projections averaged over each response's tokens.
        surprise: Mean negative log-likelihood of each response's tokens, in nats; its exponential is the perplexity.
    """

    last_prompt: Float[Tensor, "direction turn"]
    response: Float[Tensor, "direction turn"]
    surprise: Float[Tensor, " turn"]


def read_turns(
    model: HookedModel,
    conversations: Sequence[Sequence[Message]],
    units: Float[Tensor, "direction d_model"],
    layers: Sequence[int],
) -> list[TurnReadings]:
    """Read each of the assistant's turns in some conversations, without any intervention.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        conversations: Each with at least one answer.
        units: Unit vectors.
        layers: Zero-based block index of each.

    Raises:
        ContextLengthError: A conversation longer than the model's context.
    """
    encoded = [encode_responses(model.tokenizer, list(one), n_ctx=model.cfg.n_ctx) for one in conversations]
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].tokens), i))
    recorder = ResidualRecorder(model.cfg.n_layers)
    found: dict[int, TurnReadings] = {}

    def project(residual: Tensor, layer: int) -> Tensor:
        # Not a matrix product: its rounding would depend on the rest of the batch.
        along = [
            (residual.float() * unit.to(residual.device)).sum(dim=-1)
            if at == layer
            else torch.zeros(residual.shape[:2], device=residual.device)
            for unit, at in zip(units.float(), layers, strict=True)
        ]
        return torch.stack(along)

    with (
        open_decoder(model) as decoder,
        attached(model, recorder.hook_pairs()),
        show_progress("reading (conversations)", len(order)) as advance,
    ):
        while order:
            size = 1
            while size < len(order) and (size + 1) * len(encoded[order[size]].tokens) <= _TOKENS_AT_ONCE:
                size += 1
            batch, order = order[:size], order[size:]
            tokens = pad_right([encoded[i].tokens for i in batch], multiple=_LENGTH_MULTIPLE).tokens
            cache = decoder.new_cache(*tokens.shape)
            device = cache.keys.device
            recorder.expect(project)
            hidden = decoder.extend(tokens.to(device), torch.zeros(size, dtype=torch.long, device=device), cache)
            # Each direction is zero at all layers but its own.
            projections = recorder.read().sum(dim=0).cpu()
            for row, index in enumerate(batch):
                one = encoded[index]
                # A token is predicted one position before it.
                positions = [at - 1 for start, end in one.responses for at in range(start, end)]
                targets = torch.tensor([one.tokens[at + 1] for at in positions], device=device)
                likelihoods = token_log_likelihoods(decoder, hidden[row, positions], targets).cpu()
                found[index] = _gather(one, projections[:, row], likelihoods)
            advance(size)
    return [found[index] for index in range(len(encoded))]


def _gather(
    one: EncodedResponses, projections: Float[Tensor, "direction pos"], likelihoods: Float[Tensor, " token"]
) -> TurnReadings:
    lengths = [end - start for start, end in one.responses]
    return TurnReadings(
        last_prompt=torch.stack([projections[:, start - 1] for start, _ in one.responses], dim=1),
        response=torch.stack([projections[:, start:end].mean(dim=1) for start, end in one.responses], dim=1),
        surprise=torch.stack([-part.mean() for part in likelihoods.split(lengths)]),
    )
