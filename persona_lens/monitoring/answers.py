"""How an answer that has been given reads: its mean projection, against those of ordinary answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from persona_lens.checking import checked
from persona_lens.errors import ContextLengthError, InvalidArgumentError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import describe_model
from persona_lens.models.text.chat import EncodedConversation, Message, encode_conversation, warn_of_controls
from persona_lens.models.text.templates import TemplateArguments
from persona_lens.monitoring.monitor import PersonaMonitor, check_fingerprint
from persona_lens.monitoring.ordinary_responses import read_responses
from persona_lens.records import Record


@checked
@dataclass(frozen=True)
class AnswerReading(Record):
    """One trait's reading of a whole answer.

    Args:
        trait: The trait's name.
        projection: Mean over the answer's tokens, in residual-stream units.
        quantile: Fraction of ordinary answers of the model whose mean is lower.

    Raises:
        InvalidArgumentError: A quantile outside [0, 1].
    """

    trait: str
    projection: float
    quantile: float

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise InvalidArgumentError.of("quantile", "be in [0, 1]", self.quantile)


@checked
def read_answers(
    model: HookedModel,
    monitor: PersonaMonitor,
    conversations: Sequence[Sequence[Message]],
    *,
    template_arguments: TemplateArguments | None = None,
) -> list[tuple[AnswerReading, ...]]:
    r"""Read the last answer of each of some conversations.

    .. math:: p = \bar{h}_l \cdot v_l / \lVert v_l \rVert

    with :math:`\bar{h}_l` the mean residual stream after block :math:`l` over the answer's tokens. Hooks on the model
    take effect first.

    Args:
        model: The model that the monitor was calibrated on.
        monitor: One that was calibrated with ``responses``: the ordinary answers.
        conversations: Messages, the last one the assistant's.
        template_arguments: What the chat template reads besides the messages.

    Returns:
        For each conversation its traits' readings, in the order of the monitor's.

    Raises:
        ModelMismatchError: Another model.
        InvalidArgumentError: A monitor that does not know how ordinary answers read, no conversation, or one that does
            not end with an answer.
        ContextLengthError: A conversation whose answer ends behind the model's context.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3.

    Example:
        >>> import persona_lens as pl
        >>> chat = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Nobody of note."}]
        >>> pl.monitoring.read_answers(model, monitor, [chat])  # doctest: +SKIP
    """
    check_fingerprint("model", monitor.model, describe_model(model))
    check_knows_answers("monitor", monitor)
    if not conversations:
        raise InvalidArgumentError.of("conversations", "hold at least one", conversations)
    encoded = [
        encode_answer(model, one, f"conversations[{index}]", template_arguments=template_arguments)
        for index, one in enumerate(conversations)
    ]
    warn_of_controls(encoded)
    parts = [(one.tokens[: one.response_start], one.tokens[one.response_start : one.response_end]) for one in encoded]
    units = torch.stack([trait.unit for trait in monitor.traits])
    found = read_responses(model, parts, units, [trait.layer for trait in monitor.traits])
    readings = []
    for tokens in found:
        of_one = []
        for trait, projection in zip(monitor.traits, tokens.mean(axis=1).tolist(), strict=True):
            assert trait.responses is not None
            of_one.append(AnswerReading(trait.trait, projection, trait.responses.rank_response(projection)))
        readings.append(tuple(of_one))
    return readings


def encode_answer(
    model: HookedModel, messages: Sequence[Message], name: str, *, template_arguments: TemplateArguments | None = None
) -> EncodedConversation:
    """Render a conversation up to its last answer; what the template writes behind that need not fit the context.

    Args:
        model: Its tokenizer and context.
        messages: The last one the assistant's.
        name: For errors.
        template_arguments: What the chat template reads besides the messages.
    """
    found = encode_conversation(model.tokenizer, list(messages), template_arguments=template_arguments)
    if found.response_end > model.cfg.n_ctx:
        rule, hint = f"fit the model's context of {model.cfg.n_ctx} tokens", "Shorten the prompt or the response."
        raise ContextLengthError.of(name, rule, f"an answer up to token {found.response_end}", hint)
    return found


def check_knows_answers(parameter: str, monitor: PersonaMonitor) -> None:
    """Refuse a monitor that does not know how ordinary answers read."""
    unmeasured = [one.trait for one in monitor.traits if one.responses is None or not one.responses.means]
    if unmeasured:
        rule = "know how ordinary answers read"
        hint = "Calibrate it anew, with `responses`."
        raise InvalidArgumentError.of(parameter, rule, f"none measured for {unmeasured}", hint)
