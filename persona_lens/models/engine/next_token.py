"""The probability of certain next tokens after given prompts and continuations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_lens.errors import ContextLengthError, InvalidArgumentError, describe_violation
from persona_lens.models.engine.attention import round_up
from persona_lens.models.engine.decoding import open_decoder
from persona_lens.models.engine.likelihood import Continuation
from persona_lens.models.engine.prefixes import compute_prefixes
from persona_lens.models.hooked_model import HookedModel

_ROWS_AT_ONCE = 64
_LENGTH_MULTIPLE = 8


def next_token_probabilities(
    model: HookedModel, continuations: Sequence[Continuation], tokens: Int[Tensor, " choice"]
) -> Float[Tensor, "row choice"]:
    """Return the probability of each of some tokens to come next after prompt and response.

    A prompt's computation is shared by its continuations.

    Args:
        model: HookedTransformer or TransformerBridge.
        continuations: Prompts with the tokens that follow; the latter may be empty.
        tokens: The ids asked about.

    Returns:
        Probabilities in float32; rows need not add up to 1.

    Raises:
        InvalidArgumentError: An empty prompt.
        ContextLengthError: Longer than the model's context.
    """
    for index, item in enumerate(continuations):
        if not item.prompt:
            raise InvalidArgumentError(describe_violation(f"continuations[{index}].prompt", "not be empty", ()))
        length = len(item.prompt) + len(item.response)
        if length > model.cfg.n_ctx:
            raise ContextLengthError(
                describe_violation(
                    f"continuations[{index}]", f"fit the context of {model.cfg.n_ctx} tokens", length, "Shorten it."
                )
            )
    # Rows of one prompt stand side by side, so that a batch needs few prompts.
    order = sorted(range(len(continuations)), key=lambda i: (len(continuations[i].prompt), continuations[i].prompt, i))
    found = torch.zeros(len(continuations), len(tokens))
    with open_decoder(model) as decoder:
        for at in range(0, len(order), _ROWS_AT_ONCE):
            batch = order[at : at + _ROWS_AT_ONCE]
            items = [continuations[i] for i in batch]
            prompts = sorted({item.prompt for item in items}, key=lambda prompt: (len(prompt), prompt))
            prefixes = dict(zip(prompts, compute_prefixes(decoder, prompts), strict=True))
            n_pos = round_up(1 + max(len(item.response) for item in items), _LENGTH_MULTIPLE)
            cache = decoder.new_cache(len(items), len(prompts[-1]) + n_pos)
            fed = torch.zeros((len(items), n_pos), dtype=torch.long)
            for row, item in enumerate(items):
                prefixes[item.prompt].write(cache, row)
                fed[row, : 1 + len(item.response)] = torch.tensor((item.prompt[-1], *item.response))
            device = cache.keys.device
            starts = torch.tensor([len(item.prompt) - 1 for item in items], device=device)
            hidden = decoder.extend(fed.to(device), starts, cache)
            last = hidden[torch.arange(len(items)), torch.tensor([len(item.response) for item in items])]
            found[batch] = decoder.unembed(last).float().softmax(dim=-1)[:, tokens.to(device)].cpu()
    return found
