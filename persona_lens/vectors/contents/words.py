"""A vector in words: what it makes the model say from its layer on, beside random directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.jacobian import transport_directions
from persona_lens.models.engine.unembedding import unembed_directions
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.text.tokens import tokenize_plain
from persona_lens.records import Record
from persona_lens.statistics import Interval
from persona_lens.streams import Stream, check_seed
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.texts import check_texts
from persona_lens.vectors.quality.unembedding import UnembeddedLayer, measure_kurtosis, name_tokens


@checked
@dataclass(frozen=True, eq=False)
class JacobianLayer(Record):
    """What one layer's direction does to the model's words, to first order.

    Args:
        layer: Zero-based block index.
        words: What it writes where it arrives: the tokens that it raises and lowers most, and its excess kurtosis.
        gain: How much longer or shorter it arrives at the last layer.
        random_kurtosis: Of random directions that arrive alike: the median and the middle 95 %, their spread.
        random_gain: Likewise.
    """

    layer: int
    words: UnembeddedLayer
    gain: float
    random_kurtosis: Interval
    random_gain: Interval


@checked
@dataclass(frozen=True, eq=False)
class JacobianWords(Record):
    """A vector through the Jacobian lens.

    Args:
        layers: One a layer that was read.
        n_texts: Texts that the Jacobian is an average over.
        n_random: Random directions.
    """

    layers: tuple[JacobianLayer, ...]
    n_texts: int
    n_random: int


@checked
def read_jacobian_words(
    model: HookedModel,
    directions: Sequence[Float[Tensor, "layer d_model"]],
    texts: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    n_tokens: int = 8,
    n_random: int = 16,
    max_tokens: int = 64,
    seed: int = 0,
) -> tuple[JacobianWords, ...]:
    r"""Read vectors through the Jacobian lens: carried to the last layer, then through norm and unembedding.

    :func:`read_unembedding` reads a direction as if nothing came after its layer. Here the average Jacobian ``J_l`` of
    what comes after carries it on, so that an early layer's direction is read by what it brings about. Both ends are of
    one linear map: what a direction lowers is what its opposite raises.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        directions: One or more vectors' directions: ``vector.directions``. Random ones are drawn once for all.
        texts: Ordinary texts of more than seventeen tokens; a few paragraphs do.
        layers: Zero-based block indices; None takes all.
        n_tokens: Tokens to name at each end.
        n_random: Random directions a layer; two or more.
        max_tokens: Of a text.
        seed: Of the random directions.

    Returns:
        One reading a vector.

    Raises:
        InvalidArgumentError: No vector, directions of another shape, a text that is too short, a value out of range.
        LayerOutOfRangeError: A layer that the model does not have.
        HooksPresentError: The model carries hooks.

    Reference:
        Gurnee et al., Verbalizable Representations Form a Global Workspace in Language Models (Transformer Circuits
        Thread, 2026), for the lens; here of a direction in place of an activation, and so without the norm's divisor.

    Example:
        >>> import persona_lens as pl
        >>> model, vector = pl.load_model(), pl.load_vector("evil")  # doctest: +SKIP
        >>> from persona_lens.evaluation.capability import load_ordinary_texts
        >>> texts = load_ordinary_texts()[:4]
        >>> (read,) = pl.vectors.read_jacobian_words(model, [vector.directions], texts, layers=[15])  # doctest: +SKIP
        >>> read.layers[0].words.promoted  # doctest: +SKIP
    """
    texts = check_texts("texts", texts)
    shape = (model.cfg.n_layers, model.cfg.d_model)
    if len(directions) == 0 or any(tuple(one.shape) != shape for one in directions):
        rule = f"be one or more of shape (layer, d_model) = {shape}"
        raise InvalidArgumentError.of("directions", rule, [tuple(one.shape) for one in directions])
    for name, value, least in (("n_random", n_random, 2), ("max_tokens", max_tokens, 18)):
        if value < least:
            raise InvalidArgumentError.of(name, f"be at least {least}", value)
    if not 1 <= n_tokens <= len(model.tokenizer):
        raise InvalidArgumentError.of("n_tokens", f"be in [1, {len(model.tokenizer)}]", n_tokens)
    check_seed(seed)
    chosen = range(model.cfg.n_layers) if layers is None else [check_layer(one, model.cfg.n_layers) for one in layers]
    rows = [_tokenize(model, text)[:max_tokens] for text in texts]
    found: list[list[JacobianLayer]] = [[] for _ in directions]
    for layer in chosen:
        drawn = int(np.random.default_rng((seed, Stream.CONTENTS, layer)).integers(2**31))
        random = sample_random_directions(torch.ones(1), model.cfg.d_model, n_random, drawn)[:, 0]
        own = torch.stack([one[layer].float().cpu() for one in directions])
        both = torch.cat([own, random])
        arrived = transport_directions(model, both, layer, rows)
        written, gains = unembed_directions(model, arrived), arrived.norm(dim=1) / both.norm(dim=1)
        n = len(own)
        nulls = (_spread(measure_kurtosis(written[n:])), _spread(gains[n:].tolist()))
        for reading, words, gain in zip(found, name_tokens(model, written[:n], n_tokens), gains, strict=False):
            reading.append(JacobianLayer(layer, words, float(gain), *nulls))
    return tuple(JacobianWords(tuple(one), len(rows), n_random) for one in found)


def _tokenize(model: HookedModel, text: str) -> tuple[int, ...]:
    """Return a text's tokens after a BOS, if there is one."""
    bos = model.tokenizer.bos_token_id
    return (*(() if bos is None else (bos,)), *tokenize_plain(model.tokenizer, text).tokens)


def _spread(values: Sequence[float]) -> Interval:
    low, median, high = np.quantile(values, [0.025, 0.5, 0.975])
    return Interval(float(median), float(low), float(high))
