"""What is asked of sampling and what comes of it: values alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, NonFiniteError
from persona_lens.models.engine.finite import OVERFLOW_HINT
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.hooks.positions import SamplingPositions
from persona_lens.models.text.spans import Part, Thought, find_part

# What Sampling says of thoughts, with its usual values.
_ABOUT_THOUGHTS = {"pooled": "answer", "judged": "answer", "max_thought_tokens": 0}


@checked
@dataclass(frozen=True, eq=False)
class SampleRequest:
    """One response to sample.

    Args:
        prompt: Token ids of the whole rendered prompt.
        seed: Seeds the row's draws; rows with equal seeds see equal random numbers, whatever their batch.
        intervention: What is done to this row's residual stream.
    """

    prompt: tuple[int, ...]
    seed: tuple[int, ...]
    intervention: Intervention = NOTHING


@checked
@dataclass(frozen=True, eq=False)
class ResidualMeans:
    """A response's residual stream at every layer, pooled in float32, after the row's interventions.

    Args:
        response_mean: Mean over the response's tokens, or those of the part of it that was asked for.
        prompt_mean: Mean over the prompt's tokens.
        last_prompt: The prompt's last token.
    """

    response_mean: Float[Tensor, "layer d_model"]
    prompt_mean: Float[Tensor, "layer d_model"]
    last_prompt: Float[Tensor, "layer d_model"]


@checked
@dataclass(frozen=True, eq=False)
class SampledResponse:
    """One sampled response.

    Args:
        tokens: Token ids, without the stop token.
        stop_reason: ``stop`` at a stop token, ``length`` at ``max_new_tokens``; ``not finite`` where the logits of the
            next token are infinite or no numbers.
        residuals: Pooled residual stream; None unless recorded, if the response is empty or its numbers not finite.
        broken_layer: The first layer that is not finite, where ``stop_reason`` says so; None for the unembedding.
        thought: Where its thought lies, counted from its first token; None for a response that is all answer.
    """

    tokens: tuple[int, ...]
    stop_reason: Literal["stop", "length", "not finite"]
    residuals: ResidualMeans | None = field(default=None, repr=False)
    broken_layer: int | None = None
    thought: Thought | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether its thought does not end, so that there is no answer."""
        return self.thought is not None and not self.thought.is_finished

    def check_finite(self, name: str) -> None:
        """Raise if its numbers are not finite.

        Raises:
            NonFiniteError: Names the request, the token and the layer.
        """
        if self.stop_reason == "not finite":
            where = "the logits" if self.broken_layer is None else f"the residual stream of layer {self.broken_layer}"
            rule = "keep the model's numbers finite"
            got = f"infinity or NaN in {where}, before response token {len(self.tokens)}"
            raise NonFiniteError.of(name, rule, got, OVERFLOW_HINT)


def decode_part(tokenizer: Any, response: SampledResponse, part: Part) -> str:
    """Return the text of a part of a response, without control tokens; of both parts without the markers between them.

    Args:
        tokenizer: The model's.
        response: What was sampled.
        part: Which.
    """
    if part == "response" and response.thought is not None:
        both = (decode_part(tokenizer, response, "thought"), decode_part(tokenizer, response, "answer"))
        return "\n\n".join(filter(None, both))
    start, end = find_part(part, 0, len(response.tokens), response.thought)
    text: str = tokenizer.decode(response.tokens[start:end], skip_special_tokens=True)
    return text


@checked
@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Args:
        max_new_tokens: Most tokens a response may have; the paper's is 1,000.
        temperature: Divides the logits; 0 is greedy, else at least 0.0001; the paper's is 1.
        top_p: Smallest set of tokens with this probability mass is kept; 1 keeps all.
        rollouts: Responses to each question under each condition; the paper's is 10.
        seed: Of all draws. Functions that are given requests take the requests' own seeds, and one response each.
        batch_size: Rows computed at once.
        positions: Where interventions act. ``thought`` and ``answer`` part the ``response`` of a model that thinks: its
            answer begins with the last token of the marker that closes the thought. Until a prompt or a response's
            first tokens say otherwise, such a model is taken to think.
        stop_tokens: Ids that end a response; empty stands for the tokenizer's own, where there is one.
        pooled: Which part of a response recorded means are over.
        judged: Which part of it is a rollout's text, and so is judged.
        max_thought_tokens: Tokens that a thought may take besides ``max_new_tokens``, so that an answer has its own.

    Raises:
        InvalidArgumentError: A value out of range.

    Example:
        >>> Sampling(max_new_tokens=24, temperature=0.7).rollouts
        1
    """

    max_new_tokens: int = 48
    temperature: float = 1.0
    top_p: float = 1.0
    rollouts: int = 1
    seed: int = 0
    batch_size: int = 128
    positions: SamplingPositions = "response"
    stop_tokens: frozenset[int] = field(default_factory=frozenset)
    pooled: Part = "answer"
    judged: Part = "answer"
    max_thought_tokens: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", "be at least 1", self.max_new_tokens >= 1),
            # Divided by less, logits would overflow float32.
            (
                "temperature",
                "be 0, which is greedy, or finite and at least 0.0001",
                self.temperature == 0 or 1e-4 <= self.temperature < float("inf"),
            ),
            ("top_p", "be in (0, 1]", 0 < self.top_p <= 1),
            ("rollouts", "be at least 1", self.rollouts >= 1),
            ("seed", "be at least 0", self.seed >= 0),
            ("batch_size", "be at least 1", self.batch_size >= 1),
            ("max_thought_tokens", "be at least 0", self.max_thought_tokens >= 0),
        )
        for name, rule, holds in rules:
            if not holds:
                raise InvalidArgumentError.of(name, rule, getattr(self, name))

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON-able ones; those about thoughts where they are not the usual ones."""
        values = asdict(self) | {"stop_tokens": sorted(self.stop_tokens)}
        about_thoughts = self.describe_thoughts()
        # Left out where they are usual, so that what was kept before there were any is still found.
        return {k: v for k, v in values.items() if k not in _ABOUT_THOUGHTS or k in about_thoughts}

    def describe_thoughts(self) -> dict[str, Any]:
        """Return what is asked of thoughts beyond the usual, by name."""
        return {name: getattr(self, name) for name, usual in _ABOUT_THOUGHTS.items() if getattr(self, name) != usual}

    @property
    def max_tokens(self) -> int:
        """Most tokens of a response, thought and answer together."""
        return self.max_new_tokens + self.max_thought_tokens
