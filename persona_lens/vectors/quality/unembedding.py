"""What the unembedding makes of a vector, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.unembedding import unembed_directions
from persona_lens.models.hooked_model import HookedModel
from persona_lens.records import Record
from persona_lens.statistics import Interval
from persona_lens.streams import Stream, check_seed
from persona_lens.tensors.directions import sample_random_directions

# Random directions in one product with the unembedding: 30 layers' worth.
_N_RANDOM = 64


@checked
@dataclass(frozen=True, eq=False)
class UnembeddedLayer(Record):
    """What one layer's direction would write.

    Args:
        promoted: Tokens whose logit it raises most, with by how many standard deviations over the vocabulary.
        demoted: Those that it lowers most.
        kurtosis: Excess kurtosis of what it adds to the logits: high where it is about few tokens.
    """

    promoted: tuple[tuple[str, float], ...]
    demoted: tuple[tuple[str, float], ...]
    kurtosis: float


@checked
@dataclass(frozen=True, eq=False)
class Unembedding(Record):
    """What a vector would write if nothing after its layer read it.

    Args:
        layers: One a layer.
        random: Excess kurtosis of random directions: the median and the middle 95 %, their spread.
    """

    layers: tuple[UnembeddedLayer, ...]
    random: Interval


@checked
def read_unembedding(
    model: HookedModel, directions: Float[Tensor, "layer d_model"], *, n_tokens: int = 8, seed: int = 0
) -> Unembedding:
    r"""Read a vector through the final norm and the unembedding, at every layer.

    The excess kurtosis of what it adds to the logits, :math:`\operatorname{mean}_t w_t^4 - 3` with ``w`` of mean 0 and
    variance 1 over the vocabulary, says how far it is about few tokens; random directions' stand beside it, since rows
    of an unembedding differ in length.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        directions: The vector's, one a layer.
        n_tokens: Tokens to name at each end.
        seed: Of the random directions.

    Raises:
        InvalidArgumentError: Directions of another width, or a value out of range.
        HooksPresentError: The model carries hooks.

    Reference:
        That what the unembedding sees of a concept predicts where steering works: arXiv 2604.15557, which reads
        activations; a direction's kurtosis is a kindred measure and not theirs.

    Example:
        >>> read_unembedding(model, vector.directions).layers[20].promoted  # doctest: +SKIP
    """
    if not 1 <= n_tokens <= len(model.tokenizer):
        raise InvalidArgumentError.of("n_tokens", f"be in [1, {len(model.tokenizer)}]", n_tokens)
    check_seed(seed)
    drawn = int(np.random.default_rng((seed, Stream.VECTOR_QUALITY, 1)).integers(2**31))
    random = sample_random_directions(torch.ones(1), model.cfg.d_model, _N_RANDOM, drawn)[:, 0]
    written = unembed_directions(model, directions)
    low, median, high = np.quantile(measure_kurtosis(unembed_directions(model, random)), [0.025, 0.5, 0.975])
    return Unembedding(name_tokens(model, written, n_tokens), Interval(float(median), float(low), float(high)))


def name_tokens(
    model: HookedModel, written: Float[Tensor, "direction vocab"], n_tokens: int
) -> tuple[UnembeddedLayer, ...]:
    """Name what each direction raises and lowers most, of what :func:`unembed_directions` says that it writes."""
    found = []
    for scores, kurtosis in zip(written, measure_kurtosis(written), strict=True):
        order = scores.argsort(descending=True, stable=True)
        ends = (order[:n_tokens], order.flip(0)[:n_tokens])
        promoted, demoted = (
            tuple((model.tokenizer.decode([int(token)]), float(scores[token])) for token in end) for end in ends
        )
        found.append(UnembeddedLayer(promoted, demoted, kurtosis))
    return tuple(found)


def measure_kurtosis(written: Float[Tensor, "direction vocab"]) -> list[float]:
    """Return excess kurtosis of rows that have mean 0 and variance 1."""
    return [float((row.double() ** 4).mean()) - 3.0 for row in written]
