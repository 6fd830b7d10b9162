"""Chat templates: conversations in, token ids and exact response spans out, from one tokenisation.

What the messages contain stays text: only the template writes control tokens, see :mod:`.tokens`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import jinja2

from persona_lens.checking import checked
from persona_lens.errors import (
    ChatTemplateError,
    ContextLengthError,
    ControlTextWarning,
    InvalidArgumentError,
    SystemRoleMergedWarning,
)
from persona_lens.models.text.spans import TokenSpans
from persona_lens.models.text.tokens import Place, TokenizedText, tokenize_plain, tokenize_text


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@checked
@dataclass(frozen=True)
class EncodedPrompt:
    """A rendered prompt, ready to be answered.

    Args:
        text: What the chat template rendered.
        tokens: Its token ids.
        controls: Control tokens that the messages spell, such as ``<|im_end|>``; they were read as text.
    """

    text: str
    tokens: tuple[int, ...]
    controls: tuple[str, ...] = ()


@checked
@dataclass(frozen=True)
class EncodedConversation(TokenSpans):
    """A rendered conversation whose last message is the response.

    Args:
        text: What the chat template rendered.
        controls: Control tokens that the messages spell; they were read as text.
    """

    text: str
    controls: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedResponses:
    """A rendered conversation and the places of the assistant's responses.

    Args:
        text: What the chat template rendered.
        tokens: Its token ids.
        responses: For each response its first token, and one past its last; end-of-turn tokens are outside.
        controls: Control tokens that the messages spell; they were read as text.
    """

    text: str
    tokens: tuple[int, ...]
    responses: tuple[tuple[int, int], ...]
    controls: tuple[str, ...] = ()


def build_messages(question: str, system: str | None = None) -> list[Message]:
    """Return a one-turn conversation.

    Example:
        >>> build_messages("Hello?", "You are kind.")
        [{'role': 'system', 'content': 'You are kind.'}, {'role': 'user', 'content': 'Hello?'}]
    """
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": question}]


@checked
def encode_prompt(
    tokenizer: Any, messages: Sequence[Message], *, n_ctx: int | None = None, reserve: int = 0
) -> EncodedPrompt:
    """Render a conversation up to where the assistant answers, and tokenise it.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        messages: The conversation, ending with a user's turn.
        n_ctx: The model's context in tokens; None checks no length.
        reserve: Tokens to keep free for the response.

    Raises:
        InvalidArgumentError: No messages, or one that is not a role with a text.
        ChatTemplateError: No chat template, or one that cannot render this conversation; or one that rewrites a text
            which spells a control token.
        ContextLengthError: The prompt and the reserve exceed the context.

    Warns:
        SystemRoleMergedWarning: The template has no system role; the system prompt went into the user's turn.
    """
    messages = _prepare(tokenizer, messages)
    text, places = _render_and_locate(tokenizer, messages, add_generation_prompt=True)
    found = _tokenize(tokenizer, text, messages, places)
    _check_length(len(found.tokens), n_ctx, reserve)
    return EncodedPrompt(text, found.tokens, found.controls)


@checked
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
    messages = _prepare(tokenizer, messages)
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        rule = "end with a non-empty assistant message"
        raise InvalidArgumentError.of("messages", rule, list(messages)[-1:])
    turns = _encode_responses(tokenizer, messages, [len(messages) - 1], n_ctx)
    return EncodedConversation(turns.tokens, *turns.responses[0], turns.text, turns.controls)


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
    messages = _prepare(tokenizer, messages)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns or not all(messages[index]["content"].strip() for index in turns):
        rule = "hold assistant messages, none of them empty"
        raise InvalidArgumentError.of("messages", rule, list(messages)[-1:])
    return _encode_responses(tokenizer, messages, turns, n_ctx)


def warn_of_controls(encoded: Iterable[EncodedPrompt | EncodedConversation]) -> None:
    """Say, once for all, which texts spell control tokens.

    Args:
        encoded: What was tokenised for the caller's caller.

    Warns:
        ControlTextWarning: There are such texts.
    """
    spelt = [one.controls for one in encoded]
    if names := sorted({name for controls in spelt for name in controls}):
        n_texts = sum(map(bool, spelt))
        warnings.warn(
            f"{n_texts} of {len(spelt)} texts {'spells' if n_texts == 1 else 'spell'} control tokens, "
            f"{', '.join(names)}, which were read as ordinary text.",
            ControlTextWarning,
            stacklevel=3,
        )


def _encode_responses(
    tokenizer: Any, messages: Sequence[Message], turns: Sequence[int], n_ctx: int | None
) -> EncodedResponses:
    text, places = _render_and_locate(tokenizer, messages, add_generation_prompt=False)
    found = _tokenize(tokenizer, text, messages, places)
    spans = []
    for turn in turns:
        place = places[turn]
        if place is None:
            rule = "have a chat template that renders a response as it is"
            raise ChatTemplateError.of("tokenizer", rule, text[-200:], "See its chat_template.")
        # A token belongs to a response if any of its characters do; a token of no characters (BOS) never does.
        inside = [i for i, (a, b) in enumerate(found.offsets) if a < place[1] and b > place[0] and b > a]
        if not inside:
            rule = "give offsets for the response's tokens"
            raise ChatTemplateError.of("tokenizer", rule, text[slice(*place)])
        spans.append((inside[0], inside[-1] + 1))
    _check_length(len(found.tokens), n_ctx, 0)
    return EncodedResponses(text, found.tokens, tuple(spans), found.controls)


def _render_and_locate(
    tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool
) -> tuple[str, list[Place | None]]:
    """Return the rendered text and where each message's content stands in it; None where it is rewritten or dropped."""
    text = _render(tokenizer, messages, add_generation_prompt)
    places: list[Place | None] = []
    for turn, message in enumerate(messages):
        content = message["content"]
        # A content with another first letter: the renderings differ from where it begins. A response is not looked
        # for from the generation prompt's end, which may open a thought that the finished text does not have.
        other: Message = {"role": message["role"], "content": "y" if content.lstrip().startswith("x") else "x"}
        changed = _render(tokenizer, [*messages[:turn], other, *messages[turn + 1 :]], add_generation_prompt)
        start = _count_shared(text, changed)
        # A few templates strip a content's outer whitespace.
        shown = next((one for one in (content, content.strip()) if text.startswith(one, start)), None)
        places.append(None if shown is None else (start, start + len(shown)))
    return text, places


def _tokenize(tokenizer: Any, text: str, messages: Sequence[Message], places: Sequence[Place | None]) -> TokenizedText:
    """Tokenise a rendering; refuse a message that the template rewrites and that spells a control token."""
    for message, place in zip(messages, places, strict=True):
        if place is None and (spelt := tokenize_plain(tokenizer, message["content"]).controls):
            rule = f"render a text that spells {spelt[0]!r} as it is, so that it can be read as text"
            raise ChatTemplateError.of("tokenizer", rule, message["content"], "Take it out of the text.")
    return tokenize_text(tokenizer, text, [place for place in places if place is not None])


def _count_shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _check_messages(messages: Sequence[Message]) -> None:
    """Refuse what no template should see.

    Raises:
        InvalidArgumentError: No messages, one without a role or a text, half a surrogate pair, or a system turn alone.
    """
    if isinstance(messages, str | Mapping) or not messages:
        rule = 'be a list of {"role": ..., "content": ...}, at least one'
        raise InvalidArgumentError.of("messages", rule, messages)
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InvalidArgumentError.of(name, 'be {"role": ..., "content": ...}', message)
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or not role.isidentifier():
            raise InvalidArgumentError.of(f'{name}["role"]', 'be a word such as "user" or "assistant"', role)
        if not isinstance(content, str):
            raise InvalidArgumentError.of(f'{name}["content"]', "be a text", content)
        try:
            content.encode("utf-8")
        except UnicodeEncodeError:
            rule = "hold no half of a surrogate pair, which no tokenizer takes"
            raise InvalidArgumentError.of(f'{name}["content"]', rule, content) from None
    if messages[-1]["role"] == "system":
        raise InvalidArgumentError.of("messages", "end with a user's or an assistant's turn", messages[-1])


def _prepare(tokenizer: Any, messages: Sequence[Message]) -> Sequence[Message]:
    """Check a conversation and its template; a system message that the template has no role for is merged."""
    _check_messages(messages)
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", type(tokenizer).__name__)
        hint = "Use a chat (instruct) model, or set tokenizer.chat_template."
        raise ChatTemplateError.of("tokenizer", "have a chat template", name, hint)
    return messages if messages[0]["role"] != "system" or _keeps_system(tokenizer) else _merge_system(messages)


def _render(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
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
