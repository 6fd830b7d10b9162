"""What is ordinary while a response is given: projections of its tokens, and of its running mean."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.activations import project_residual_stream
from persona_lens.models.engine.requests import SampledResponse, SampleRequest, Sampling
from persona_lens.models.engine.sampling import sample_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.text.chat import Message, encode_prompt
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.templates import TemplateArguments
from persona_lens.models.text.tokens import stop_token_ids
from persona_lens.monitoring.prompts import spread_units
from persona_lens.progress_bars import show_progress
from persona_lens.records import Record
from persona_lens.streams import Stream

# A mean of fewer tokens is hardly more than the last one.
_N_FIRST = 8
_N_KEPT = 1001
_TOKENS_AT_ONCE = 2048


@checked
@dataclass(frozen=True, eq=False)
class OrdinaryResponses(Record):
    """How one trait's projections lie in ordinary responses of the model.

    A response is judged while it grows, many times over. So that all of these together raise an alarm in ``1 - q`` of
    the ordinary responses of at least ``n_first`` tokens, the threshold is the quantile ``q`` of their highest running
    means. Shorter ones raise none, so that of all ordinary responses fewer do.

    Args:
        tokens: Projections of single tokens, ascending: evenly spaced quantiles of all that were read.
        peaks: Each response's highest running mean, from its token ``n_first`` on; ascending.
        n_first: Tokens over which a running mean is taken at least.
        max_new_tokens: Most tokens of a response. Longer ones exceed the thresholds more often.
        n_tokens: Tokens read.
        n_short: Responses of fewer than ``n_first`` tokens, which never raise an alarm, have no peak and count in no
            threshold or rank.
        means: The mean projection of each response that has a peak, over all of its tokens; ascending. Empty if it was
            measured before these were kept.
    """

    tokens: tuple[float, ...]
    peaks: tuple[float, ...]
    n_first: int
    max_new_tokens: int
    n_tokens: int
    n_short: int = 0
    means: tuple[float, ...] = ()

    def rank_token(self, projection: float) -> float:
        """Return the fraction of ordinary tokens with a lower projection."""
        return bisect_left(self.tokens, projection) / len(self.tokens)

    def rank_mean(self, mean: float) -> float:
        """Return the fraction of ordinary responses, of those with a peak, whose running mean never rises so high."""
        return bisect_left(self.peaks, mean) / len(self.peaks)

    def rank_response(self, mean: float) -> float:
        """Return the fraction of ordinary responses, of those with a peak, whose mean over all tokens is lower.

        Raises:
            InvalidArgumentError: No ``means`` were kept, or a mean that is not a number.
        """
        if math.isnan(mean):
            raise InvalidArgumentError.of("mean", "be a number", mean)
        if not self.means:
            rule = "hold ordinary responses' mean projections"
            raise InvalidArgumentError.of("means", rule, self.means, "Calibrate the monitor anew.")
        return bisect_left(self.means, mean) / len(self.means)

    def list_thresholds(self, quantiles: Sequence[float]) -> tuple[float, ...]:
        """Return the running means that a fraction ``q`` of the ordinary responses with a peak never exceeds.

        Raises:
            InvalidArgumentError: A quantile outside [0, 1].
        """
        if not all(0 <= q <= 1 for q in quantiles):
            raise InvalidArgumentError.of("quantiles", "be in [0, 1]", quantiles)
        return tuple(float(q) for q in np.quantile(self.peaks, quantiles))


def measure_ordinary_responses(
    model: HookedModel,
    prompts: Sequence[Sequence[Message]],
    units: Float[Tensor, "direction d_model"],
    layers: Sequence[int],
    sampling: Sampling,
    seed: int,
    template_arguments: TemplateArguments | None = None,
) -> list[OrdinaryResponses]:
    """Let a model answer ordinary prompts, and measure its tokens' projections on each direction at its layer."""
    read = read_sampled_responses(
        model, prompts, units, layers, sampling, (seed, Stream.ORDINARY_RESPONSES),
        template_arguments=template_arguments,
    )  # fmt: skip
    return [summarize_responses([one[index] for one in read], sampling) for index in range(len(units))]


def read_sampled_responses(
    model: HookedModel,
    prompts: Sequence[Sequence[Message]],
    units: Float[Tensor, "direction d_model"],
    layers: Sequence[int],
    sampling: Sampling,
    seed: tuple[int, ...],
    intervention: Intervention = NOTHING,
    template_arguments: TemplateArguments | None = None,
) -> list[Float[ndarray, "direction token"]]:
    """Sample ``sampling.rollouts`` responses to each prompt, and read their texts; prompt by prompt.

    Args:
        model: HookedTransformer or TransformerBridge.
        prompts: Conversations that await an answer.
        units: Unit vectors.
        layers: At which each is read.
        sampling: How the responses are drawn.
        seed: Of all draws; the prompt's and the rollout's index follow it.
        intervention: What is done while they are drawn; nothing is done while they are read.
        template_arguments: What the chat template reads besides the messages.
    """
    stops = sampling.stop_tokens or stop_token_ids(model.tokenizer)
    prompted = partial(
        encode_prompt, model.tokenizer, n_ctx=model.cfg.n_ctx, reserve=sampling.max_tokens,
        template_arguments=template_arguments,
    )  # fmt: skip
    encoded = [prompted(list(one)).tokens for one in prompts]
    requests = [
        SampleRequest(prompt, (*seed, index, rollout), intervention)
        for index, prompt in enumerate(encoded)
        for rollout in range(sampling.rollouts)
    ]
    sampled: dict[int, SampledResponse] = {}
    with show_progress("sampling (responses)", len(requests)) as advance:
        for index, response in sample_stream(model, requests, replace(sampling, stop_tokens=stops)):
            response.check_finite(f"prompts[{index // sampling.rollouts}]")
            sampled[index] = response
            advance(1)
    return read_responses(model, [(one.prompt, sampled[i].tokens) for i, one in enumerate(requests)], units, layers)


def read_responses(
    model: HookedModel,
    texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    units: Float[Tensor, "direction d_model"],
    layers: Sequence[int],
) -> list[Float[ndarray, "direction token"]]:
    """Project the tokens of responses behind their prompts."""
    everywhere = spread_units(units, layers, model.cfg.n_layers)
    found: list[ndarray] = [np.zeros((len(units), 0))] * len(texts)
    waiting = sorted((i for i, text in enumerate(texts) if text[1]), key=lambda i: sum(map(len, texts[i])))
    while waiting:
        size = 1
        while size < len(waiting) and (size + 1) * sum(map(len, texts[waiting[size]])) <= _TOKENS_AT_ONCE:
            size += 1
        batch, waiting = waiting[:size], waiting[size:]
        padded = pad_right([texts[i][0] + texts[i][1] for i in batch])
        read = project_residual_stream(model, padded.tokens, everywhere, is_padding=padded.is_padding).cpu()
        own = torch.stack([read[layer, direction] for direction, layer in enumerate(layers)])
        for row, index in enumerate(batch):
            start, n_tokens = map(len, texts[index])
            found[index] = own[:, row, start : start + n_tokens].double().numpy()
    return found


def summarize_responses(responses: Sequence[ndarray], sampling: Sampling) -> OrdinaryResponses:
    """Return what is ordinary, of the projections of some responses' tokens on one direction."""
    long = [run_mean(one) for one in responses if len(one) >= _N_FIRST]
    peaks = sorted(float(one[_N_FIRST - 1 :].max()) for one in long)
    if not peaks:
        rule = f"hold one of at least {_N_FIRST} tokens among the answers to the ordinary conversations"
        hint = "Give other conversations as `ordinary`; responses=None does without thresholds for responses."
        raise InvalidArgumentError.of("responses", rule, sampling, hint)
    tokens = np.concatenate(responses)
    kept = np.quantile(tokens, np.linspace(0, 1, min(_N_KEPT, len(tokens))))
    return OrdinaryResponses(
        tokens=tuple(kept.tolist()),
        peaks=tuple(peaks),
        n_first=_N_FIRST,
        max_new_tokens=sampling.max_tokens,
        n_tokens=len(tokens),
        n_short=len(responses) - len(peaks),
        means=tuple(sorted(float(one[-1]) for one in long)),
    )


def run_mean(projections: Float[ndarray, " token"]) -> Float[ndarray, " token"]:
    """Return the mean of the tokens up to each of them."""
    mean: ndarray = np.cumsum(projections) / np.arange(1, len(projections) + 1)
    return mean
