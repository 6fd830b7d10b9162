"""Activations of a text's last token, where a model has read all of it and said nothing yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.activations import pool_residual_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import describe_model
from persona_lens.models.text.spans import TokenSpans
from persona_lens.models.text.tokens import tokenize_plain
from persona_lens.traits.statements import Statement
from persona_lens.vectors.pairs import ActivationPairs


@checked
def read_last_tokens(model: HookedModel, texts: Sequence[tuple[int, ...]]) -> Float[Tensor, "text layer d_model"]:
    """Read texts, and keep the residual stream of each one's last token at every layer.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        texts: Token ids, at least two each: what ``encode_prompt`` returns as ``tokens``, or a plain text's.

    Returns:
        Activations in float32, ``4 * text * layer * d_model`` bytes: 7 MB for a hundred texts of the embedded model.

    Raises:
        InvalidArgumentError: No text, or one of fewer than two tokens.
        ContextLengthError: A text that is longer than the model's context.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> model = pl.load_model()  # doctest: +SKIP
        >>> prompt = pl.models.encode_prompt(model.tokenizer, pl.models.build_messages("Who?"))  # doctest: +SKIP
        >>> read_last_tokens(model, [prompt.tokens]).shape  # doctest: +SKIP
        torch.Size([1, 30, 576])
    """
    if not texts or min(map(len, texts)) < 2:
        raise InvalidArgumentError.of("texts", "hold texts of at least 2 tokens each", [len(text) for text in texts])
    check_unsteered(model)
    last = torch.zeros(len(texts), model.cfg.n_layers, model.cfg.d_model)
    # The last token alone stands for the response, so that its mean is the token's own activation.
    for index, pooled in pool_residual_stream(model, [TokenSpans.join(text[:-1], text[-1:]) for text in texts]):
        last[index] = pooled.response_mean.cpu()
    return last


@checked
def read_statements(model: HookedModel, statements: Sequence[Statement]) -> ActivationPairs:
    """Read true and false statements in turn, and keep the activations at each one's full stop.

    The statement is read as plain text, as the paper does: nobody says it, and the full stop is where a model has read
    all of it. Each true statement is paired with the false one that follows it.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        statements: True and false in turn, at least two of each: ``load_statements(kind)``.

    Returns:
        True ones as the positive side; ``questions`` numbers the groups, which are distinct across kinds.

    Raises:
        InvalidArgumentError: Fewer than four statements, or true and false ones not in turn.
        HooksPresentError: The model carries hooks.

    Reference:
        The Geometry of Truth (arXiv 2310.06824), sections 3 and 4.

    Example:
        >>> import persona_lens as pl
        >>> statements = pl.traits.load_statements("cities")
        >>> pairs = pl.vectors.read_statements(pl.load_model(), statements)  # doctest: +SKIP
    """
    n_pairs = len(statements) // 2
    if n_pairs < 2 or [one.is_true for one in statements] != [True, False] * n_pairs:
        rule = "be true and false in turn, at least two of each"
        raise InvalidArgumentError.of("statements", rule, [one.is_true for one in statements][:8])
    last = read_last_tokens(model, [tokenize_plain(model.tokenizer, one.text).tokens for one in statements])
    groups = {place: number for number, place in enumerate(dict.fromkeys((one.kind, one.group) for one in statements))}
    provenance = {
        "source": "statements, the full stop's activation",
        "statements": hash_json([asdict(one) for one in statements]),
    }
    return ActivationPairs(
        "truth", describe_model(model), last[0::2].clone(), last[1::2].clone(),
        tuple(groups[one.kind, one.group] for one in statements[::2]), provenance,
    )  # fmt: skip
