"""The entrance that all scripts of experiments/ share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from persona_lens.ending import run_to_end

A = TypeVar("A")


def enter(main: Callable[[A], None], arguments: type[A], description: str | None) -> None:
    """Read a script's arguments, run it, and leave with its exit status; broken off, it says how to go on."""
    given = tyro.cli(arguments, description=description)
    sys.exit(run_to_end(lambda: main(given), "What is finished is kept: the same command goes on where it was."))
