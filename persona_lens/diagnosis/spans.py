"""The check that a response's tokens are found, on conversations of five kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from persona_lens.diagnosis.finding import Finding
from persona_lens.diagnosis.subject import CHATS, Subject
from persona_lens.errors import PersonaLensError
from persona_lens.models.text.chat import Message, encode_responses
from persona_lens.models.text.tokens import stop_token_ids


def check_spans(subject: Subject) -> Finding:
    """The tokens that are taken for a response decode to it, and no text becomes a control token."""
    faults = []
    for kind, chat in CHATS.items():
        try:
            fault = _find_fault(subject.tokenizer, chat)
        except PersonaLensError as error:
            fault = str(error)
        faults += [f"{kind}: {fault}"] if fault else []
    if faults:
        cure = "Load the model's own fast tokenizer and chat template; responses read wrongly give wrong vectors."
        seen = f"Wrong in {len(faults)} of {len(CHATS)} conversations; {faults[0]}"
        return Finding("spans", False, seen, cure)
    return Finding("spans", True, f"Each response is found in {len(CHATS)} conversations: {', '.join(CHATS)}.")


def _find_fault(tokenizer: Any, chat: Sequence[Message]) -> str:
    found = encode_responses(tokenizer, chat)
    responses = [message["content"] for message in chat if message["role"] == "assistant"]
    for content, (start, end) in zip(responses, found.responses, strict=True):
        tokens = list(found.tokens[start:end])
        decoded = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # A token may hold a letter of the response and the template's newline; sentence pieces lose a first space.
        if decoded.strip() != content.strip():
            return f"The tokens of {content!r} decode to {decoded!r}."
    plain = [Message(role=message["role"], content="x") for message in chat]
    n_controls, n_own = (_count_controls(tokenizer, tokens) for tokens in (found.tokens, _encode(tokenizer, plain)))
    if n_controls != n_own:
        return f"It has {n_controls} control tokens, of which the template writes {n_own}."
    return ""


def _encode(tokenizer: Any, chat: Sequence[Message]) -> tuple[int, ...]:
    return encode_responses(tokenizer, chat).tokens


def _count_controls(tokenizer: Any, tokens: Sequence[int]) -> int:
    special = {token for token, one in tokenizer.added_tokens_decoder.items() if one.special}
    return sum(token in special | stop_token_ids(tokenizer) for token in tokens)
