"""What each reason means for which a row is not scored, and what can be done; the page of screening shows the same."""

from __future__ import annotations

REASONS = {
    "not JSON": "a line that is no JSON; one row a line, without commas between",
    "not UTF-8": "another encoding, or half a surrogate pair; write the file as UTF-8",
    "wrong type": "a row, message, role or text of another type, as where `content` is null; tool calls are not read",
    "no messages": "neither `messages` nor `conversations`, or an empty list; `prompt` and `completion` are not read",
    "missing key": "a message without role or text: `role` and `content`, in `conversations` `from` and `value`",
    "unknown role": "known are system, user, assistant, in `conversations` human, gpt, in small letters; not tool",
    "system not first": "a system message after another message; only the first may be one",
    "no response": "no message of the assistant",
    "begins with the assistant": "no message of the user before the first answer",
    "turns do not alternate": "two messages of one role in turn; join them",
    "empty response": "the answer that counts, or the last one, is blank",
    "row too large": "over --max-row-bytes",
    "nested too deep": "more brackets open at once than --max-depth",
    "cut off": "the file ends within a row; get it again",
    "damaged file": "what comes after cannot be read; get the file again",
    "compressed too far": "over --max-ratio times the file's size; raise it if you trust the file",
    "not rendered by the chat template": "the model's template refuses it, as some do system messages",
    "prompt too long": "over --max-prompt-tokens, or too long for the model's context",
    "no thought": "the answer has no thought, and `part` asks for it",
    "unfinished thought": "the answer is a thought that does not end",
    "thought too long": "over `max_thought_tokens` of `ScreenSettings`",
    "not finite": "the model's numbers overflow on it; `persona-lens doctor` examines the model",
}
