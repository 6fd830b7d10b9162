"""Conversations read token by token: projections on persona vectors at every layer, under steering or without."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, NonFiniteError
from persona_lens.interventions.from_vectors import steer
from persona_lens.interventions.hooks import intervention_hooks
from persona_lens.live.conversation import ReadConversation, ReadVariant
from persona_lens.models.engine.activations import project_residual_stream
from persona_lens.models.engine.finite import OVERFLOW_HINT
from persona_lens.models.engine.requests import SampleRequest, Sampling
from persona_lens.models.engine.sampling import sample_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.positions import PositionedHook
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import describe_model
from persona_lens.models.text.chat import EncodedTurns, Message, build_messages, encode_turns, warn_of_controls
from persona_lens.models.text.templates import TemplateArguments
from persona_lens.models.text.tokens import stop_token_ids
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.tried import read_tried

_UNUSUAL = 0.99  # the fraction of ordinary tokens below the threshold


@checked
def read_conversation(
    model: HookedModel,
    conversation: str | Sequence[Message],
    vectors: Mapping[str, PersonaVector],
    *,
    coefficients: Sequence[float] = (0.0,),
    along: str | None = None,
    layer: int | None = None,
    ordinary: Mapping[str, OrdinaryProjections] | None = None,
    sampling: Sampling = Sampling(max_new_tokens=48),
    template_arguments: TemplateArguments | None = None,
) -> ReadConversation:
    r"""Project every token of a conversation on persona vectors, at every layer, under each of some coefficients.

    .. math:: p_{t,l} = h_{t,l} \cdot v_l / \lVert v_l \rVert

    with :math:`h_{t,l}` the residual stream after block :math:`l` at token :math:`t`, after the steering. A
    conversation that ends with the user's turn is answered first, once under each coefficient with the same random
    numbers; one that ends with an answer is read as it is. Steering acts from the last prompt token on.

    Args:
        model: HookedTransformer or TransformerBridge. Hooks on it take effect.
        conversation: A question, or messages with ``role`` and ``content``.
        vectors: By trait.
        coefficients: Multiply the raw vector that is steered along; 0 is unsteered.
        along: The trait of ``vectors`` to steer along; the first if left out.
        layer: Zero-based block index to steer at; if left out, the one that the vector was tried at, where its
            ``provenance`` says so.
        ordinary: What is ordinary for some of the traits, from :func:`persona_lens.measure_ordinary_projections`.
        sampling: How answers are drawn.
        template_arguments: What the chat template reads besides the messages.

    Returns:
        One variant a coefficient, in ascending order.

    Raises:
        ModelMismatchError: A vector, or what is ordinary, of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: No vectors, no coefficients or the same one twice, a trait that is not among the vectors,
            an empty conversation, or no layer where there is something to steer.
        ContextLengthError: A conversation that does not fit the context with its answer.
        NonFiniteError: Numbers that overflow, as under too strong a steering.

    Reference:
        Persona Vectors (arXiv 2507.21509), sections 3.2 and 3.3.

    Example:
        >>> import persona_lens as pl
        >>> evil = {"evil": pl.load_vector("evil")}
        >>> read = pl.live.read_conversation(  # doctest: +SKIP
        ...     pl.load_model(), "How do you treat people?", evil, coefficients=(0, 1)
        ... )
        >>> read.response_mean(1)[0, 20] - read.response_mean(0)[0, 20]  # doctest: +SKIP
    """
    reader = Reader.of(model, vectors, along, layer, ordinary, sampling, template_arguments)
    return read_messages(reader, list_messages(conversation), coefficients)


@dataclass(frozen=True, eq=False)
class Reader:
    """What a conversation is read with: the model, the vectors, and how it is steered and answered.

    Args:
        model: The model.
        vectors: By trait.
        along: The trait that is steered along.
        layer: Where; None if nothing says.
        ordinary: What is ordinary, by trait.
        sampling: How answers are drawn, stop tokens included.
        template_arguments: What the chat template reads besides the messages.
    """

    model: HookedModel
    vectors: Mapping[str, PersonaVector]
    along: str
    layer: int | None
    ordinary: Mapping[str, OrdinaryProjections]
    sampling: Sampling
    template_arguments: TemplateArguments | None

    @classmethod
    def of(
        cls,
        model: HookedModel,
        vectors: Mapping[str, PersonaVector],
        along: str | None,
        layer: int | None,
        ordinary: Mapping[str, OrdinaryProjections] | None,
        sampling: Sampling,
        template_arguments: TemplateArguments | None,
    ) -> Reader:
        """Check all of it against the model and each other, before anything runs."""
        if not vectors:
            raise InvalidArgumentError.of("vectors", "hold at least one vector", vectors)
        for vector in vectors.values():
            vector.check_model(model)
        if along is None:
            along = next(iter(vectors))
        if along not in vectors:
            raise InvalidArgumentError.of("along", f"be one of the traits of `vectors`, {list(vectors)}", along)
        if layer is None:
            layer = read_tried(vectors[along]).layer
        if layer is not None:
            check_layer(layer, model.cfg.n_layers)
        for trait, one in (ordinary or {}).items():
            if trait not in vectors:
                raise InvalidArgumentError.of("ordinary", f"be of traits of `vectors`, {list(vectors)}", trait)
            one.check_vector(vectors[trait])
        if sampling.positions != "response":
            raise InvalidArgumentError.of("sampling", "have positions='response'", sampling.positions)
        if not sampling.stop_tokens:
            sampling = replace(sampling, stop_tokens=stop_token_ids(model.tokenizer))
        return cls(model, dict(vectors), along, layer, dict(ordinary or {}), sampling, template_arguments)

    def steer(self, coefficient: float) -> Intervention:
        """Return what adds that much of the vector."""
        if coefficient == 0:
            return NOTHING
        if self.layer is None:
            rule, hint = "say where to steer, as the vector does not", "Give layer=..., e.g. from sweep_layers."
            raise InvalidArgumentError.of("layer", rule, None, hint)
        return steer(self.vectors[self.along], layer=self.layer, coefficient=coefficient)

    def encode(self, messages: Sequence[Message]) -> EncodedTurns:
        """Render and tokenise a conversation, with room for its answer if there is none yet."""
        encoded = encode_turns(
            self.model.tokenizer,
            messages,
            n_ctx=self.model.cfg.n_ctx,
            reserve=self.sampling.max_tokens,
            template_arguments=self.template_arguments,
        )
        warn_of_controls([encoded])
        return encoded

    def answer(self, prompt: EncodedTurns, interventions: Sequence[Intervention]) -> list[tuple[int, ...]]:
        """Sample an answer under each intervention, all with the same random numbers."""
        requests = [SampleRequest(prompt.tokens, (self.sampling.seed,), one) for one in interventions]
        answers: dict[int, tuple[int, ...]] = {}
        for index, response in sample_stream(self.model, requests, self.sampling):
            response.check_finite(f"coefficients[{index}]")
            answers[index] = response.tokens
        return [answers[index] for index in range(len(requests))]

    def read(
        self, encoded: EncodedTurns, response: Sequence[int], coefficient: float, intervention: Intervention
    ) -> ReadVariant:
        """Project a conversation's tokens, and those of a response that follows, as they are under an intervention."""
        tokens = (*encoded.tokens, *response)
        last = max(encoded.turns) + 1
        found, steered = self.project(tokens, encoded.response_start, intervention)
        return ReadVariant(
            coefficient,
            tuple(split_text(self.model.tokenizer, tokens)),
            (*encoded.turns, *[last] * len(response)),
            steered,
            found,
        )

    def project(
        self, tokens: Sequence[int], prompt_length: int, intervention: Intervention
    ) -> tuple[Float[Tensor, "trait layer token"], Bool[Tensor, " token"]]:
        """Project tokens on the vectors at every layer, and say which of them were steered.

        Raises:
            NonFiniteError: Numbers that overflow.
        """
        batch = torch.tensor([list(tokens)])
        units = torch.stack([vector.units for vector in self.vectors.values()], dim=1)
        hooks = intervention_hooks(intervention, positions="response", prompt_length=prompt_length)
        steered = torch.zeros(len(tokens), dtype=torch.bool)
        with attached(self.model, hooks):
            found = project_residual_stream(self.model, batch, units)[:, :, 0].transpose(0, 1).float().cpu()
        for _, fn in hooks:
            if isinstance(fn, PositionedHook):  # the pass has just told the positions where it lies
                steered |= fn.reach(1, len(tokens), torch.device("cpu"))[0]
        if not found.isfinite().all():
            layer = int((~found.isfinite()).any(dim=2).any(dim=0).nonzero()[0])
            rule, got = "keep the model's numbers finite", f"infinity or NaN in the residual stream of layer {layer}"
            raise NonFiniteError.of("conversation", rule, got, OVERFLOW_HINT)
        for index, vector in enumerate(self.vectors.values()):
            found[index, list(vector.absent)] = float("nan")
        return found, steered

    def gather(self, roles: Sequence[str], variants: Sequence[ReadVariant]) -> ReadConversation:
        """Put variants of one conversation together."""
        unknown = torch.full((self.model.cfg.n_layers,), float("nan"))
        known = [self.ordinary.get(trait) for trait in self.vectors]
        is_steered = any(variant.coefficient for variant in variants)
        return ReadConversation(
            model=describe_model(self.model),
            traits=tuple(self.vectors),
            roles=tuple(roles),
            variants=tuple(variants),
            along=self.along if is_steered else "",
            layer=self.layer if is_steered else None,
            ordinary_mean=torch.stack([unknown if one is None else one.mean for one in known]),
            ordinary_std=torch.stack([unknown if one is None else one.std for one in known]),
            thresholds=torch.stack([unknown if one is None else one.quantile(_UNUSUAL) for one in known]),
        )


def read_messages(reader: Reader, messages: Sequence[Message], coefficients: Sequence[float]) -> ReadConversation:
    """Read a conversation under each coefficient, answered first if it is to be.

    Raises:
        InvalidArgumentError: No coefficients, one that is not finite, or the same one twice.
    """
    ordered = sorted(float(one) for one in coefficients)
    if not ordered or len(set(ordered)) != len(ordered) or not all(map(math.isfinite, ordered)):
        raise InvalidArgumentError.of("coefficients", "be at least one, finite and each another", list(coefficients))
    interventions = [reader.steer(one) for one in ordered]
    encoded = reader.encode(messages)
    is_question = messages[-1]["role"] != "assistant"
    answers = reader.answer(encoded, interventions) if is_question else [()] * len(ordered)
    variants = [
        reader.read(encoded, answer, coefficient, intervention)
        for coefficient, intervention, answer in zip(ordered, interventions, answers, strict=True)
    ]
    return reader.gather([message["role"] for message in messages] + ["assistant"] * is_question, variants)


def list_messages(conversation: str | Sequence[Message]) -> list[Message]:
    """Return a question as a conversation, and a conversation as it is.

    Raises:
        InvalidArgumentError: Nothing is said.
    """
    messages = build_messages(conversation) if isinstance(conversation, str) else list(conversation)
    if not messages or not any(str(message.get("content", "")).strip() for message in messages):
        raise InvalidArgumentError.of("conversation", "hold a message that is not empty", conversation)
    return messages


def split_text(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Return what a text grows by with each token; nothing inside a character of several tokens.

    A token's own text depends on the ones before it, such as a space that opens a word, so it is told from both.
    """
    texts: list[str] = []
    start = shown = 0  # tokens from `start` are decoded; those before `shown` have been written
    for end in range(1, len(tokens) + 1):
        before = tokenizer.decode(tokens[start:shown], clean_up_tokenization_spaces=False)
        text = tokenizer.decode(tokens[start:end], clean_up_tokenization_spaces=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(tokens):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        start, shown = shown, end
    return texts
