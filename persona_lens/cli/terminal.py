"""What commands show: tables and coloured text in a terminal, or one JSON object for other programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# As on the pages: orange towards the trait, blue away from it, told apart by colour-blind readers too.
_TOWARDS, _AWAY = (230, 159, 0), (86, 180, 233)
_PAPER = (255, 255, 255)
_INK = "#000000"


class _Console(Console):
    """One whose reader may go away, as `head` does."""

    def on_broken_pipe(self) -> None:
        """Leave it to the command's end: Rich's own way out has the status of a judge that is not valid."""
        raise BrokenPipeError


def make_console() -> Console:
    """Return a console that is as wide as the terminal; what it prints is plain where that is none."""
    return _Console(highlight=False)


def print_nothing(text: str) -> None:
    """Take the place of ``print`` where only JSON is wanted."""


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object; NaN is null."""
    print(json.dumps(_without_nan(content), ensure_ascii=False, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table as wide as the terminal; where that is none, lines of cells with tabs between."""
    console = _Console()
    if not console.is_terminal:
        for line in ([title.strip()], columns, *rows):
            print("\t".join(" ".join(str(cell).split()) for cell in line))  # the console would make spaces of tabs
        return
    table = Table(*columns, title=title, title_justify="left", show_lines=False, pad_edge=False)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    console.print(table)


def print_line(text: str) -> None:
    """Print a line; nothing in it is markup. It is wrapped where there is a terminal alone."""
    console = _Console()
    console.print(Text(text), soft_wrap=not console.is_terminal)


def colour_tokens(tokens: Sequence[str], strengths: Sequence[float]) -> Text:
    """Return tokens on a ground that is orange at 1, blue at -1 and the paper's at 0."""
    text = Text()
    for token, strength in zip(tokens, strengths, strict=True):
        share = min(1.0, abs(strength))
        colour = _TOWARDS if strength > 0 else _AWAY
        mixed = [round(share * one + (1 - share) * paper) for one, paper in zip(colour, _PAPER, strict=True)]
        text.append(token, style=f"{_INK} on #{mixed[0]:02x}{mixed[1]:02x}{mixed[2]:02x}")
    return text


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, dict):
        return {str(key): _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value
