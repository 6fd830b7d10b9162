"""Which coefficient? The one that costs a given KL divergence a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.evaluation.ordinary import sample_ordinary_spans
from persona_lens.evaluation.predictions import measure_predictions
from persona_lens.interventions.from_vectors import Layers, choose_layers, steer
from persona_lens.interventions.hooks import intervention_hooks
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import HookPair
from persona_lens.models.text.spans import TokenSpans
from persona_lens.records import Record
from persona_lens.statistics import Interval, bootstrap_mean
from persona_lens.vectors.persona_vector import PersonaVector

_ROWS_AT_ONCE = 8
_MOST_HALVINGS = 20


@checked
@dataclass(frozen=True)
class SteeringStrength(Record):
    """A coefficient chosen for how far it moves the model's next-token distributions.

    Args:
        coefficient: Multiplies what was steered with.
        target_kl: What was asked for, in nats a token.
        chosen_kl: What it costs on the responses that it was chosen on, within the tolerance of ``target_kl``.
        kl: KL divergence from the unsteered to the steered model at that coefficient, in nats a token, on responses
            that the coefficient was not chosen on, with its bootstrap interval over them.
        n_responses: Responses that it was chosen on.
        n_held_out: Responses that ``kl`` was measured on.
    """

    coefficient: float
    target_kl: float
    chosen_kl: float
    kl: Interval
    n_responses: int
    n_held_out: int


@checked
def calibrate(
    model: HookedModel,
    vector: PersonaVector,
    *,
    target_kl: float,
    layer: int | None = None,
    layers: Layers | None = None,
    questions: Sequence[str] | None = None,
    sampling: Sampling = Sampling(max_new_tokens=32),
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
        questions: What to ask, at least four; the bundled everyday questions if left out.
        sampling: How responses are drawn, one to each question; its seed is that of the bootstrap too.
        tolerance: Accepted distance from the target, as a fraction of it.

    Returns:
        The coefficient, positive, and what it costs on held-out responses.

    Raises:
        ModelMismatchError: A vector of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: A target that is not positive and finite, that no coefficient up to 1,000 reaches, or that
            is not met within the tolerance; or fewer than four responses.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> strength = pl.calibrate(model, vector, layer=14, target_kl=0.1)  # doctest: +SKIP
        >>> hooks = pl.steering_hooks(vector, layer=14, coefficient=strength.coefficient)  # doctest: +SKIP
    """
    if not 0 < target_kl < float("inf"):
        raise InvalidArgumentError.of("target_kl", "be positive and finite", target_kl)
    vector.check_model(model)
    choose_layers(layer, layers, vector.model.n_layers)
    spans = sample_ordinary_spans(model, questions, sampling)
    if len(spans) < 4:
        rule = "draw at least 4 responses, two to choose on and two to measure"
        raise InvalidArgumentError.of("questions", rule, len(spans))
    chosen_on, held_out = spans[::2], spans[1::2]

    def measure(coefficient: float, some: Sequence[TokenSpans]) -> Float[Tensor, " response"]:
        done = steer(vector, layer=layer, layers=layers, coefficient=coefficient)

        def make_hooks(batch: Sequence[TokenSpans]) -> list[HookPair]:
            lengths = [span.response_start for span in batch]
            return intervention_hooks(done, positions="response", prompt_length=lengths)

        found = measure_predictions(model, some, make_hooks, batch_size=_ROWS_AT_ONCE, compare=True)
        return found.divergences / found.n_tokens

    low, high = 0.0, 1.0
    while float(measure(high, chosen_on).mean()) < target_kl:
        low, high = high, 2 * high
        if high > 1000:
            rule = "be reached by a coefficient of at most 1,000"
            raise InvalidArgumentError.of("target_kl", rule, target_kl, "Lower it.")
    for _ in range(_MOST_HALVINGS):
        coefficient = (low + high) / 2
        reached = float(measure(coefficient, chosen_on).mean())
        if abs(reached - target_kl) <= tolerance * target_kl:
            kl = bootstrap_mean(measure(coefficient, held_out), seed=sampling.seed)
            return SteeringStrength(coefficient, target_kl, reached, kl, len(chosen_on), len(held_out))
        low, high = (coefficient, high) if reached < target_kl else (low, coefficient)
    rule = f"let {target_kl:g} nats a token be met within {_MOST_HALVINGS} halvings"
    hint = f"The last coefficient, {coefficient:g}, costs {reached:g}. Raise it, or take a model in float32."
    raise InvalidArgumentError.of("tolerance", rule, tolerance, hint)
