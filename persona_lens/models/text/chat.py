"""Chat templates: conversations in, token ids and exact response spans out, from one tokenisation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import jinja2

from persona_lens.errors import ChatTemplateError, ContextLengthError, InvalidArgumentError, SystemRoleMergedWarning
from persona_lens.models.text.spans import TokenSpans

# Tokens that end an assistant's turn in common templates; only those in the vocabulary are used.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class EncodedPrompt:
    """A rendered prompt, ready to be answered.

    Args:
        text: What the chat template rendered.
        tokens: Its token ids.
    """

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class EncodedConversation(TokenSpans):
    """A rendered conversation whose last message is the response, and the text that the chat template rendered."""

    text: str


@dataclass(frozen=True)
class EncodedResponses:
    """A rendered conversation and the places of the assistant's responses.

    Args:
        text: What the chat template rendered.
        tokens: Its token ids.
        responses: For each response its first token, and one past its last; end-of-turn tokens are outside.
    """

    text: str
    tokens: tuple[int, ...]
    responses: tuple[tuple[int, int], ...]


def build_messages(question: str, system: str | None = None) -> list[Message]:
    """Return a one-turn conversation.

    Example:
        >>> build_messages("Hello?", "You are kind.")
        [{'role': 'system', 'content': 'You are kind.'}, {'role': 'user', 'content': 'Hello?'}]
    """
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": question}]


def encode_prompt(
    tokenizer: Any, messages: Sequence[Message], *, n_ctx: int | None = None, reserve: int = 0
) -> EncodedPrompt:
    """Render a conversation up to where the assistant answers, and tokenise it.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        messages: The conversation, ending with a user's turn.
        n_ctx: The model's context in tokens; None checks no length.
        reserve: Tokens to keep free for the response.

    Raises:
        ChatTemplateError: No chat template, or one that cannot render this conversation.
        ContextLengthError: The prompt and the reserve exceed the context.

    Warns:
        SystemRoleMergedWarning: The template has no system role; the system prompt went into the user's turn.
    """
    text = _render(tokenizer, messages, add_generation_prompt=True)
    # A chat template is complete: whether a BOS token begins the text is for it to say.
    tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    _check_length(len(tokens), n_ctx, reserve)
    return EncodedPrompt(text, tokens)


def encode_conversation(
    tokenizer: Any, messages: Sequence[Message], *, n_ctx: int | None = None
) -> EncodedConversation:
    """Render a conversation that ends with the assistant's response, and find the response's tokens.

    The span comes from the character offsets of one tokenisation; nothing is tokenised apart and measured.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        messages: The conversation; the last message is the response.
        n_ctx: The model's context in tokens; None checks no length.

    Raises:
        InvalidArgumentError: The last message is not the assistant's, or is empty.
        ChatTemplateError: The template drops or rewrites the response, so that it cannot be found.
        ContextLengthError: The conversation exceeds the context.
    """
    if not messages or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        rule = "end with a non-empty assistant message"
        raise InvalidArgumentError.of("messages", rule, list(messages)[-1:])
    turns = _encode_responses(tokenizer, messages, [len(messages) - 1], n_ctx)
    return EncodedConversation(turns.tokens, *turns.responses[0], turns.text)


def encode_responses(tokenizer: Any, messages: Sequence[Message], *, n_ctx: int | None = None) -> EncodedResponses:
    """Render a conversation of one or several turns, and find the tokens of each of the assistant's responses.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        messages: The conversation; every assistant message holds text.
        n_ctx: The model's context in tokens; None checks no length.

    Raises:
        InvalidArgumentError: No assistant message, or an empty one.
        ChatTemplateError: The template drops or rewrites a response, so that it cannot be found.
        ContextLengthError: The conversation exceeds the context.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns or not all(messages[index]["content"].strip() for index in turns):
        rule = "hold assistant messages, none of them empty"
        raise InvalidArgumentError.of("messages", rule, list(messages)[-1:])
    return _encode_responses(tokenizer, messages, turns, n_ctx)


def _encode_responses(
    tokenizer: Any, messages: Sequence[Message], turns: Sequence[int], n_ctx: int | None
) -> EncodedResponses:
    text = _render(tokenizer, messages, add_generation_prompt=False)
    places = []
    for turn in turns:
        content = messages[turn]["content"]
        # A response with another first letter: the renderings differ from where the response begins. Not from the
        # generation prompt's end, which may open a thought that the finished text does not have.
        other: Message = {"role": "assistant", "content": "y" if content.lstrip().startswith("x") else "x"}
        start = _count_shared(
            text, _render(tokenizer, [*messages[:turn], other, *messages[turn + 1 :]], add_generation_prompt=False)
        )
        if not text.startswith(content, start):  # a few templates strip the response's outer whitespace
            content = content.strip()
        if not text.startswith(content, start):
            rule = "have a chat template that renders a response as it is"
            raise ChatTemplateError.of("tokenizer", rule, text[-200:], "See its chat_template.")
        places.append((start, start + len(content)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, offsets = encoded["input_ids"], encoded["offset_mapping"]
    spans = []
    for start, end in places:
        # A token belongs to a response if any of its characters do; a token of no characters (BOS) never does.
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
        if not inside:
            rule = "give offsets for the response's tokens"
            raise ChatTemplateError.of("tokenizer", rule, text[start:end])
        spans.append((inside[0], inside[-1] + 1))
    _check_length(len(tokens), n_ctx, 0)
    return EncodedResponses(text, tuple(tokens), tuple(spans))


def _count_shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def stop_token_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an assistant's turn: the tokenizer's end of sequence and known end-of-turn tokens."""
    known = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    ids = {tokenizer.convert_tokens_to_ids(token) for token in _END_OF_TURN if token in known}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def _render(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", type(tokenizer).__name__)
        hint = "Use a chat (instruct) model, or set tokenizer.chat_template."
        raise ChatTemplateError.of("tokenizer", "have a chat template", name, hint)
    if messages and messages[0]["role"] == "system" and not _keeps_system(tokenizer):
        messages = _merge_system(messages)
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except jinja2.TemplateError as error:
        rule = "be a conversation that the chat template can render"
        raise ChatTemplateError.of("messages", rule, list(messages), str(error)) from error


def _keeps_system(tokenizer: Any) -> bool:
    """Whether the template renders a system message rather than refusing or dropping it."""
    probe = "persona-lens-probe"
    try:
        text = tokenizer.apply_chat_template(build_messages("x", probe), tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError:
        return False
    return probe in text


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    system, first, *rest = messages
    warnings.warn(
        "The chat template has no system role: the system prompt was put before the user's first turn.",
        SystemRoleMergedWarning,
        stacklevel=4,
    )
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _check_length(n_tokens: int, n_ctx: int | None, reserve: int) -> None:
    if n_ctx is not None and n_tokens + reserve > n_ctx:
        rule = f"fit the model's context of {n_ctx} tokens, {reserve} of them kept for the response"
        hint = "Shorten the prompt or lower max_new_tokens."
        raise ContextLengthError.of("messages", rule, f"{n_tokens} tokens", hint)
