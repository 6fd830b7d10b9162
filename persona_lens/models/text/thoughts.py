"""Thoughts of models that think before they answer: the markers around them, and where they lie in a response.

Markers are looked for among tokens, not in decoded text: one that is a control token of the tokenizer is found where
that token stands, never where a text spells it. One that is no token of its own is found where its characters are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from persona_lens.models.text.spans import Thought


@dataclass(frozen=True)
class ThoughtMarkers:
    """How a family of models writes a thought; markers with the whitespace that is usual around them.

    Args:
        opening: What stands before a thought.
        closing: What stands between a thought and its answer.
        direct: What may begin an answer without a thought; empty where nothing does.
        others: Further beginnings of what is no answer yet.
    """

    opening: str
    closing: str
    direct: str = ""
    others: tuple[str, ...] = ()


_FINAL, _MESSAGE = "<|channel|>final<|message|>", "<|end|><|start|>assistant"
KNOWN_MARKERS = (
    # Qwen3, DeepSeek-R1 and its distillations, QwQ, Phi-4-reasoning and most others
    ThoughtMarkers("<think>\n", "\n</think>\n\n"),
    # gpt-oss: messages of several channels, the last of which is the answer
    ThoughtMarkers(
        "<|channel|>analysis<|message|>", _MESSAGE + _FINAL, _FINAL, ("<|channel|>commentary<|message|>",)
    ),
    ThoughtMarkers("[THINK]", "[/THINK]"),  # Magistral
    ThoughtMarkers("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtMarkers("<thought>\n", "\n</thought>\n\n"),  # EXAONE Deep
)  # fmt: skip


def find_markers(tokenizer: Any) -> ThoughtMarkers | None:
    """Return the markers that a tokenizer's chat template or its added tokens name; None for a model without thoughts.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    added = tokenizer.get_added_vocab()
    for markers in KNOWN_MARKERS:
        if all(_is_named(marker.strip(), template, added) for marker in (markers.opening, markers.closing)):
            return markers
    return None


def _is_named(marker: str, template: str, added: dict[str, int]) -> bool:
    if marker in template or marker in added:
        return True
    # One of several tokens: gpt-oss' template puts it together of pieces.
    names = [name for name in added if name in marker]
    return len(names) > 1 and all(name in template for name in names)


def list_marker_tokens(tokenizer: Any) -> frozenset[int]:
    """Return the control tokens that a tokenizer's markers are made of; none where they are spelled as text."""
    markers = find_markers(tokenizer)
    if markers is None:
        return frozenset()
    texts = (markers.opening, markers.closing, markers.direct, *markers.others)
    tokens = chain.from_iterable(_tokenize_marker(tokenizer, text.strip()) for text in texts)
    return frozenset(token for token in tokens if token in tokenizer.added_tokens_decoder)


def split_thought(text: str, markers: ThoughtMarkers, *, is_open: bool) -> tuple[str | None, str | None]:
    """Return a response's thought and answer as text, without markers and the whitespace around them.

    Args:
        text: The response.
        markers: How the model writes thoughts.
        is_open: Whether the prompt ends within a thought, so that the response need not open one.

    Returns:
        No thought where none begins the text; no answer where a thought does not end.

    Example:
        >>> split_thought("<think>Hm.</think> Yes", KNOWN_MARKERS[0], is_open=False)
        ('Hm.', 'Yes')
    """
    opening, closing = markers.opening.strip(), markers.closing.strip()
    opens = text.lstrip().startswith(opening)
    if not opens and not (is_open and closing in text):
        direct = markers.direct.strip()
        return None, text.lstrip().removeprefix(direct) if direct else text
    inside = text.lstrip().removeprefix(opening)
    thought, found, answer = inside.partition(closing)
    return thought.strip(), answer.lstrip() if found else None


def write_thought(
    prompt: str, thought: str, answer: str | None, markers: ThoughtMarkers
) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Return a response with a thought, as a model writes it behind a prompt, and the places of thought and answer.

    Args:
        prompt: The rendered prompt; it may have opened the thought.
        thought: Its text.
        answer: The answer's text; None for a thought that does not end.
        markers: How the model writes thoughts.
    """
    marker = markers.opening.strip()
    opening = markers.opening
    if is_open(prompt, markers):
        opening = "" if prompt != prompt.rstrip() else markers.opening.removeprefix(marker)
    at = len(opening)
    before = opening + thought
    text = before if answer is None else before + markers.closing + answer
    return text, (at, at + len(thought)), (len(text) - len(answer or ""), len(text))


def is_open(prompt: str, markers: ThoughtMarkers) -> bool:
    """Say whether a rendered prompt ends with the marker that opens a thought."""
    return prompt.rstrip().endswith(markers.opening.strip())


def is_closed(prompt: str, markers: ThoughtMarkers) -> bool:
    """Say whether a rendered prompt ends with the marker behind a thought, as where thinking is switched off."""
    return prompt.rstrip().endswith(markers.closing.strip())


class ThoughtFormat:
    """How thoughts look among a tokenizer's tokens.

    Args:
        tokenizer: A Hugging Face tokenizer.
        markers: Of its model.
    """

    def __init__(self, tokenizer: Any, markers: ThoughtMarkers) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.added_tokens_decoder
        self._pieces: dict[int, str] = {}
        self.opens = [self._spell_marker(text) for text in (markers.opening, *markers.others)]
        self.close = self._spell_marker(markers.closing)
        self.direct = self._spell_marker(markers.direct)
        # At least one character a token: so many tokens hold a marker, with some blanks behind it.
        self.longest = max(map(len, (*self.opens, self.close))) + 8

    def spell(self, token: int) -> str:
        """Return a token's text; an added token's between two NUL characters, which no other text holds."""
        if token not in self._pieces:
            if token in self._added:
                piece = f"\0{self._added[token].content}\0"
            else:
                piece = self._tokenizer.decode([token], clean_up_tokenization_spaces=False).replace(
                    "\0", "\N{REPLACEMENT CHARACTER}"
                )
            self._pieces[token] = piece
        return self._pieces[token]

    def _spell_marker(self, marker: str) -> str:
        tokens = _tokenize_marker(self._tokenizer, marker.strip())
        return "".join(map(self.spell, tokens)) if self._added.keys() & tokens else marker.strip()

    def begin(self, prompt: Sequence[int]) -> ThoughtReader:
        """Return what reads the response to a prompt."""
        end = "".join(map(self.spell, prompt[-self.longest :])).rstrip()
        if any(end.endswith(marker) for marker in self.opens):
            return ThoughtReader(self, "thinking")
        closed = end.endswith(self.close) or bool(self.direct and end.endswith(self.direct))
        return ThoughtReader(self, "answering" if closed else "awaiting")

    def find(self, prompt: Sequence[int], response: Sequence[int]) -> Thought | None:
        """Return where the thought lies in a response, counted from the response's first token; None without one."""
        reader = self.begin(prompt)
        for token in response:
            reader.feed(token)
        return reader.thought


def open_format(tokenizer: Any) -> ThoughtFormat | None:
    """Return how a tokenizer's model writes thoughts; None for one without."""
    markers = None if tokenizer is None else find_markers(tokenizer)
    return None if markers is None else ThoughtFormat(tokenizer, markers)


class ThoughtReader:
    """Reads a response token by token, as it comes, and says which of its tokens are thought and which answer.

    Args:
        form: How thoughts look.
        state: Whether the prompt opened a thought (``thinking``), closed one (``answering``), or neither: then the
            response is waited for to do so.
    """

    def __init__(self, form: ThoughtFormat, state: Literal["awaiting", "thinking", "answering"]) -> None:
        self._form = form
        self._text = ""
        self._ends: list[int] = []  # of each token's characters
        self._from = 0  # the thought's first character
        self._thought: Thought | None = None
        self.state = state
        self.n_before_answer = 0
        """Tokens of the response up to where its answer began, the closing marker's last one among them."""

    @property
    def n_tokens(self) -> int:
        """Tokens read."""
        return len(self._ends)

    @property
    def is_thinking(self) -> bool:
        """Whether the next token belongs to the thought, as far as anyone knows."""
        return self.state != "answering"

    def count(self, n_free: int) -> int:
        """Return how many tokens were read, without so many of the thought and its markers."""
        if self.is_thinking:
            return max(0, self.n_tokens - n_free)
        return self.n_tokens - (0 if self._thought is None else min(self.n_before_answer, n_free))

    def feed(self, token: int) -> None:
        """Read the next token."""
        piece = self._form.spell(token)
        self._text += piece
        self._ends.append(len(self._text))
        if self.state == "awaiting":
            self._await_opening()
        if self.state == "thinking":
            self._look_for_close(len(self._text) - len(piece))
        elif self._thought is not None and self._thought.answer_start == len(self._ends) - 1 and not piece.strip():
            self._thought = self._thought.with_answer(len(self._ends))

    @property
    def thought(self) -> Thought | None:
        """Where the thought lies, among the tokens read so far; None where there is none."""
        if self.state == "thinking":
            return Thought(*self._locate(self._count_certain()))
        return self._thought

    @property
    def n_settled(self) -> int:
        """Tokens of which it is certain what they are; later ones may turn out to be part of a marker."""
        if self.state == "thinking":
            return max(self._count_tokens(self._from), self._count_tokens(self._count_certain()))
        return self.n_tokens if self.state == "answering" else 0

    def _await_opening(self) -> None:
        text = self._text.lstrip()
        markers = [marker for marker in (*self._form.opens, self._form.direct) if marker]
        found = next((marker for marker in markers if text.startswith(marker)), None)
        if found is None:
            if not any(marker.startswith(text) for marker in markers):
                self.state, self.n_before_answer = "answering", self.n_tokens
            return
        self._from = len(self._text) - len(text) + len(found)
        if found == self._form.direct:
            self._finish(self._from, self._from)
        else:
            self.state = "thinking"

    def _look_for_close(self, read: int) -> None:
        close = self._form.close
        at = self._text.find(close, max(self._from, read - len(close)))
        if at >= 0:
            self._finish(at, at + len(close))

    def _finish(self, end: int, answer: int) -> None:
        """Note that the thought ends before one character, and that the marker behind it ends before another."""
        start, stop = self._locate(end)
        closed = self._count_tokens(answer - 1) + 1
        rest = self._text[answer:]  # of the token that the marker ends in
        self._thought = Thought(start, stop, closed, closed - 1 if rest.strip() else closed)
        self.state, self.n_before_answer = "answering", closed

    def _locate(self, end: int) -> tuple[int, int]:
        """Return the first token of the thought, and one past the last, without blanks around it."""
        inside = self._text[self._from : end]
        if not inside.strip():
            at = self._count_tokens(self._from)
            return at, at
        first = self._from + len(inside) - len(inside.lstrip())
        last = self._from + len(inside.rstrip()) - 1
        return self._count_tokens(first), self._count_tokens(last) + 1

    def _count_certain(self) -> int:
        """Return how many characters can no longer belong to the closing marker or to the blanks before it."""
        text, close = self._text, self._form.close
        partial = next((n for n in range(len(close) - 1, 0, -1) if text.endswith(close[:n])), 0)
        return max(self._from, len(text[: len(text) - partial].rstrip()))

    def _count_tokens(self, character: int) -> int:
        """Return how many tokens end before or at a character: the index of the token that holds it."""
        return bisect_right(self._ends, character)


def _tokenize_marker(tokenizer: Any, marker: str) -> list[int]:
    return list(tokenizer(marker, add_special_tokens=False)["input_ids"]) if marker else []
