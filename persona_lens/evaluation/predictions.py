"""What a model predicts of given texts under hooks, beside what it predicts without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.models.engine.divergence import token_divergence
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import HookPair, attached
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.spans import TokenSpans
from persona_lens.progress_bars import Advance, count_nothing


@dataclass(frozen=True, eq=False)
class Predictions:
    """Sums over each span's response tokens, in nats and float64.

    Args:
        log_likelihoods: Of the tokens, under the hooks.
        divergences: KL from the model without the hooks to that with them; 0 where nothing was compared.
        n_tokens: Tokens summed over.
    """

    log_likelihoods: Float[Tensor, " span"]
    divergences: Float[Tensor, " span"]
    n_tokens: Float[Tensor, " span"]


def measure_predictions(
    model: HookedModel,
    spans: Sequence[TokenSpans],
    make_hooks: Callable[[Sequence[TokenSpans]], Sequence[HookPair]],
    *,
    batch_size: int,
    compare: bool,
    advance: Advance = count_nothing,
) -> Predictions:
    r"""Run given texts through the ordinary forward pass, with and without hooks; hooks may sit anywhere.

    Args:
        model: HookedTransformer or TransformerBridge, with whatever hooks are on it: these act in both.
        spans: Texts; the tokens of each one's response are predicted from all before them.
        make_hooks: Makes the hooks of a batch.
        batch_size: Rows of a forward pass; its logits take ``batch_size * length * vocab`` numbers.
        compare: Whether the model runs without the hooks too, for the divergences.
        advance: Called with the number of spans that are done.
    """
    # A last token predicts nothing and is not fed; responses of one token then share a row with their prompt's others,
    # if they begin at one place, which hooks may depend on.
    members: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for index, span in enumerate(spans):
        members.setdefault((span.tokens[: span.response_end - 1], span.response_start), []).append(index)
    rows = sorted(members, key=lambda row: (len(row[0]), *row))
    found = torch.zeros(2, len(spans), dtype=torch.float64)
    for at in range(0, len(rows), batch_size):
        batch = rows[at : at + batch_size]
        fed = [tokens for tokens, _ in batch]
        with attached(model, make_hooks([spans[members[one][0]] for one in batch])):
            logits = _forward(model, fed)
        reference = _forward(model, fed) if compare else None
        for row, one in enumerate(batch):
            for index in members[one]:
                span = spans[index]
                predicting = slice(span.response_start - 1, span.response_end - 1)
                log_q = logits[row, predicting].float().log_softmax(dim=-1)
                targets = torch.tensor(span.response_tokens, device=log_q.device)
                found[0, index] = log_q.gather(-1, targets[:, None]).double().sum()
                if reference is not None:
                    found[1, index] = (
                        token_divergence(reference[row, predicting], logits[row, predicting]).double().sum()
                    )
        advance(sum(len(members[one]) for one in batch))
    n_tokens = torch.tensor([len(span.response_tokens) for span in spans], dtype=torch.float64)
    return Predictions(found[0], found[1], n_tokens)


def _forward(model: HookedModel, rows: Sequence[tuple[int, ...]]) -> Float[Tensor, "row pos vocab"]:
    padded = pad_right(rows)
    # An explicit mask, always: without one TransformerLens guesses padding from token ids.
    mask = (~padded.is_padding).long()
    device = model.cfg.device
    with torch.no_grad():
        logits: Tensor = model(padded.tokens.to(device), return_type="logits", attention_mask=mask.to(device))
    return logits
