"""Questions asked of a model under system prompts: rollouts, as text, tokens and pooled residual streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from persona_lens.models.engine.sampling import (
    ResidualMeans,
    SampledResponse,
    SampleRequest,
    SamplingSettings,
    sample_recorded_stream,
    sample_stream,
)
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.pairs import SiteIntervention
from persona_lens.models.text.chat import build_messages, encode_prompt, stop_token_ids


@dataclass(frozen=True, eq=False)
class RolloutRequest:
    """A question to be asked.

    Args:
        question: The user's turn.
        system: System prompt; None leaves it to the chat template.
        seed: Seeds the response's draws.
        interventions: What is done to the residual stream while the response is sampled.
    """

    question: str
    seed: tuple[int, ...]
    system: str | None = None
    interventions: tuple[SiteIntervention, ...] = ()


@dataclass(frozen=True, eq=False)
class Rollout:
    """A question with the response that was sampled.

    Args:
        request: What was asked.
        response: The response's text, without the stop token.
        tokens: Its token ids.
        stop_reason: ``stop`` at a stop token, ``length`` at the limit.
        residuals: Pooled residual stream, where recorded and the response is not empty.
    """

    request: RolloutRequest
    response: str
    tokens: tuple[int, ...]
    stop_reason: str
    residuals: ResidualMeans | None = field(default=None, repr=False)


def sample_rollouts(
    model: HookedModel, requests: Sequence[RolloutRequest], settings: SamplingSettings
) -> list[Rollout]:
    """Sample a response to each question, in the order given.

    Args:
        model: HookedTransformer or TransformerBridge with a tokenizer that has a chat template.
        requests: What to ask.
        settings: How to sample; empty ``stop_tokens`` stand for the tokenizer's own.

    Returns:
        One rollout a request.

    Raises:
        ChatTemplateError: The tokenizer has no usable chat template.
        ContextLengthError: A prompt that leaves no room for the response.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2.
    """
    return _collect(model, requests, settings, sample_stream)


def sample_recorded_rollouts(
    model: HookedModel, requests: Sequence[RolloutRequest], settings: SamplingSettings
) -> list[Rollout]:
    """Do as :func:`sample_rollouts`, and give each rollout its pooled residual stream (``layer × d_model`` × 3)."""
    return _collect(model, requests, settings, sample_recorded_stream)


def _collect(
    model: HookedModel,
    requests: Sequence[RolloutRequest],
    settings: SamplingSettings,
    stream: Callable[..., Iterator[tuple[int, SampledResponse]]],
) -> list[Rollout]:
    tokenizer = model.tokenizer
    if not settings.stop_tokens:
        settings = replace(settings, stop_tokens=stop_token_ids(tokenizer))
    prompts: dict[tuple[str, str | None], tuple[int, ...]] = {}
    sample_requests = []
    for request in requests:
        key = (request.question, request.system)
        if key not in prompts:
            prompts[key] = encode_prompt(
                tokenizer,
                build_messages(request.question, request.system),
                n_ctx=model.cfg.n_ctx,
                reserve=settings.max_new_tokens,
            ).tokens
        sample_requests.append(SampleRequest(prompts[key], request.seed, request.interventions))
    sampled = dict(stream(model, sample_requests, settings))
    return [
        Rollout(
            request,
            tokenizer.decode(response.tokens, skip_special_tokens=True),
            response.tokens,
            response.stop_reason,
            response.residuals,
        )
        for request, response in ((request, sampled[index]) for index, request in enumerate(requests))
    ]
