"""Chat templates: conversations in, token ids and exact response spans out, from one tokenisation.

What the messages contain stays text: only the template writes control tokens, see :mod:`.tokens`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from persona_lens.checking import checked
from persona_lens.errors import (
    ChatTemplateError,
    ContextLengthError,
    ControlTextWarning,
    InvalidArgumentError,
    SystemRoleMergedWarning,
)
from persona_lens.models.text.messages import CheckedMessage, check_messages
from persona_lens.models.text.spans import Thought, TokenSpans
from persona_lens.models.text.templates import Renderer, TemplateArguments
from persona_lens.models.text.thoughts import (
    find_markers,
    is_closed,
    is_open,
    open_format,
    split_thought,
    write_thought,
)
from persona_lens.models.text.tokens import Place, TokenizedText, tokenize_plain, tokenize_text

_ROLES = ("system", "developer", "user", "assistant", "tool")


class Message(TypedDict):
    """One turn of a conversation.

    A content may also be a list of parts, all of them ``{"type": "text", "text": ...}``; they are joined. The thought
    of an answer stands in ``reasoning_content``, or in the content, between the model's own markers.
    """

    role: str
    content: str
    reasoning_content: NotRequired[str]


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
        thought: Where the thought of the last response lies; None for one without. Those of earlier responses are
            left out, as the templates of models that think do.
        messages: For each message its first token, and one past its last; None for one that is empty or rewritten.
    """

    text: str
    tokens: tuple[int, ...]
    responses: tuple[tuple[int, int], ...]
    controls: tuple[str, ...] = ()
    thought: Thought | None = None
    messages: tuple[tuple[int, int] | None, ...] = ()


@dataclass(frozen=True)
class EncodedTurns:
    """A rendered conversation and whose each token is.

    Args:
        text: What the chat template rendered.
        tokens: Its token ids.
        turns: For each token the index of the message that it belongs to; -1 for what the template wrote, and for a
            message that the template rewrites.
        response_start: First token of the last response; the number of tokens for a conversation that is to be
            answered.
        controls: Control tokens that the messages spell; they were read as text.
    """

    text: str
    tokens: tuple[int, ...]
    turns: tuple[int, ...]
    response_start: int
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
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    n_ctx: int | None = None,
    reserve: int = 0,
    template_arguments: TemplateArguments | None = None,
) -> EncodedPrompt:
    """Render a conversation up to where the assistant answers, and tokenise it.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        messages: The conversation, ending with a user's turn.
        n_ctx: The model's context in tokens; None checks no length.
        reserve: Tokens to keep free for the response.
        template_arguments: What the chat template reads besides the messages, such as ``{"enable_thinking": False}``;
            they go before those that the model was loaded with.

    Raises:
        InvalidArgumentError: No messages, or one that is not a role with a text; an unknown role, which most templates
            write as it is; a conversation that ends with the assistant's turn; a template argument that the template
            does not read.
        ChatTemplateError: No chat template, or one that cannot render this conversation; or one that rewrites a text
            which spells a control token.
        ContextLengthError: The prompt and the reserve exceed the context.

    Warns:
        SystemRoleMergedWarning: The template has no system role; the system prompt went into the user's turn.
    """
    renderer, prepared = _prepare(tokenizer, messages, template_arguments)
    _check_roles(tokenizer, [message.role for message in prepared])
    turns = _write_turns(prepared)
    text, places = _render_and_locate(renderer, turns, add_generation_prompt=True)
    found = _tokenize(tokenizer, text, turns, places)
    _check_length(len(found.tokens), n_ctx, reserve)
    return EncodedPrompt(text, found.tokens, found.controls)


@checked
def encode_conversation(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    n_ctx: int | None = None,
    template_arguments: TemplateArguments | None = None,
) -> EncodedConversation:
    """Render a conversation that ends with the assistant's response, and find the response's tokens.

    The span comes from the character offsets of one tokenisation; nothing is tokenised apart and measured. A response
    with a thought, in ``reasoning_content`` or between the model's markers, is written as the model writes one: the
    prompt as it is sampled from, the thought between its markers, the answer. One without is left to the template.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        messages: The conversation; the last message is the response. Thoughts of earlier ones are left out.
        n_ctx: The model's context in tokens; None checks no length.
        template_arguments: As for :func:`encode_prompt`.

    Raises:
        InvalidArgumentError: The last message is not the assistant's, or is empty.
        ChatTemplateError: The template drops or rewrites the response, so that it cannot be found; or a thought for a
            model that does not think, or whose prompt says not to.
        ContextLengthError: The conversation exceeds the context.
    """
    renderer, prepared = _prepare(tokenizer, messages, template_arguments)
    if prepared[-1].role != "assistant" or prepared[-1].is_empty:
        rule = "end with a non-empty assistant message"
        raise InvalidArgumentError.of("messages", rule, list(messages)[-1:])
    found = _encode_responses(renderer, prepared, [len(prepared) - 1], n_ctx)
    return EncodedConversation(found.tokens, *found.responses[0], found.text, found.controls, thought=found.thought)


def encode_responses(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    n_ctx: int | None = None,
    template_arguments: TemplateArguments | None = None,
) -> EncodedResponses:
    """Render a conversation of one or several turns, and find the tokens of each of the assistant's responses.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        messages: The conversation; every assistant message holds text. Thoughts before the last one are left out.
        n_ctx: The model's context in tokens; None checks no length.
        template_arguments: As for :func:`encode_prompt`.

    Raises:
        InvalidArgumentError: No assistant message, or an empty one.
        ChatTemplateError: The template drops or rewrites a response, so that it cannot be found.
        ContextLengthError: The conversation exceeds the context.
    """
    renderer, prepared = _prepare(tokenizer, messages, template_arguments)
    turns = [index for index, message in enumerate(prepared) if message.role == "assistant"]
    if not turns or any(prepared[index].is_empty for index in turns):
        rule = "hold assistant messages, none of them empty"
        raise InvalidArgumentError.of("messages", rule, list(messages)[-1:])
    return _encode_responses(renderer, prepared, turns, n_ctx)


def encode_turns(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    n_ctx: int | None = None,
    reserve: int = 0,
    template_arguments: TemplateArguments | None = None,
) -> EncodedTurns:
    """Render a conversation, with its last response or up to where one is due, and say whose each token is.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        messages: The conversation, ending with a user's or an assistant's turn.
        n_ctx: The model's context in tokens; None checks no length.
        reserve: Tokens to keep free, for an answer that is to come.
        template_arguments: As for :func:`encode_prompt`.

    Raises:
        InvalidArgumentError: No messages, or an assistant's that is empty.
        ChatTemplateError: As for :func:`encode_responses`.
        ContextLengthError: The conversation and the reserve exceed the context.
    """
    renderer, prepared = _prepare(tokenizer, messages, template_arguments)
    places: list[tuple[int, int] | None]
    if prepared[-1].role == "assistant":
        answered = [index for index, message in enumerate(prepared) if message.role == "assistant"]
        if any(prepared[index].is_empty for index in answered):
            raise InvalidArgumentError.of("messages", "hold no empty assistant message", list(messages)[-1:])
        responses = _encode_responses(renderer, prepared, answered, n_ctx)
        text, tokens, controls, places = responses.text, responses.tokens, responses.controls, [*responses.messages]
        start = responses.responses[-1][0]
    else:
        turns = _write_turns(prepared)
        text, written = _render_and_locate(renderer, turns, add_generation_prompt=True)
        found = _tokenize(renderer.tokenizer, text, turns, written)
        _check_length(len(found.tokens), n_ctx, reserve)
        tokens, controls, places = found.tokens, found.controls, [_locate(place, found) for place in written]
        start = len(tokens)
    whose = [-1] * len(tokens)
    n_merged = len(messages) - len(places)  # a system prompt that went into the user's turn
    for index, place in enumerate(places):
        if place is not None:
            whose[slice(*place)] = [index + n_merged] * (place[1] - place[0])
    return EncodedTurns(text, tokens, tuple(whose), start, controls)


def warn_of_controls(encoded: Iterable[EncodedPrompt | EncodedConversation | EncodedTurns]) -> None:
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
    renderer: Renderer, messages: Sequence[CheckedMessage], turns: Sequence[int], n_ctx: int | None
) -> EncodedResponses:
    shown = _write_turns(messages)
    text, places = _render_and_locate(renderer, shown, add_generation_prompt=False)
    spans = _list_places(text, places, turns)
    thinks = messages[-1].thought is not None
    if thinks:
        text, places, response = _write_last_response(renderer, messages[-1], shown, text[spans[-1][1] :])
        spans = [*_list_places(text, places, turns[:-1]), response]
        shown = [*shown, {"role": "assistant", "content": messages[-1].thought or ""}]
    found = _tokenize(renderer.tokenizer, text, shown, places)
    responses = [_find_tokens(text, place, found) for place in spans]
    _check_length(len(found.tokens), n_ctx, 0)
    thought = None
    if thinks and (form := open_format(renderer.tokenizer)):
        start, end = responses[-1]
        thought = form.find(found.tokens[:start], found.tokens[start:end])
        thought = None if thought is None else thought.shift(start)
    by_message = [_locate(place, found) for place in places[: len(messages)]]
    for turn, response in zip(turns, responses, strict=True):
        by_message[turn] = response
    return EncodedResponses(text, found.tokens, tuple(responses), found.controls, thought, tuple(by_message))


def _list_places(text: str, places: Sequence[Place | None], turns: Sequence[int]) -> list[Place]:
    """Return the responses' places; refuse a template that has none for one."""
    found = [places[turn] for turn in turns]
    if None in found:
        rule = "have a chat template that renders a response as it is"
        raise ChatTemplateError.of("tokenizer", rule, text[-200:], "See its chat_template.")
    return [place for place in found if place is not None]


def _write_last_response(
    renderer: Renderer, message: CheckedMessage, turns: Sequence[Message], behind: str
) -> tuple[str, list[Place | None], Place]:
    """Return a conversation that ends with a thought and an answer, the places of all contents, and the response's.

    Args:
        renderer: Of the prompt before the response.
        message: The response.
        turns: The conversation, without its thought.
        behind: What the template writes behind a response.
    """
    markers = find_markers(renderer.tokenizer)
    prompt, places = _render_and_locate(renderer, turns[:-1], add_generation_prompt=True)
    if markers is None or is_closed(prompt, markers):
        rule = "be of a model that thinks, and told to, where a response holds a thought"
        hint = "Take `reasoning_content` out, or see the template arguments, such as enable_thinking."
        raise ChatTemplateError.of("tokenizer", rule, (message.thought or "")[:100], hint)
    written, thought, answer = write_thought(prompt, message.thought or "", message.answer, markers)
    start = len(prompt)
    inside = [(start + a, start + b) for a, b in (answer, thought)]
    return prompt + written + behind, [*places, *inside], (start, start + len(written))


def _find_tokens(text: str, place: Place, found: TokenizedText) -> tuple[int, int]:
    inside = _locate(place, found)
    if inside is None:
        raise ChatTemplateError.of("tokenizer", "give offsets for the response's tokens", text[slice(*place)])
    return inside


def _locate(place: Place | None, found: TokenizedText) -> tuple[int, int] | None:
    """Return the first token of a place in the text, and one past its last; None if there is none."""
    if place is None:
        return None
    # A token belongs to a response if any of its characters do; a token of no characters (BOS) never does.
    inside = [i for i, (a, b) in enumerate(found.offsets) if a < place[1] and b > place[0] and b > a]
    return (inside[0], inside[-1] + 1) if inside else None


def _render_and_locate(
    renderer: Renderer, messages: Sequence[Message], *, add_generation_prompt: bool
) -> tuple[str, list[Place | None]]:
    """Return the rendered text and where each message's content stands in it; None where it is rewritten or dropped."""
    text = renderer.render(messages, add_generation_prompt=add_generation_prompt)
    places: list[Place | None] = []
    for turn, message in enumerate(messages):
        content = message["content"]
        # A content with another first letter: the renderings differ from where it begins. A response is not looked
        # for from the generation prompt's end, which may open a thought that the finished text does not have.
        other: Message = {"role": message["role"], "content": "y" if content.lstrip().startswith("x") else "x"}
        changed = [*messages[:turn], other, *messages[turn + 1 :]]
        start = _count_shared(text, renderer.render(changed, add_generation_prompt=add_generation_prompt))
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


def _prepare(
    tokenizer: Any, messages: Sequence[Message], arguments: TemplateArguments | None
) -> tuple[Renderer, list[CheckedMessage]]:
    """Check a conversation and its template; a system message that the template has no role for is merged."""
    checked_messages = check_messages(messages)
    renderer = Renderer(tokenizer, arguments)
    if checked_messages[0].role == "system" and not _keeps_system(renderer):
        checked_messages = _merge_system(checked_messages)
    return renderer, _split_thoughts(renderer, checked_messages)


def _check_roles(tokenizer: Any, roles: Sequence[str]) -> None:
    """Refuse what cannot be meant in a conversation that is to be answered."""
    written = tokenizer.chat_template
    template = "\n".join(written.values()) if isinstance(written, dict) else str(written)
    unknown = [one for one in roles if one not in _ROLES and not any(f"{q}{one}{q}" in template for q in "'\"")]
    if unknown:
        rule = f"have the roles {', '.join(_ROLES)}, or others that the chat template names"
        raise InvalidArgumentError.of("messages", rule, unknown[0])
    if roles[-1] == "assistant":
        hint = "Leave the answer out to have another one; encode_conversation and trace read one that is there."
        raise InvalidArgumentError.of("messages", "end with a turn that the assistant answers", roles[-1], hint)


def _split_thoughts(renderer: Renderer, messages: Sequence[CheckedMessage]) -> list[CheckedMessage]:
    """Take thoughts that stand in an answer's text, between the model's markers, out of it."""
    has_answer = any(message.role == "assistant" for message in messages)
    if not has_answer or not (markers := find_markers(renderer.tokenizer)):
        return list(messages)
    closing = markers.closing.strip()
    split = []
    for turn, message in enumerate(messages):
        if message.role == "assistant" and message.thought is None:
            text = message.answer or ""
            opens = closing in text and turn > 0 and is_open(_render_prompt(renderer, messages[:turn]), markers)
            message = CheckedMessage(message.role, *reversed(split_thought(text, markers, is_open=opens)))
            # What a model that was told not to think has before its answers.
            is_blank = message.thought == "" and message.answer is not None and turn > 0
            if is_blank and is_closed(_render_prompt(renderer, messages[:turn]), markers):
                message = CheckedMessage(message.role, message.answer)
        split.append(message)
    for turn, message in enumerate(split[:-1]):
        if message.answer is None:
            rule = "hold an answer: of earlier turns a thought is left out, and this one has nothing else"
            raise InvalidArgumentError.of(f"messages[{turn}]", rule, message.thought)
    return split


def _render_prompt(renderer: Renderer, messages: Sequence[CheckedMessage]) -> str:
    return renderer.render(_write_turns(messages), add_generation_prompt=True)


def _write_turns(messages: Sequence[CheckedMessage]) -> list[Message]:
    """Return the messages without their thoughts; an answer that is not there yet as one letter, to be replaced."""
    return [{"role": one.role, "content": "x" if one.answer is None else one.answer} for one in messages]


def _keeps_system(renderer: Renderer) -> bool:
    """Whether the template renders a system message rather than refusing or dropping it."""
    probe = "persona-lens-probe"
    return renderer.keeps(build_messages("x", probe), probe)


def _merge_system(messages: Sequence[CheckedMessage]) -> list[CheckedMessage]:
    system, first, *rest = messages
    warnings.warn(
        "The chat template has no system role: the system prompt was put before the user's first turn.",
        SystemRoleMergedWarning,
        stacklevel=4,
    )
    return [CheckedMessage(first.role, f"{system.answer}\n\n{first.answer}", first.thought), *rest]


def _check_length(n_tokens: int, n_ctx: int | None, reserve: int) -> None:
    if n_ctx is not None and n_tokens + reserve > n_ctx:
        rule = f"fit the model's context of {n_ctx} tokens, {reserve} of them kept for the response"
        hint = "Shorten the prompt or lower max_new_tokens."
        raise ContextLengthError.of("messages", rule, f"{n_tokens} tokens", hint)
