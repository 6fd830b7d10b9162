"""Log-likelihood of given responses under given prompts, each prompt computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from persona_lens.models.engine.decoding import Decoder, open_decoder
from persona_lens.models.engine.prefixes import Prefix, compute_prefixes
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.spans import TokenSpans, check_spans
from persona_lens.progress_bars import show_progress

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


def mean_log_likelihoods(model: HookedModel, conversations: Sequence[TokenSpans]) -> list[float]:
    r"""Return each response's mean log-likelihood a token, in nats.

    .. math:: \frac{1}{T} \sum_{t=1}^{T} \log p(y_t \mid x, y_{<t})

    Conversations that share a prompt share its computation; rows are sorted by length.

    Args:
        model: HookedTransformer or TransformerBridge; run as it is, without interventions.
        conversations: Prompts and responses, in any order.

    Returns:
        One number a conversation, in the order given.

    Raises:
        InvalidArgumentError: An empty prompt or response.
        ContextLengthError: Prompt and response exceed the model's context.
        HooksPresentError: Hooks inside attention, which scoring would pass by.
    """
    check_spans(conversations, model.cfg.n_ctx, model.cfg.d_vocab)
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(conversations):
        by_prompt.setdefault(item.prompt_tokens, []).append(index)
    # Prompts of like length side by side waste the least padding.
    prompts = sorted(by_prompt, key=lambda prompt: (len(prompt), prompt))
    scores = [0.0] * len(conversations)
    with open_decoder(model) as decoder, show_progress("scoring (responses × prompts)", len(scores)) as advance:
        for group in _group_prompts(prompts):
            prefixes = dict(zip(group, compute_prefixes(decoder, group), strict=True))
            indices = sorted(
                (i for prompt in group for i in by_prompt[prompt]),
                key=lambda i: (len(conversations[i].response_tokens), i),
            )
            for batch in _batches(indices, conversations):
                items = [conversations[i] for i in batch]
                for i, score in zip(batch, _score_batch(decoder, items, prefixes), strict=True):
                    scores[i] = score
                advance(len(batch))
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


def _batches(indices: list[int], conversations: Sequence[TokenSpans]) -> list[list[int]]:
    """Cut indices sorted by response length into batches of bounded padded tokens and of bounded cache."""
    batches: list[list[int]] = [[]]
    longest_prompt = 0
    for index in indices:
        n, item = len(batches[-1]) + 1, conversations[index]
        longest_prompt = max(longest_prompt, item.response_start)
        is_wide = n * len(item.response_tokens) > _TOKENS_AT_ONCE
        if batches[-1] and (is_wide or n * (longest_prompt + len(item.response_tokens)) > _CACHED_TOKENS_AT_ONCE):
            batches.append([])
            longest_prompt = item.response_start
        batches[-1].append(index)
    return [batch for batch in batches if batch]


def _score_batch(decoder: Decoder, items: Sequence[TokenSpans], prefixes: dict[tuple[int, ...], Prefix]) -> list[float]:
    # Each token is predicted one position before it, the first from the prompt's last token.
    fed = pad_right([(item.prompt_tokens[-1], *item.response_tokens[:-1]) for item in items], multiple=_LENGTH_MULTIPLE)
    targets = pad_right([item.response_tokens for item in items], multiple=_LENGTH_MULTIPLE)
    cache = decoder.new_cache(len(items), max(item.response_start for item in items) + fed.tokens.shape[1])
    device = cache.keys.device
    for row, item in enumerate(items):
        prefixes[item.prompt_tokens].write(cache, row)
    starts = torch.tensor([item.response_start - 1 for item in items], device=device)
    hidden = decoder.extend(fed.tokens.to(device), starts, cache)
    is_response = ~targets.is_padding
    likelihoods = token_log_likelihoods(decoder, hidden[is_response.to(device)], targets.tokens[is_response].to(device))
    rows = is_response.nonzero()[:, 0].to(device)
    sums = torch.zeros(len(items), dtype=torch.float64, device=device).index_add_(0, rows, likelihoods.double())
    return (sums.cpu() / targets.lengths).tolist()


def token_log_likelihoods(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return log p(target) a position in float32, a few hundred positions' logits at a time."""
    parts = []
    for at in range(0, len(targets), _POSITIONS_AT_ONCE):
        chosen = slice(at, at + _POSITIONS_AT_ONCE)
        logits = decoder.unembed(hidden[chosen])
        picked = logits.gather(-1, targets[chosen, None])[:, 0].float()
        totals = [part.float().logsumexp(dim=-1) for part in logits.split(_POSITIONS_SUMMED_AT_ONCE)]
        parts.append(picked - torch.cat(totals))
    return torch.cat(parts)
