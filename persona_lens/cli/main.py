"""The command's entrance: subcommands, and what an error looks like."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import tyro

from persona_lens.cli.demo import Demo
from persona_lens.cli.extracting import Extract
from persona_lens.cli.listing import Traits
from persona_lens.cli.screening import Screen
from persona_lens.cli.steering import Steer
from persona_lens.cli.sweeping import Sweep
from persona_lens.cli.validating import Validate
from persona_lens.errors import PersonaLensError

COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": Demo, "traits": Traits, "steer": Steer, "extract": Extract, "sweep": Sweep, "validate": Validate,
    "screen": Screen,
}  # fmt: skip
DESCRIPTION = """Character traits of language models as directions: find them, steer by them, screen data for them.

Begin with `persona-lens demo`: under a minute, no key, no GPU, nothing to download.

Completion for the shell: persona-lens --tyro-print-completion bash (or zsh, tcsh).
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command and leave with its exit status: 2 where an argument or a file is wrong."""
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--version"]:
        print(f"persona-lens {version('persona-lens')}")
        sys.exit(0)
    chosen = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="persona-lens", description=DESCRIPTION, args=given or ["--help"]
    )
    try:
        status = chosen.run()
    except (PersonaLensError, FileNotFoundError, ImportError) as error:
        print(error, file=sys.stderr)
        status = 2
    sys.exit(status)
