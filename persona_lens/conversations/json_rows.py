"""Rows of JSON, one a line or in a list: each is cut out of the file as bytes and read by itself.

So what is wrong with one row is that row's affair. The numbers that `json.dump` writes beyond the standard (``NaN``,
``Infinity``, integers of any length) are data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from persona_lens.conversations.limits import ReadLimits
from persona_lens.conversations.rows import Refusal

# Strings, brackets and separators, and words: runs of anything else. A string may lack its end, which the chunk cut.
_REST_OF_STRING = rb'(?:[^"\\]++|\\.)*+(")?'
_STRING_ON = re.compile(_REST_OF_STRING, re.DOTALL)
_TOKEN = re.compile(rb'"' + _REST_OF_STRING + rb'|[][{},:]|[^][{},:"\s]+', re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(rb"[][{}]")

# The grammar of lists and objects: what state a token leads to from another. A token is known by its first byte.
_QUOTE, _WORD = ord('"'), 0
_KINDS = {byte: byte if byte in b'"[]{},:' else _WORD for byte in range(256)}
_OPEN, _CLOSE = "an opened bracket", "a closed bracket"
_VALUE_STEPS = {ord("["): _OPEN, ord("{"): _OPEN}
_ENTRY_STEPS = {_QUOTE: "after entry", _WORD: "after entry", **_VALUE_STEPS}
_KEY_STEPS = {_QUOTE: "after key", _WORD: "after key"}
_STEPS = {
    "outside": {},
    "before list": {ord("["): _OPEN},
    "first entry": {ord("]"): _CLOSE, **_ENTRY_STEPS},
    "entry": _ENTRY_STEPS,
    "after entry": {ord(","): "entry", ord("]"): _CLOSE},
    "first key": {ord("}"): _CLOSE, **_KEY_STEPS},
    "key": _KEY_STEPS,
    "after key": {ord(":"): "value"},
    "value": {_QUOTE: "after value", _WORD: "after value", **_VALUE_STEPS},
    "after value": {ord(","): "key", ord("}"): _CLOSE},
}
_OPENED = {ord("["): "first entry", ord("{"): "first key"}
_CLOSED_WITHIN = {ord("["): "after entry", ord("{"): "after value"}


def _read_integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 4000 else float(digits)  # Python refuses more than 4300


_DECODER = json.JSONDecoder(parse_int=_read_integer)


def parse_row(row: bytes, limits: ReadLimits) -> Any:
    """Return what a row's JSON says, or a refusal."""
    if _is_too_deep(row, limits.max_depth):
        return Refusal("nested too deep", _show(row))
    try:
        text = row.decode("utf-8")
    except UnicodeDecodeError:
        return Refusal("not UTF-8", _show(row))
    try:
        return _DECODER.decode(text)
    except RecursionError:  # where the limit is above Python's own
        return Refusal("nested too deep", _show(row))
    except ValueError:
        return Refusal("not JSON", _show(row))


def split_lines(chunks: Iterable[bytes], limits: ReadLimits) -> Iterator[bytes | Refusal]:
    """Yield lines with their newline; of one that is too large, a refusal.

    They end at newlines alone: `str.splitlines` would also split at U+2028 and others, which JSON allows in strings.
    """
    line = _Held(limits.max_row_bytes)
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            line.add(part + b"\n")
            yield line.take()
        line.add(rest)
    if line.n_bytes:
        yield line.take()


def split_list(chunks: Iterable[bytes], limits: ReadLimits) -> Iterator[bytes | Refusal]:
    """Yield the entries of a JSON list as bytes; of one that is too large, a refusal.

    What strings and words say is no matter here: where an entry ends is certain as long as strings, words, brackets
    and separators follow one another as JSON has it. Where they do not, as after a stray quotation mark, text could be
    taken for rows and rows for text: a refusal says so, and nothing more comes.
    """
    row = _Held(limits.max_row_bytes)
    opened, state = bytearray(), "before list"
    in_string = in_word = False
    left = b""
    n_before = 0
    for new in chunks:
        chunk = left + new
        begin = at = 0
        if in_string and (match := _STRING_ON.match(chunk)):
            in_string, at = match[1] is None, match.end()
        ended_in_word, in_word = in_word, False
        for match in () if in_string else _TOKEN.finditer(chunk, at):
            kind = _KINDS[chunk[match.start()]]
            in_word = kind == _WORD and match.end() == len(chunk)
            if kind == _WORD and ended_in_word and match.start() == 0:
                continue  # the same word
            if len(opened) == 1 and state == "after entry" and kind in b",]":
                row.add(chunk[begin : match.start()])
                yield row.take()
            step = _STEPS[state].get(kind)
            if step is None or len(opened) > limits.max_row_bytes:
                yield Refusal("damaged file", f"not JSON at byte {n_before + match.start()}: {_show(match[0])}")
                return
            if step == _OPEN:
                opened.append(kind)
                state = _OPENED[kind]
            elif step == _CLOSE:
                opened.pop()
                state = _CLOSED_WITHIN[opened[-1]] if opened else "outside"
            else:
                state = step
            if len(opened) == 1 and kind in b"[,":
                begin = match.end()
            if kind == _QUOTE and match[1] is None:
                in_string, at = True, match.end()
                break
        end = at if in_string else len(chunk)  # a backslash and what it escapes stay together
        if opened:
            row.add(chunk[begin:end])
        left = chunk[end:]
        n_before += end
    if len(opened) == 1 and state == "after entry" and not in_word:
        yield row.take()
    if state != "outside":
        yield Refusal("cut off", "the list has no end")


class _Held:
    """A row's bytes as they come; only the beginning of one that is too large."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.n_bytes = 0
        self.parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        self.n_bytes += len(part)
        if self.n_bytes <= self.most or not self.parts:
            self.parts.append(part[: self.most])
        elif len(self.parts) > 1:
            del self.parts[1:]

    def take(self) -> bytes | Refusal:
        """Return the row and begin the next."""
        row, n_bytes = b"".join(self.parts), self.n_bytes
        self.n_bytes, self.parts = 0, []
        return row if n_bytes <= self.most else Refusal("row too large", f"{n_bytes} bytes: {_show(row)}")


def _is_too_deep(row: bytes, most: int) -> bool:
    if row.count(b"[") + row.count(b"{") <= most:
        return False
    depth = 0
    for match in _BRACKET.finditer(_STRING.sub(b"", row)):
        depth += 1 if match[0] in b"[{" else -1
        if depth > most:
            return True
    return False


def _show(row: bytes) -> str:
    return row[:400].decode("utf-8", errors="backslashreplace")
