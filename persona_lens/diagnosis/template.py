"""Checks of the chat template: every message rendered, the system prompt kept, BOS once, an end that stops."""

from __future__ import annotations

import warnings
from typing import Any

import jinja2

from persona_lens.diagnosis.finding import Finding
from persona_lens.diagnosis.subject import CHATS, SYSTEM, Subject
from persona_lens.errors import SystemRoleMergedWarning
from persona_lens.models.text.chat import build_messages, encode_prompt, encode_responses
from persona_lens.models.text.tokens import stop_token_ids


def check_template(subject: Subject) -> Finding:
    """There is a chat template, and it renders every message of a conversation, in order."""
    name = "chat template"
    if not getattr(subject.tokenizer, "chat_template", None):
        cure = "Use a chat (instruct) model, or set tokenizer.chat_template."
        return Finding(name, False, "The tokenizer has none.", cure)
    messages = CHATS["several turns"][1:-1]
    text = encode_prompt(subject.tokenizer, messages).text
    at = 0
    for message in messages:
        at = text.find(message["content"], at)
        if at < 0:
            seen = f"The {message['role']}'s {message['content']!r} is not in its place in what is rendered: {text!r}."
            return Finding(name, False, seen, "Repair tokenizer.chat_template: take the one of the model's own page.")
        at += len(message["content"])
    return Finding(name, True, "It renders every turn, in order.")


def check_system_prompt(subject: Subject) -> Finding:
    """The template renders a system prompt, or says that it has no place for one."""
    name, messages = "system prompt", CHATS["system prompt"][:-1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        texts = [encode_prompt(subject.tokenizer, chat).text for chat in (messages, CHATS["several turns"][:-1])]
    if not all(SYSTEM in text for text in texts):
        seen = "The template drops it in silence where a conversation has several turns."
        return Finding(name, False, seen, "Repair tokenizer.chat_template, or put the prompt into the user's turn.")
    if not any(issubclass(one.category, SystemRoleMergedWarning) for one in caught):
        return Finding(name, True, "The template has a system role and keeps it.")
    try:
        asked = build_messages("Hello!", SYSTEM)
        subject.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError:
        seen = "The template refuses a system role: system prompts are put before the user's first turn."
        return Finding(name, True, seen)
    seen = "The template drops it in silence. persona_lens puts it before the first question; others lose it."
    return Finding(name, False, seen, "Repair tokenizer.chat_template, or let it raise_exception at a system role.")


def check_bos(subject: Subject) -> Finding:
    """A rendered prompt begins with BOS once, where the tokenizer begins texts with it."""
    name, bos = "BOS", subject.tokenizer.bos_token_id
    if bos is None:
        return Finding(name, True, "The tokenizer has none.")
    tokens = encode_prompt(subject.tokenizer, CHATS["no system prompt"][:1]).tokens
    n_leading = next((i for i, token in enumerate(tokens) if token != bos), len(tokens))
    shown = repr(subject.tokenizer.bos_token)
    if n_leading > 1:
        cure = "Take it out of tokenizer.chat_template, which writes it more than once."
        return Finding(name, False, f"{shown} stands {n_leading} times at a prompt's start.", cure)
    if n_leading == 1:
        return Finding(name, True, f"{shown} stands once, at a prompt's start.")
    # TransformerLens sets its own copy of a tokenizer to add BOS; what it did before, the reference's tells.
    own = subject.reference.tokenizer if subject.reference else None
    if own is not None and own("Hello").input_ids[:1] == [bos]:
        cure = "Let tokenizer.chat_template begin with {{ bos_token }}."
        return Finding(name, False, f"{shown} begins every plain text, but no rendered prompt.", cure)
    return Finding(name, True, f"The template writes none ({shown} begins no prompt).")


def check_stop_tokens(subject: Subject) -> Finding:
    """The token by which the template ends an assistant's turn is one that ends a response."""
    name, tokenizer = "stop tokens", subject.tokenizer
    stops = stop_token_ids(tokenizer)
    ends = _list_ends(tokenizer, CHATS["no system prompt"]) | _list_ends(tokenizer, CHATS["several turns"])
    if not ends:
        seen = f"The template ends a response with no control token; known: {_name(tokenizer, stops)}."
        return Finding(name, False, seen, "Pass Sampling(stop_tokens=...) with the ids that end a response.")
    if unknown := ends - stops:
        seen = f"The template ends a response with {_name(tokenizer, unknown)}; known: {_name(tokenizer, stops)}."
        cure = f"Pass Sampling(stop_tokens=frozenset({sorted(ends)})), or set tokenizer.eos_token to it."
        return Finding(name, False, seen, cure)
    seen = f"The template ends a response with {_name(tokenizer, ends)}; known: {_name(tokenizer, stops)}."
    others = (subject.reference.stop_tokens if subject.reference else frozenset()) - stops
    if others:
        seen += f" Hugging Face's generation settings also name {_name(tokenizer, others)}."
    return Finding(name, True, seen)


def _list_ends(tokenizer: Any, chat: Any) -> set[int]:
    """Return the first control token after each response; other tokens, such as a newline, may come before it."""
    found = encode_responses(tokenizer, chat)
    starts = [start for start, _ in found.responses[1:]]
    added, ends = tokenizer.added_tokens_decoder, set()
    for (_, end), limit in zip(found.responses, [*starts, len(found.tokens)], strict=True):
        ends |= set([token for token in found.tokens[end:limit] if token in added][:1])
    return ends


def _name(tokenizer: Any, tokens: set[int] | frozenset[int]) -> str:
    return ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in sorted(tokens)) or "none"
