"""Log-likelihood of given responses under given prompts, each prompt computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from persona_lens.errors import ContextLengthError, InvalidArgumentError, describe_violation
from persona_lens.models.engine.attention import round_up
from persona_lens.models.engine.decoding import Decoder, open_decoder
from persona_lens.models.engine.prefixes import Prefix, compute_prefixes
from persona_lens.models.hooked_model import HookedModel

# Rows of one forward pass hold about this many tokens: enough to fill the machine, and bounded memory.
_TOKENS_AT_ONCE = 2048
# Logits are formed for this many positions at a time: [256, vocab] in bfloat16 is 25 MB for 49,152 tokens.
_POSITIONS_AT_ONCE = 256
# Summed in float32 for this many at a time: the buffers then stay in the processor's cache.
_POSITIONS_SUMMED_AT_ONCE = 32
_LENGTH_MULTIPLE = 8
# Prefixes computed and held in memory at once: so many, of so many padded tokens unless one alone has more.
_PROMPTS_AT_ONCE = 32
_PROMPT_TOKENS_AT_ONCE = 16384
# Keys and values of one batch, prompts included; 65,536 tokens of a 7B model in bfloat16 with grouped heads are 4 GB.
_CACHED_TOKENS_AT_ONCE = 65536


@dataclass(frozen=True)
class Continuation:
    """A response to be scored after a prompt.

    Args:
        prompt: Token ids of the whole rendered prompt.
        response: Token ids of the response, without its stop token.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]


def mean_log_likelihoods(model: HookedModel, continuations: Sequence[Continuation]) -> list[float]:
    r"""Return each response's mean log-likelihood a token, in nats.

    .. math:: \frac{1}{T} \sum_{t=1}^{T} \log p(y_t \mid x, y_{<t})

    Continuations that share a prompt share its computation; rows are sorted by length.

    Args:
        model: HookedTransformer or TransformerBridge; run as it is, without interventions.
        continuations: Prompts and responses, in any order.

    Returns:
        One number a continuation, in the order given.

    Raises:
        InvalidArgumentError: An empty prompt or response.
        ContextLengthError: Prompt and response exceed the model's context.
        HooksPresentError: Hooks inside attention, which scoring would pass by.
    """
    for index, item in enumerate(continuations):
        if not item.prompt or not item.response:
            raise InvalidArgumentError(
                describe_violation(
                    f"continuations[{index}]", "have a prompt and a response of at least one token", item
                )
            )
        if len(item.prompt) + len(item.response) > model.cfg.n_ctx:
            raise ContextLengthError(
                describe_violation(
                    f"continuations[{index}]",
                    f"fit the model's context of {model.cfg.n_ctx} tokens",
                    len(item.prompt) + len(item.response),
                    "Shorten the prompt or the response.",
                )
            )
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(continuations):
        by_prompt.setdefault(item.prompt, []).append(index)
    # Prompts of like length side by side waste the least padding.
    prompts = sorted(by_prompt, key=lambda prompt: (len(prompt), prompt))
    scores = [0.0] * len(continuations)
    with open_decoder(model) as decoder:
        for group in _group_prompts(prompts):
            prefixes = dict(zip(group, compute_prefixes(decoder, group), strict=True))
            indices = sorted(
                (i for prompt in group for i in by_prompt[prompt]), key=lambda i: (len(continuations[i].response), i)
            )
            for batch in _batches(indices, continuations):
                items = [continuations[i] for i in batch]
                for i, score in zip(batch, _score_batch(decoder, items, prefixes), strict=True):
                    scores[i] = score
    return scores


def _group_prompts(prompts: Sequence[tuple[int, ...]]) -> list[Sequence[tuple[int, ...]]]:
    """Cut prompts sorted by length into groups of bounded number and padded tokens."""
    groups: list[list[tuple[int, ...]]] = [[]]
    for prompt in prompts:
        n = len(groups[-1]) + 1
        if groups[-1] and (n > _PROMPTS_AT_ONCE or n * len(prompt) > _PROMPT_TOKENS_AT_ONCE):
            groups.append([])
        groups[-1].append(prompt)
    return [group for group in groups if group]


def _batches(indices: list[int], continuations: Sequence[Continuation]) -> list[list[int]]:
    """Cut indices sorted by response length into batches of bounded padded tokens and of bounded cache."""
    batches: list[list[int]] = [[]]
    longest_prompt = 0
    for index in indices:
        n, item = len(batches[-1]) + 1, continuations[index]
        longest_prompt = max(longest_prompt, len(item.prompt))
        is_wide = n * len(item.response) > _TOKENS_AT_ONCE
        if batches[-1] and (is_wide or n * (longest_prompt + len(item.response)) > _CACHED_TOKENS_AT_ONCE):
            batches.append([])
            longest_prompt = len(item.prompt)
        batches[-1].append(index)
    return [batch for batch in batches if batch]


def _score_batch(
    decoder: Decoder, items: Sequence[Continuation], prefixes: dict[tuple[int, ...], Prefix]
) -> list[float]:
    lengths = [len(item.response) for item in items]
    n_pos = round_up(max(lengths), _LENGTH_MULTIPLE)
    longest_prompt = max(len(item.prompt) for item in items)
    cache = decoder.new_cache(len(items), longest_prompt + n_pos)
    device = cache.keys.device
    inputs = torch.zeros((len(items), n_pos), dtype=torch.long)
    targets = torch.zeros((len(items), n_pos), dtype=torch.long)
    is_response = torch.zeros((len(items), n_pos), dtype=torch.bool)
    for row, item in enumerate(items):
        prefixes[item.prompt].write(cache, row)
        fed = (item.prompt[-1], *item.response[:-1])
        inputs[row, : lengths[row]] = torch.tensor(fed)
        targets[row, : lengths[row]] = torch.tensor(item.response)
        is_response[row, : lengths[row]] = True
    starts = torch.tensor([len(item.prompt) - 1 for item in items], device=device)
    hidden = decoder.extend(inputs.to(device), starts, cache)
    likelihoods = _token_log_likelihoods(decoder, hidden[is_response.to(device)], targets[is_response].to(device))
    rows = is_response.nonzero()[:, 0].to(device)
    sums = torch.zeros(len(items), dtype=torch.float64, device=device).index_add_(0, rows, likelihoods.double())
    return (sums.cpu() / torch.tensor(lengths)).tolist()


def _token_log_likelihoods(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return log p(target) a position in float32, a few hundred positions' logits at a time."""
    parts = []
    for at in range(0, len(targets), _POSITIONS_AT_ONCE):
        chosen = slice(at, at + _POSITIONS_AT_ONCE)
        logits = decoder.unembed(hidden[chosen])
        picked = logits.gather(-1, targets[chosen, None])[:, 0].float()
        totals = [part.float().logsumexp(dim=-1) for part in logits.split(_POSITIONS_SUMMED_AT_ONCE)]
        parts.append(picked - torch.cat(totals))
    return torch.cat(parts)
