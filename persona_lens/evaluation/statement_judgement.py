"""A model's own judgement of statements, and what a direction added over a statement's tokens makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import ContextLengthError, InvalidArgumentError
from persona_lens.models.engine.decoding import open_decoder
from persona_lens.models.engine.prefixes import compute_prefixes
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import attached, check_unsteered
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.tokens import tokenize_text
from persona_lens.progress_bars import show_progress

_ROWS_AT_ONCE = 48
_LENGTH_MULTIPLE = 8
# As true as false, and about nothing that the bundled statements are about.
_EXAMPLES = (
    ("Ice is frozen water.", True), ("A week has nine days.", False), ("A spider has two legs.", False),
    ("Snow is white.", True), ("A baby is older than its mother.", False), ("The sky is above the ground.", True),
    ("Fire is hot.", True), ("Fish live in trees.", False),
)  # fmt: skip
_QUESTION = " This statement is:"
_WORDS = {True: " TRUE", False: " FALSE"}


@dataclass(frozen=True)
class _Row:
    """What follows the examples: the statement and the question, and which of these tokens are the statement's."""

    tokens: tuple[int, ...]
    is_statement: tuple[bool, ...]


@checked
def judge_statements(
    model: HookedModel, texts: Sequence[str], *, shifts: Float[Tensor, "text d_model"] | None = None, layer: int = 0
) -> Float[Tensor, " text"]:
    """Ask a model whether statements are true, as plain text after eight judged examples, four of them true.

    Returned is ``logit(TRUE) - logit(FALSE)`` where the model would say which. A shift is added to the residual stream
    over the statement's own tokens, nowhere else. The examples are computed once.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        texts: Statements, each with its full stop.
        shifts: What is added for each of them, in residual-stream units.
        layer: Where it is added: zero-based block index.

    Raises:
        InvalidArgumentError: No statement or an empty one, or a tokenizer that joins examples and statement in one
            token.
        LayerOutOfRangeError: A layer that the model does not have.
        ContextLengthError: Examples and statement exceed the context.
        HooksPresentError: The model carries hooks.

    Reference:
        The Geometry of Truth (arXiv 2310.06824), section 6.

    Example:
        >>> import persona_lens as pl
        >>> texts = ["The city of Paris is in France.", "The city of Paris is in Japan."]
        >>> judge_statements(pl.load_model(), texts)  # doctest: +SKIP
    """
    if not texts or not all(text.strip() for text in texts):
        raise InvalidArgumentError.of("texts", "hold statements, none of them empty", list(texts))
    check_layer(layer, model.cfg.n_layers)
    if shifts is not None and tuple(shifts.shape) != (len(texts), model.cfg.d_model):
        rule = f"have shape (text, d_model) = {(len(texts), model.cfg.d_model)}"
        raise InvalidArgumentError.of("shifts", rule, tuple(shifts.shape))
    check_unsteered(model)
    examples = "".join(f"{text}{_QUESTION}{_WORDS[is_true]}\n\n" for text, is_true in _EXAMPLES)
    answers, shared = _find_answers(model.tokenizer)
    encoded = [_encode(model.tokenizer, examples, text, shared) for text in texts]
    prefix, rows = encoded[0][0], [row for _, row in encoded]
    if any(other != prefix for other, _ in encoded):
        raise InvalidArgumentError.of("texts", "begin a token of their own after the examples", list(texts)[:2])
    longest = len(prefix) + max(len(row.tokens) for row in rows)
    if longest > model.cfg.n_ctx:
        rule = f"fit the model's context of {model.cfg.n_ctx} tokens with eight examples"
        raise ContextLengthError.of("texts", rule, longest, "Shorten the statements.")
    found = torch.zeros(len(rows))
    with show_progress("judging (statements)", len(rows)) as advance:
        for batch, logits in _run(model, prefix, rows, answers, shifts, layer):
            found[batch] = logits
            advance(len(batch))
    return found


def _run(
    model: HookedModel,
    prefix: tuple[int, ...],
    rows: Sequence[_Row],
    answers: tuple[int, int],
    shifts: Float[Tensor, "text d_model"] | None,
    layer: int,
) -> Iterator[tuple[list[int], Float[Tensor, " row"]]]:
    """Run batches of rows of like length after the shared prefix; give the difference of the answers' logits."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].tokens), i))
    with open_decoder(model) as decoder:
        (examples,) = compute_prefixes(decoder, [prefix])
        for at in range(0, len(order), _ROWS_AT_ONCE):
            batch = order[at : at + _ROWS_AT_ONCE]
            fed = pad_right([(prefix[-1], *rows[i].tokens) for i in batch], multiple=_LENGTH_MULTIPLE)
            cache = decoder.new_cache(len(batch), len(prefix) + fed.tokens.shape[1])
            for row in range(len(batch)):
                examples.write(cache, row)
            device = cache.keys.device
            starts = torch.full((len(batch),), len(prefix) - 1, dtype=torch.long, device=device)
            pairs = []
            if shifts is not None:
                reached = torch.zeros(fed.tokens.shape, dtype=torch.bool)
                for row, i in enumerate(batch):
                    reached[row, 1 : 1 + len(rows[i].tokens)] = torch.tensor(rows[i].is_statement)
                hook = partial(_add, shifts=shifts[batch].to(device), reached=reached.to(device))
                pairs = [(f"blocks.{layer}.hook_resid_post", hook)]
            with attached(model, pairs):
                last = fed.take_last(decoder.extend(fed.tokens.to(device), starts, cache))
            logits = decoder.unembed(last)[:, list(answers)].float().cpu()
            yield batch, logits[:, 0] - logits[:, 1]


def _add(
    residual: Float[Tensor, "row pos d_model"],
    hook: object,
    shifts: Float[Tensor, "row d_model"],
    reached: Bool[Tensor, "row pos"],
) -> Float[Tensor, "row pos d_model"]:
    return residual + (shifts[:, None] * reached[..., None]).to(residual.dtype)


def _find_answers(tokenizer: Any) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the tokens at which the two answers part, and those before them that they share."""
    true, false = (tokenize_text(tokenizer, _WORDS[which], []).tokens for which in (True, False))
    at = next(i for i, (a, b) in enumerate(zip(true, false, strict=False)) if a != b)
    return (true[at], false[at]), true[:at]


def _encode(tokenizer: Any, examples: str, text: str, shared: tuple[int, ...]) -> tuple[tuple[int, ...], _Row]:
    """Tokenise examples, statement and question in one piece, and cut where the statement begins."""
    start, end = len(examples), len(examples) + len(text)
    found = tokenize_text(tokenizer, f"{examples}{text}{_QUESTION}", [(start, end)])
    cut = next(i for i, (_, last) in enumerate(found.offsets) if last > start)
    is_statement = [first < end for first, _ in found.offsets[cut:]]
    return found.tokens[:cut], _Row((*found.tokens[cut:], *shared), (*is_statement, *[False] * len(shared)))
