"""Which coefficient? The one that costs a given KL divergence a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import InvalidArgumentError, describe_violation
from persona_lens.evaluation.ordinary import OrdinaryText, _batches, sample_ordinary_texts
from persona_lens.interventions.making import Layers, choose_layers
from persona_lens.interventions.steering import steering_hooks
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.pairs import HookPair, attached
from persona_lens.statistics import Interval, bootstrap_mean
from persona_lens.vectors import PersonaVector


@dataclass(frozen=True)
class SteeringStrength:
    """A coefficient chosen for how far it moves the model's next-token distributions.

    Args:
        coefficient: Multiplies what was steered with.
        target_kl: What was asked for, in nats a token.
        kl: KL divergence from the unsteered to the steered model at that coefficient, in nats a token, on responses
            that the coefficient was not chosen on, with its bootstrap interval over them.
        n_responses: Responses that it was chosen on.
        n_held_out: Responses that ``kl`` was measured on.
    """

    coefficient: float
    target_kl: float
    kl: Interval
    n_responses: int
    n_held_out: int


def calibrate(
    model: HookedModel,
    vector: PersonaVector,
    *,
    target_kl: float,
    layer: int | None = None,
    layers: Layers | None = None,
    questions: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    seed: int = 0,
    tolerance: float = 0.05,
) -> SteeringStrength:
    """Choose the coefficient that costs a given KL divergence a token, so that vectors and layers can be compared.

    The divergence is that of the steered from the unsteered next-token distributions, averaged over the tokens of
    ordinary responses, steered from the last prompt token on. The coefficient is found by bisection on every other
    response, and what it costs is measured on the rest.

    Args:
        model: HookedTransformer or TransformerBridge, without hooks.
        vector: The vector; ``-vector`` calibrates steering away.
        target_kl: In nats a token, above 0.
        layer: One zero-based block index.
        layers: Instead of ``layer``: several, or ``"all"``.
        questions: What to ask, at least two; the bundled everyday questions if left out.
        max_new_tokens: Length limit of a response, in tokens.
        seed: Of the sampling.
        tolerance: Accepted distance from the target, as a fraction of it.

    Returns:
        The coefficient, positive, and what it costs on held-out responses.

    Raises:
        ModelMismatchError: A vector of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: A target that is not positive and finite, or that no coefficient up to 1,000 reaches.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> strength = pl.calibrate(model, vector, layer=14, target_kl=0.1)  # doctest: +SKIP
        >>> hooks = pl.steering_hooks(vector, layer=14, coefficient=strength.coefficient)  # doctest: +SKIP
    """
    if not 0 < target_kl < float("inf"):
        raise InvalidArgumentError(describe_violation("target_kl", "be positive and finite", target_kl))
    vector.check_model(model)
    choose_layers(layer, layers, vector.model.n_layers)
    texts = sample_ordinary_texts(model, questions, max_new_tokens, 1.0, seed)
    if len(texts) < 2:
        rule = "draw at least 2 responses, one to choose on and one to measure"
        raise InvalidArgumentError(describe_violation("questions", rule, len(texts)))
    chosen_on, held_out = texts[::2], texts[1::2]

    def measure(coefficient: float, some: Sequence[OrdinaryText]) -> Float[Tensor, " response"]:
        def make_hooks(positions: Tensor) -> list[HookPair]:
            return steering_hooks(vector, layer=layer, layers=layers, coefficient=coefficient, positions=positions)

        return measure_kl(model, some, make_hooks)

    low, high = 0.0, 1.0
    while float(measure(high, chosen_on).mean()) < target_kl:
        low, high = high, 2 * high
        if high > 1000:
            rule = "be reached by a coefficient of at most 1,000"
            raise InvalidArgumentError(describe_violation("target_kl", rule, target_kl, "Lower it."))
    coefficient = high
    for _ in range(20):
        coefficient = (low + high) / 2
        reached = float(measure(coefficient, chosen_on).mean())
        if abs(reached - target_kl) <= tolerance * target_kl:
            break
        low, high = (coefficient, high) if reached < target_kl else (low, coefficient)
    kl = bootstrap_mean(measure(coefficient, held_out), seed=seed)
    return SteeringStrength(coefficient, target_kl, kl, len(chosen_on), len(held_out))


def measure_kl(
    model: HookedModel, texts: Sequence[OrdinaryText], make_hooks: Callable[[Tensor], list[HookPair]]
) -> Float[Tensor, " response"]:
    r"""Return each response's mean KL divergence a token from the unsteered to the steered model, in nats.

    .. math:: \frac{1}{T} \sum_t \mathrm{KL}\bigl(p(\cdot \mid y_{<t}) \,\|\, p'(\cdot \mid y_{<t})\bigr)

    Args:
        model: HookedTransformer or TransformerBridge.
        texts: Prompts and responses.
        make_hooks: Makes the hooks of a batch from a mask ``[row, pos]`` of its responses, each with the last token of
            its prompt.
    """
    found = []
    for tokens, is_padding, is_response in _batches(texts):
        # A response token is predicted one position before it, from the last prompt token on.
        predicts = torch.zeros_like(is_response)
        predicts[:, :-1] = is_response[:, 1:]
        steered_at = predicts | is_response
        attention_mask = (~is_padding).long().to(model.cfg.device)
        inputs = tokens.to(model.cfg.device)
        with torch.no_grad():
            reference = model(inputs, attention_mask=attention_mask)[predicts].float().log_softmax(dim=-1)
            with attached(model, make_hooks(steered_at)):
                steered = model(inputs, attention_mask=attention_mask)[predicts].float().log_softmax(dim=-1)
        divergences = (reference.exp() * (reference - steered)).sum(dim=-1)
        rows = predicts.nonzero()[:, 0].to(divergences.device)
        sums = torch.zeros(len(tokens), device=divergences.device).index_add_(0, rows, divergences)
        found.append(sums.cpu() / predicts.sum(dim=1))
    return torch.cat(found)
