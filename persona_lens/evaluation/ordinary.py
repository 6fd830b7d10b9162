"""What is ordinary for a model: its projections on a persona vector while it answers everyday questions, unsteered.

It gives steering a scale (standard deviations, or a KL divergence a token) and capping its bounds (quantiles).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from persona_lens.errors import InvalidArgumentError, describe_violation
from persona_lens.models.engine.activations import project_residual_stream
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.engine.sampling import SamplingSettings
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.pairs import check_unsteered
from persona_lens.models.text.chat import build_messages, encode_prompt
from persona_lens.streams import Stream
from persona_lens.tensors.directions import normalize
from persona_lens.traits.everyday import load_ordinary_questions
from persona_lens.vectors import PersonaVector
from persona_lens.vectors.ordinary import OrdinaryProjections

# Seeds of the draws made here start with this, so that they never coincide with those of an extraction or sweep.
_ROWS_AT_ONCE = 8


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
    requests = [RolloutRequest(question, (seed, Stream.ORDINARY, q)) for q, question in enumerate(asked)]
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
