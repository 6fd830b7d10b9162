"""The command's entrance: subcommands, and what an error looks like.

Each command's arguments and work are imported when it is asked for: a model's libraries take seconds to load.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import tyro

from persona_lens.ending import WRONG, run_to_end

_ARGUMENTS = "persona_lens.cli.arguments"


@dataclass(frozen=True)
class Command:
    """Where a command's parts are, and what is said of it.

    Args:
        summary: What it does, in a line.
        kind: Its arguments' class, in ``persona_lens.cli.arguments``.
        work: The module whose ``run`` takes them.
        go_on: What to say to someone who breaks it off.
    """

    summary: str
    kind: str
    work: str
    go_on: str = "Nothing was written."

    def load_arguments(self) -> Any:
        """Import the arguments' class."""
        return getattr(import_module(_ARGUMENTS), self.kind)

    def run(self, arguments: Any) -> int:
        """Import the work and do it."""
        status: int = import_module(self.work).run(arguments)
        return status


_GOES_ON = "What is finished is kept: the same command goes on where it was."
COMMANDS = {
    "demo": Command("every ready vector at work beside the model as it is", "Demo", "persona_lens.cli.demo"),
    "traits": Command("what comes with the package", "Traits", "persona_lens.cli.listing"),
    "doctor": Command("does a model run as it should, and what to do if not", "Doctor", "persona_lens.cli.doctor"),
    "steer": Command("one question, answered unsteered and steered", "Steer", "persona_lens.cli.steering"),
    "chat": Command("a watched conversation: tokens coloured as they come, steered as you go", "Chat",
                    "persona_lens.cli.chatting", "What /save wrote is kept."),
    "app": Command(
        "a page to chat, steer and watch on this machine", "App", "persona_lens.cli.serving", "The page is closed."
    ),
    "extract": Command("a trait's direction, into a file", "Extract", "persona_lens.cli.extracting", _GOES_ON),
    "sweep": Command("where to steer, and how strongly", "Sweep", "persona_lens.cli.sweeping", _GOES_ON),
    "validate": Command("may a judge be believed?", "Validate", "persona_lens.cli.validating"),
    "convert": Command("a vector's file, from one program's to another's", "Convert", "persona_lens.cli.converting"),
    "screen": Command(
        "training data screened before anyone trains on it", "Screen", "persona_lens.cli.screening", _GOES_ON
    ),
}  # fmt: skip
HELP = """usage: persona-lens COMMAND [options]

Character traits of language models as directions: find them, steer by them, screen data for them.

{commands}

Begin with `persona-lens demo`: under a minute, no key, no GPU, nothing to download.
`persona-lens COMMAND --help` has each command's options; --version says which version this is.
Completion for the shell: persona-lens --tyro-print-completion bash (or zsh, tcsh).
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command and leave with its exit status: 2 where an argument or a file is wrong."""
    given = sys.argv[1:] if arguments is None else arguments
    name = given[0] if given else "--help"
    command = COMMANDS.get(name)
    sys.exit(run_to_end(lambda: _run(name, command, given), command.go_on if command else ""))


def _run(name: str, command: Command | None, given: list[str]) -> int:
    if command is not None:
        kind = command.load_arguments()
        # What is left out is left out, and nobody need type None.
        config = (tyro.conf.DisallowNone,)
        return command.run(tyro.cli(kind, prog=f"persona-lens {name}", args=given[1:], config=config))
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {known:{width}}  {one.summary}" for known, one in COMMANDS.items()]
        print(HELP.format(commands="\n".join(lines)), end="")
        return 0
    if name == "--version":
        print(f"persona-lens {version('persona-lens')}")
        return 0
    if name.startswith("--tyro-"):  # completion, which needs every command's arguments
        kinds = {known: one.load_arguments() for known, one in COMMANDS.items()}
        tyro.extras.subcommand_cli_from_dict(kinds, prog="persona-lens", args=given, config=(tyro.conf.DisallowNone,))
        return 0
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"Did you mean {near[0]}?" if near else "`persona-lens --help` says what each does."
    print(f"`COMMAND` must be one of {', '.join(COMMANDS)}. Got {name!r}. {hint}", file=sys.stderr)
    return WRONG
