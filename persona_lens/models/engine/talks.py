"""Conversations under way, answered one turn at a time, many at once."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lens.errors import ContextLengthError
from persona_lens.models.engine.prefixes import PromptMemory
from persona_lens.models.engine.requests import SampleRequest, Sampling, decode_part
from persona_lens.models.engine.sampling import sample_turn
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.text.chat import EncodedPrompt, Message, encode_prompt
from persona_lens.models.text.templates import TemplateArguments

WHOLE, CONTEXT_FULL, NO_ANSWER = "", "context full", "no answer"


class Talk:
    """A conversation under way.

    Args:
        name: For errors.
        seed: Of all its draws; the turn's index follows it.
        opening: What stands before the first turn.
    """

    def __init__(self, name: str, seed: tuple[int, ...], opening: Sequence[Message] = ()) -> None:
        self.name = name
        self.seed = seed
        self.messages: list[Message] = list(opening)
        self.responses: list[str] = []
        self.n_tokens: list[int] = []
        self.end = WHOLE

    def note(self, said: str, response: str, n_tokens: int) -> None:
        """Go on by what the user said and what was answered; end, without either, where that is nothing."""
        if not response.strip():
            self.end = NO_ANSWER
            return
        self.messages += [{"role": "user", "content": said}, {"role": "assistant", "content": response}]
        self.responses.append(response)
        self.n_tokens.append(n_tokens)


def take_turn(
    model: HookedModel,
    talks: Sequence[Talk],
    said: Sequence[str],
    turn: int,
    sampling: Sampling,
    memory: PromptMemory,
    *,
    intervention: Intervention = NOTHING,
    template_arguments: TemplateArguments | None = None,
) -> list[EncodedPrompt]:
    """Say something in each of some conversations, and note what is answered, as one batch.

    One whose turn and a response of full length would not fit the context ends there instead, by name.

    Args:
        model: HookedTransformer or TransformerBridge.
        talks: Changed; none has ended.
        said: What the user says in each.
        turn: Its index, from 0.
        sampling: How responses are drawn, with stop tokens.
        memory: Of the turn before; afterwards, of this one.
        intervention: What is done to the responses.
        template_arguments: What the chat template reads besides the messages.

    Returns:
        The prompts that were answered.
    """
    asked: list[tuple[Talk, str, EncodedPrompt]] = []
    for talk, text in zip(talks, said, strict=True):
        messages: list[Message] = [*talk.messages, {"role": "user", "content": text}]
        try:
            encoded = encode_prompt(
                model.tokenizer, messages, n_ctx=model.cfg.n_ctx, reserve=sampling.max_tokens,
                template_arguments=template_arguments,
            )  # fmt: skip
        except ContextLengthError:
            talk.end = CONTEXT_FULL
        else:
            asked.append((talk, text, encoded))
    requests = [SampleRequest(encoded.tokens, (*talk.seed, turn), intervention) for talk, _, encoded in asked]
    for index, response in sample_turn(model, requests, sampling, memory):
        talk, text, _ = asked[index]
        response.check_finite(f"{talk.name}.turns[{turn}]")
        talk.note(text, decode_part(model.tokenizer, response, sampling.judged), len(response.tokens))
    return [encoded for *_, encoded in asked]
