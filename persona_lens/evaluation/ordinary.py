"""What is ordinary for a model: its projections on a persona vector while it answers everyday questions, unsteered.

It gives steering a scale (standard deviations, or a KL divergence a token) and capping its bounds (quantiles).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.activations import project_residual_stream
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.text.chat import encode_prompt
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.spans import TokenSpans, find_part
from persona_lens.streams import Stream
from persona_lens.texts import check_texts
from persona_lens.traits.everyday import load_ordinary_questions
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.persona_vector import PersonaVector

_ROWS_AT_ONCE = 8


@checked
def measure_ordinary_projections(
    model: HookedModel,
    vector: PersonaVector,
    *,
    questions: Sequence[str] | None = None,
    sampling: Sampling = Sampling(max_new_tokens=32),
) -> OrdinaryProjections:
    """Sample unsteered responses to everyday questions and project their tokens on a vector, at every layer.

    Args:
        model: HookedTransformer or TransformerBridge, without hooks.
        vector: The vector.
        questions: What to ask; the bundled everyday questions if left out.
        sampling: How responses are drawn, one to each question.

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
    spans = sample_ordinary_spans(model, questions, sampling)
    units = vector.units[:, None]
    parts = []
    for at in range(0, len(spans), _ROWS_AT_ONCE):
        batch = spans[at : at + _ROWS_AT_ONCE]
        padded = pad_right([span.tokens for span in batch])
        starts = torch.tensor([span.response_start for span in batch])[:, None]
        is_response = (torch.arange(padded.tokens.shape[1]) >= starts) & ~padded.is_padding
        projections = project_residual_stream(model, padded.tokens, units, is_padding=padded.is_padding)[:, 0]
        parts.append(projections.cpu()[:, is_response])
    found = torch.cat(parts, dim=-1)
    return OrdinaryProjections(vector.trait, vector.model, vector.digest, found, len(spans), sampling.seed)


def sample_ordinary_spans(model: HookedModel, questions: Sequence[str] | None, sampling: Sampling) -> list[TokenSpans]:
    """Sample unsteered responses to everyday questions; empty ones are left out.

    Raises:
        InvalidArgumentError: No questions, or only empty responses.
        HooksPresentError: The model carries hooks.
    """
    asked = check_texts("questions", load_ordinary_questions() if questions is None else questions)
    check_unsteered(model)
    requests = [RolloutRequest(question, (sampling.seed, Stream.ORDINARY, q)) for q, question in enumerate(asked)]
    spans = []
    for rollout in sample_rollouts(model, requests, sampling):
        prompt = encode_prompt(model.tokenizer, rollout.request.messages).tokens
        start, end = find_part(sampling.pooled, 0, len(rollout.tokens), rollout.thought)
        if end > start:
            spans.append(TokenSpans.join((*prompt, *rollout.tokens[:start]), rollout.tokens[start:end]))
    if not spans:
        raise InvalidArgumentError.of("questions", "draw a response that is not empty", list(asked))
    return spans
