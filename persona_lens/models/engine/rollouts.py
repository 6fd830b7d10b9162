"""Questions asked of a model under system prompts: rollouts, as text, tokens and pooled residual streams."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from persona_lens.checking import checked
from persona_lens.errors import UnfinishedThoughtWarning
from persona_lens.models.engine.requests import ResidualMeans, SampledResponse, SampleRequest, Sampling, decode_part
from persona_lens.models.engine.sampling import sample_recorded_stream, sample_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.text.chat import EncodedPrompt, Message, build_messages, encode_prompt, warn_of_controls
from persona_lens.models.text.spans import Thought
from persona_lens.models.text.templates import TemplateArguments, freeze_arguments
from persona_lens.models.text.tokens import stop_token_ids
from persona_lens.progress_bars import Advance, show_progress


@checked
@dataclass(frozen=True, eq=False)
class RolloutRequest:
    """A question to be asked.

    Args:
        question: The user's turn.
        seed: Seeds the response's draws.
        system: System prompt; None leaves it to the chat template.
        examples: Turns between system prompt and question, as in many-shot prompting.
        intervention: What is done to the residual stream while the response is sampled.
        template_arguments: What the chat template reads besides the messages; they go before those that the model was
            loaded with.
    """

    question: str
    seed: tuple[int, ...]
    system: str | None = None
    examples: tuple[Message, ...] = ()
    intervention: Intervention = NOTHING
    template_arguments: TemplateArguments | None = None

    @property
    def messages(self) -> list[Message]:
        """The conversation up to where the assistant answers."""
        *opening, asked = build_messages(self.question, self.system)
        return [*opening, *self.examples, asked]


@checked
@dataclass(frozen=True, eq=False)
class Rollout:
    """A question with the response that was sampled.

    Args:
        request: What was asked.
        response: The response's text, without the stop token; of a model that thinks, the part that
            ``Sampling.judged`` names: the answer, which is empty where the thought does not end.
        tokens: Its token ids.
        stop_reason: ``stop`` at a stop token, ``length`` at the limit.
        residuals: Pooled residual stream, where recorded and the response is not empty.
        thought: Where the thought lies among the tokens; None for a response that is all answer.
        thought_text: The thought's text; empty without one.
    """

    request: RolloutRequest
    response: str
    tokens: tuple[int, ...]
    stop_reason: str
    residuals: ResidualMeans | None = field(default=None, repr=False)
    thought: Thought | None = None
    thought_text: str = field(default="", repr=False)

    @property
    def is_unfinished(self) -> bool:
        """Whether the thought does not end, so that there is no answer."""
        return self.thought is not None and not self.thought.is_finished


@checked
def sample_rollouts(
    model: HookedModel, requests: Sequence[RolloutRequest], sampling: Sampling, advance: Advance | None = None
) -> list[Rollout]:
    """Sample a response to each question, in the order given.

    Args:
        model: HookedTransformer or TransformerBridge with a tokenizer that has a chat template.
        requests: What to ask.
        sampling: How to sample; empty ``stop_tokens`` stand for the tokenizer's own.
        advance: Called with 1 for every response that is finished; a progress bar of its own if left out.

    Returns:
        One rollout a request.

    Raises:
        ChatTemplateError: The tokenizer has no usable chat template.
        ContextLengthError: A prompt that leaves no room for the response.
        InvalidArgumentError: A template argument that the template does not read.

    Warns:
        UnfinishedThoughtWarning: Responses without an answer, as their thoughts do not end.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2.
    """
    return _collect(model, requests, sampling, sample_stream, advance)


@checked
def sample_recorded_rollouts(
    model: HookedModel, requests: Sequence[RolloutRequest], sampling: Sampling, advance: Advance | None = None
) -> list[Rollout]:
    """Do as :func:`sample_rollouts`, and give each rollout its pooled residual stream (``layer × d_model`` × 3)."""
    return _collect(model, requests, sampling, sample_recorded_stream, advance)


def _collect(
    model: HookedModel,
    requests: Sequence[RolloutRequest],
    sampling: Sampling,
    stream: Callable[..., Iterator[tuple[int, SampledResponse]]],
    advance: Advance | None,
) -> list[Rollout]:
    if advance is None:
        with show_progress("sampling (responses)", len(requests)) as own:
            return _collect(model, requests, sampling, stream, own)
    tokenizer = model.tokenizer
    if not sampling.stop_tokens:
        sampling = replace(sampling, stop_tokens=stop_token_ids(tokenizer))
    prompts: dict[tuple[object, ...], EncodedPrompt] = {}
    sample_requests = []
    for request in requests:
        arguments = freeze_arguments(tokenizer, request.template_arguments)
        key = (request.question, request.system, arguments, *map(repr, request.examples))
        if key not in prompts:
            prompts[key] = encode_prompt(
                tokenizer, request.messages, n_ctx=model.cfg.n_ctx, reserve=sampling.max_tokens,
                template_arguments=request.template_arguments,
            )  # fmt: skip
        sample_requests.append(SampleRequest(prompts[key].tokens, request.seed, request.intervention))
    warn_of_controls(prompts.values())
    sampled: dict[int, SampledResponse] = {}
    for index, response in stream(model, sample_requests, sampling):
        response.check_finite(f"requests[{index}]")
        sampled[index] = response
        advance(1)
    rollouts = []
    for index, request in enumerate(requests):
        one = sampled[index]
        text, thought = (decode_part(tokenizer, one, part) for part in (sampling.judged, "thought"))
        rollouts.append(Rollout(request, text, one.tokens, one.stop_reason, one.residuals, one.thought, thought))
    warn_of_unfinished(sampled.values(), sampling.max_tokens)
    return rollouts


def warn_of_unfinished(responses: Collection[SampledResponse], max_tokens: int) -> None:
    """Say, once for all, how many responses are unfinished thoughts.

    Args:
        responses: What was sampled for the caller's caller.
        max_tokens: Most tokens that each could have.

    Warns:
        UnfinishedThoughtWarning: There are such responses.
    """
    if n_unfinished := sum(one.is_unfinished for one in responses):
        warnings.warn(
            f"{n_unfinished} of {len(responses)} responses are thoughts that do not end within {max_tokens} tokens: "
            "they hold no answer. Raise max_thought_tokens, or see template_arguments such as enable_thinking.",
            UnfinishedThoughtWarning,
            stacklevel=4,
        )
