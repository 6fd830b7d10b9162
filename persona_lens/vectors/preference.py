"""A vector optimised by gradient on a preference between written answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.applying import apply_operations
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.sites import hook_name, resolve_layers
from persona_lens.models.loading import check_gradients_pass, describe_model
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.spans import TokenSpans
from persona_lens.progress_bars import show_progress
from persona_lens.storage import collect_versions
from persona_lens.streams import Stream, check_seed
from persona_lens.tensors.operations import Add
from persona_lens.traits.written import WrittenExample
from persona_lens.vectors.persona_vector import ExtractionCounts, PersonaVector
from persona_lens.vectors.written import read_persona_vector
from persona_lens.vectors.written_contrast import encode_answers

# Where the optimisation starts, in mean differences: near zero, but with a direction that can be added.
_START = 0.01


@checked
def optimise_vector(
    model: HookedModel,
    trait: str,
    examples: Sequence[WrittenExample],
    layers: int | Sequence[int],
    *,
    n_steps: int = 40,
    batch_size: int = 4,
    learning_rate: float = 0.1,
    beta: float = 0.1,
    seed: int = 0,
) -> PersonaVector:
    r"""Find the vector that, added at a layer, makes the overt answers likelier than the opposite ones.

    .. math:: \min_v \; \mathbb{E} \Bigl[ -\log \sigma \bigl( \beta s \, [\Delta_{sv}(y^{\text{overt}}) -
        \Delta_{sv}(y^{\text{opposite}})] \bigr) \Bigr], \quad
        \Delta_w(y) = \log \pi_w(y \mid x) - \log \pi(y \mid x)

    :math:`\pi_w` is the model with :math:`w` added at the layer's output, from the last prompt token on, as in
    sampling; log-likelihoods are sums over the answer's tokens. :math:`s` is 1 and -1 by turns, from step to step:
    added, the vector must favour the overt answers, taken away the opposite ones. At :math:`v = 0` the loss is
    :math:`\log 2 = 0.693`. The weights stay as they are; Adam moves the vector alone, from a hundredth of the mean
    difference on. Where several layers are given, each is optimised by itself.

    When to use it: where a vector read or sampled does not move the model, and pairs of answers are at hand. It looks
    for what acts, not for what is there, so it is no good to read with; it fits its examples, so judge it on others.

    Memory: one batch's activations from the layer on, ``2 * batch * pos * layers above`` of the model's widths, and its
    logits ``2 * batch * pos * vocab``. Time: about two forward passes of ``2 * batch_size`` texts a step.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait's name.
        examples: At least two: ``load_written_examples(trait, "training")``.
        layers: One zero-based block index, or several.
        n_steps: Steps of Adam at each layer.
        batch_size: Examples a step, each with both of its answers.
        learning_rate: How far a step may move an entry, in root mean squares of the mean difference's entries.
        beta: How soon a preference is enough; BiPO's is 0.1.
        seed: Of the examples' order.

    Returns:
        The raw vector, zero at all other layers; coefficient 1 is what it was optimised at. ``provenance["losses"]``
        has each layer's loss at each step, ``provenance["length"]`` its length in mean differences.

    Raises:
        InvalidArgumentError: Fewer than two examples, or a value out of range.
        LayerOutOfRangeError: A layer that the model does not have.
        ContextLengthError: An answer that is longer than the model's context.
        HooksPresentError: The model carries hooks.
        UnsupportedModelError: Blocks that are copied to a GPU while they run, through which no gradient comes back.

    Reference:
        Bi-directional Preference Optimization (arXiv 2406.00045), section 3; there the vector starts at zero, acts at
        every position, and the sign is drawn.

    Example:
        >>> import persona_lens as pl
        >>> examples = pl.traits.load_written_examples("evil", "training")
        >>> vector = pl.vectors.optimise_vector(pl.load_model(), "evil", examples, 15)  # doctest: +SKIP
    """
    if len(examples) < 2:
        raise InvalidArgumentError.of("examples", "be at least 2", len(examples))
    for name, count in (("n_steps", n_steps), ("batch_size", batch_size)):
        if count < 1:
            raise InvalidArgumentError.of(name, "be at least 1", count)
    for name, value in (("learning_rate", learning_rate), ("beta", beta)):
        if not (math.isfinite(value) and value > 0):
            raise InvalidArgumentError.of(name, "be finite and above 0", value)
    check_seed(seed)
    chosen = resolve_layers(layers, model.cfg.n_layers)
    check_gradients_pass(model)
    mean = read_persona_vector(model, trait, examples)  # checks the model and the texts as well
    answers = encode_answers(model, examples, "opposite")
    pairs = list(zip(answers[0::2], answers[1::2], strict=True))
    directions = torch.zeros_like(mean.directions)
    losses: dict[str, list[float]] = {}
    with show_progress("optimising (steps)", n_steps * len(chosen)) as advance, _frozen(model):
        known = _list_likelihoods(model, pairs, batch_size)
        for layer in chosen:
            start = mean.direction(layer)
            vector = (_START * start).clone().requires_grad_()
            adam = torch.optim.Adam([vector], lr=learning_rate * float(start.square().mean().sqrt()))
            order = _draw(len(examples), n_steps * batch_size, (seed, Stream.PREFERENCE, layer))
            found = losses[str(layer)] = []
            for step in range(n_steps):
                sign = 1.0 if step % 2 == 0 else -1.0
                batch = order[step * batch_size : (step + 1) * batch_size]
                moved = _measure_likelihoods(model, [pairs[i] for i in batch], layer, vector, sign)
                gain = moved - known[batch]
                loss = -F.logsigmoid(beta * sign * (gain[:, 0] - gain[:, 1])).mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
                found.append(loss.item())
                advance(1)
            directions[layer] = vector.detach()
    lengths = directions.norm(dim=-1) / mean.norms
    n = len(examples)
    return PersonaVector(
        trait=trait,
        model=describe_model(model),
        by_position={"response_mean": directions},
        counts=ExtractionCounts(pairs=n, kept=n),
        provenance={
            "source": "optimised on written answers, overt preferred to opposite",
            "examples": hash_json([asdict(one) for one in examples]),
            "n_steps": n_steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "beta": beta,
            "seed": seed,
            "losses": losses,
            "length": {str(layer): float(lengths[layer]) for layer in chosen},
            "versions": collect_versions(),
        },
    )


def _draw(n: int, n_drawn: int, seed: tuple[int, ...]) -> list[int]:
    """Draw numbers below ``n`` without repeating one before all have come; then again."""
    generator = np.random.default_rng(seed)
    rounds = [generator.permutation(n) for _ in range(-(-n_drawn // n))]
    return [int(one) for one in np.concatenate(rounds)[:n_drawn]]


@contextmanager
def _frozen(model: HookedModel) -> Iterator[None]:
    """Let no gradient reach the weights inside the block: none is wanted, and each would take memory and time."""
    trained = [one for one in model.parameters() if one.requires_grad]
    for one in trained:
        one.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for one in trained:
            one.requires_grad_(True)


def _list_likelihoods(
    model: HookedModel, pairs: Sequence[tuple[TokenSpans, TokenSpans]], batch_size: int
) -> Float[Tensor, "pair 2"]:
    """Return the log-likelihoods of all answers in the model as it is, by the way that is differentiated later."""
    with torch.no_grad():
        batches = [pairs[at : at + batch_size] for at in range(0, len(pairs), batch_size)]
        return torch.cat([_measure_likelihoods(model, batch, None, None, 0.0) for batch in batches])


def _measure_likelihoods(
    model: HookedModel,
    pairs: Sequence[tuple[TokenSpans, TokenSpans]],
    layer: int | None,
    vector: Float[Tensor, " d_model"] | None,
    sign: float,
) -> Float[Tensor, "pair 2"]:
    """Return the summed log-likelihood of each answer, in nats, with a multiple of a vector added at a layer."""
    rows = [one for pair in pairs for one in pair]
    padded = pad_right([one.tokens[: one.response_end] for one in rows])
    tokens, is_padding = padded.tokens.to(model.cfg.device), padded.is_padding.to(model.cfg.device)
    starts = torch.tensor([one.response_start for one in rows], device=tokens.device)
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    is_steered = (positions >= starts[:, None] - 1) & ~is_padding

    def steer(residual: Tensor, hook: object) -> Tensor:
        assert vector is not None
        return apply_operations(residual, (Add(vector, sign),), is_steered)

    with attached(model, [] if layer is None else [(hook_name(layer), steer)]):
        logits = model(tokens, attention_mask=(~is_padding).long())
    # A token is foretold one position before it, so the steered positions but the last are those that foretell.
    chosen = is_steered[:, :-1] & ~is_padding[:, 1:]
    likelihoods = logits[:, :-1][chosen].float().log_softmax(dim=-1)
    of_tokens = likelihoods.gather(-1, tokens[:, 1:][chosen][:, None])[:, 0]
    row = chosen.nonzero()[:, 0]
    sums = torch.zeros(len(rows), device=tokens.device).index_add(0, row, of_tokens)
    return sums.reshape(len(pairs), 2).cpu()
