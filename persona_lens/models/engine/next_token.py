"""The probability of certain next tokens after given prompts and continuations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_lens.models.engine.decoding import open_decoder
from persona_lens.models.engine.prefixes import compute_prefixes
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.spans import TokenSpans, check_spans

_ROWS_AT_ONCE = 64
_LENGTH_MULTIPLE = 8


def next_token_probabilities(
    model: HookedModel, conversations: Sequence[TokenSpans], tokens: Int[Tensor, " choice"]
) -> Float[Tensor, "row choice"]:
    """Return the probability of each of some tokens to come next after prompt and response.

    A prompt's computation is shared by all that continue it.

    Args:
        model: HookedTransformer or TransformerBridge.
        conversations: Prompts with the tokens that follow; the latter may be empty.
        tokens: The ids asked about.

    Returns:
        Probabilities in float32; rows need not add up to 1.

    Raises:
        InvalidArgumentError: An empty prompt.
        ContextLengthError: Longer than the model's context.
    """
    check_spans(conversations, model.cfg.n_ctx, model.cfg.d_vocab, min_response=0)
    # Rows of one prompt stand side by side, so that a batch needs few prompts.
    prompts = [item.prompt_tokens for item in conversations]
    order = sorted(range(len(conversations)), key=lambda i: (len(prompts[i]), prompts[i], i))
    found = torch.zeros(len(conversations), len(tokens))
    with open_decoder(model) as decoder:
        for at in range(0, len(order), _ROWS_AT_ONCE):
            batch = order[at : at + _ROWS_AT_ONCE]
            distinct = list(dict.fromkeys(prompts[i] for i in batch))
            prefixes = dict(zip(distinct, compute_prefixes(decoder, distinct), strict=True))
            rows = [(prompts[i][-1], *conversations[i].response_tokens) for i in batch]
            fed = pad_right(rows, multiple=_LENGTH_MULTIPLE)
            cache = decoder.new_cache(len(batch), len(distinct[-1]) + fed.tokens.shape[1])
            for row, i in enumerate(batch):
                prefixes[prompts[i]].write(cache, row)
            device = cache.keys.device
            starts = torch.tensor([len(prompts[i]) - 1 for i in batch], device=device)
            last = fed.take_last(decoder.extend(fed.tokens.to(device), starts, cache))
            found[batch] = decoder.unembed(last).float().softmax(dim=-1)[:, tokens.to(device)].cpu()
    return found
