"""What is ordinary for a model: its projections on a persona vector while it answers everyday questions, unsteered.

It gives steering a scale (standard deviations, or a KL divergence a token) and capping its bounds (quantiles).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from persona_lens.errors import InvalidArgumentError, ModelMismatchError, describe_violation
from persona_lens.models.activations import project_residual_stream
from persona_lens.models.chat import build_messages, encode_prompt
from persona_lens.models.hooks import HookPair, attached, check_unsteered
from persona_lens.models.loading import ModelInfo
from persona_lens.models.model_type import HookedModel
from persona_lens.models.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.sampling import SamplingSettings
from persona_lens.tensors.directions import normalize
from persona_lens.vectors import PersonaVector

# Seeds of the draws made here start with this, so that they never coincide with those of an extraction or sweep.
_STREAM = 106
_ROWS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class OrdinaryProjections:
    """Projections of a model's ordinary response tokens on a persona vector, at every layer.

    Args:
        trait: The vector's trait.
        model: The model that the vector was extracted from.
        vector: The vector's digest; see :attr:`PersonaVector.digest`.
        projections: Coordinates along the unit vector, one a response token, in residual-stream units.
        n_responses: Responses that the tokens come from.
        seed: Seed of their sampling.
    """

    trait: str
    model: ModelInfo
    vector: str
    projections: Float[Tensor, "layer token"]
    n_responses: int
    seed: int

    @property
    def mean(self) -> Float[Tensor, " layer"]:
        """Mean projection of each layer."""
        return self.projections.mean(dim=-1)

    @property
    def std(self) -> Float[Tensor, " layer"]:
        """Standard deviation of each layer's projection: the unit ``sigma`` of steering."""
        return self.projections.std(dim=-1)

    def quantile(self, q: float) -> Float[Tensor, " layer"]:
        """Return the projection below which the fraction ``q`` of ordinary tokens lies, at each layer.

        Raises:
            InvalidArgumentError: ``q`` is not in [0, 1].
        """
        if not 0 <= q <= 1:
            raise InvalidArgumentError(describe_violation("q", "be in [0, 1]", q))
        return self.projections.quantile(q, dim=-1)

    def check_vector(self, vector: PersonaVector) -> None:
        """Refuse another vector than the one measured, such as one of another trait, model or token position.

        Raises:
            ModelMismatchError: Another model.
            InvalidArgumentError: Another vector of that model.
        """
        if vector.model.fingerprint != self.model.fingerprint:
            raise ModelMismatchError(
                describe_violation("ordinary", f"come from the vector's model, {vector.model.name}", self.model.name)
            )
        if vector.trait != self.trait:
            raise InvalidArgumentError(
                describe_violation("ordinary", f"be measured for the vector {vector.trait!r}", self.trait)
            )
        if vector.digest != self.vector:
            rule, got = f"be measured for this vector of {vector.trait!r}", "another, or another token position of it"
            hint = "Measure again with measure_ordinary_projections(model, vector)."
            raise InvalidArgumentError(describe_violation("ordinary", rule, got, hint))

    def __repr__(self) -> str:
        n_layers, n_tokens = self.projections.shape
        return (
            f"OrdinaryProjections({self.trait!r} on {self.model.name!r}, {n_tokens} tokens of {self.n_responses} "
            f"responses, {n_layers} layers)"
        )


def load_ordinary_questions() -> tuple[str, ...]:
    """Return the bundled everyday questions, which touch no trait.

    Example:
        >>> len(load_ordinary_questions())
        40
    """
    text = (files("persona_lens") / "data" / "ordinary_questions.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def measure_ordinary_projections(
    model: HookedModel,
    vector: PersonaVector,
    *,
    questions: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
) -> OrdinaryProjections:
    """Sample unsteered responses to everyday questions and project their tokens on a vector, at every layer.

    Args:
        model: HookedTransformer or TransformerBridge, without hooks.
        vector: The vector.
        questions: What to ask; the bundled everyday questions if left out.
        max_new_tokens: Length limit of a response, in tokens.
        temperature: Of the sampling.
        seed: Of the sampling.

    Returns:
        One projection a response token and layer.

    Raises:
        ModelMismatchError: A vector of another model.
        InvalidArgumentError: No questions, or only empty responses.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> ordinary = pl.measure_ordinary_projections(model, vector)  # doctest: +SKIP
        >>> ordinary.quantile(0.99)[14]  # doctest: +SKIP
    """
    vector.check_model(model)
    texts = sample_ordinary_texts(model, questions, max_new_tokens, temperature, seed)
    units = normalize(vector.directions)[:, None]
    parts = []
    for tokens, is_padding, is_response in _batches(texts):
        projections = project_residual_stream(model, tokens, units, is_padding=is_padding)[:, 0]
        parts.append(projections.cpu()[:, is_response])
    found = torch.cat(parts, dim=-1)
    return OrdinaryProjections(vector.trait, vector.model, vector.digest, found, len(texts), seed)


@dataclass(frozen=True)
class OrdinaryText:
    """A prompt with the unsteered model's response.

    Args:
        tokens: Token ids of both.
        response_start: First response token.
    """

    tokens: tuple[int, ...]
    response_start: int


def sample_ordinary_texts(
    model: HookedModel, questions: Sequence[str] | None, max_new_tokens: int, temperature: float, seed: int
) -> list[OrdinaryText]:
    """Sample unsteered responses to everyday questions; empty ones are left out.

    Raises:
        InvalidArgumentError: No questions, or only empty responses.
        HooksPresentError: The model carries hooks.
    """
    asked = load_ordinary_questions() if questions is None else tuple(questions)
    if not asked:
        raise InvalidArgumentError(describe_violation("questions", "hold at least one question", asked))
    check_unsteered(model)
    requests = [RolloutRequest(question, (seed, _STREAM, q)) for q, question in enumerate(asked)]
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature)
    texts = []
    for rollout in sample_rollouts(model, requests, settings):
        prompt = encode_prompt(model.tokenizer, build_messages(rollout.request.question)).tokens
        if rollout.tokens:
            texts.append(OrdinaryText((*prompt, *rollout.tokens), len(prompt)))
    if not texts:
        raise InvalidArgumentError(describe_violation("questions", "draw a response that is not empty", list(asked)))
    return texts


def _batches(
    texts: Sequence[OrdinaryText],
) -> list[tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"], Bool[Tensor, "row pos"]]]:
    """Return right-padded tokens, padding masks and response masks, a few rows at a time."""
    batches = []
    for at in range(0, len(texts), _ROWS_AT_ONCE):
        rows = texts[at : at + _ROWS_AT_ONCE]
        n_pos = max(len(row.tokens) for row in rows)
        tokens = torch.tensor([[*row.tokens, *[0] * (n_pos - len(row.tokens))] for row in rows])
        positions = torch.arange(n_pos)
        lengths = torch.tensor([len(row.tokens) for row in rows])[:, None]
        starts = torch.tensor([row.response_start for row in rows])[:, None]
        is_padding = positions >= lengths
        batches.append((tokens, is_padding, (positions >= starts) & ~is_padding))
    return batches


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
