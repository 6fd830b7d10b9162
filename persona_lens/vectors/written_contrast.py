"""Written answers in pairs, as a model is to read them: one with a trait and one without, to each question."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.text.chat import Message, build_messages, encode_conversation, warn_of_controls
from persona_lens.models.text.spans import TokenSpans
from persona_lens.traits.written import Kind, WrittenExample, list_texts


def list_answers(examples: Sequence[WrittenExample], against: Kind) -> list[list[Message]]:
    """Return conversations by turns: a question with its overt answer, and with the other.

    Raises:
        InvalidArgumentError: Fewer than two examples, one without that other answer, or overt answers against
            themselves.
    """
    if len(examples) < 2:
        raise InvalidArgumentError.of("examples", "be at least 2", len(examples))
    if against == "overt":
        raise InvalidArgumentError.of("against", "be another kind of answer than 'overt'", against)
    return [
        [*build_messages(one.question), Message(role="assistant", content=text)]
        for one, other in zip(examples, list_texts(examples, against), strict=True)
        for text in (one.overt, other)
    ]


def encode_answers(model: HookedModel, examples: Sequence[WrittenExample], against: Kind) -> list[TokenSpans]:
    """Return the same as token ids with the answers' spans.

    Raises:
        InvalidArgumentError: Fewer than two examples, one without such an answer, or overt answers against
            themselves.
        ContextLengthError: An answer that is longer than the model's context.
        HooksPresentError: The model carries hooks.
    """
    answers = list_answers(examples, against)
    check_unsteered(model)
    conversations = [encode_conversation(model.tokenizer, one, n_ctx=model.cfg.n_ctx) for one in answers]
    warn_of_controls(conversations)
    return list(conversations)
