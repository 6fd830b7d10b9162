"""``persona-lens doctor``: does a model run as it should?"""

from __future__ import annotations

from rich.text import Text

from persona_lens.cli.arguments import Doctor
from persona_lens.cli.terminal import print_json, print_line, print_table
from persona_lens.diagnosis.examination import doctor
from persona_lens.diagnosis.finding import Diagnosis
from persona_lens.models.loading import load_model

_STYLES = {"passed": "green", "FAILED": "bold red", "not checked": "yellow"}
FAILED = 1


def run(arguments: Doctor) -> int:
    """Do what was asked about the model."""
    return examine(arguments)


def examine(arguments: Doctor) -> int:
    """Load the model, examine it, print what was found."""
    model = load_model(arguments.model, backend=arguments.backend, dtype=arguments.dtype, device=arguments.device)
    found = doctor(model)
    if arguments.json:
        print_json(found.to_json() | {"passed": found.passed})
    else:
        print_found(found)
    return 0 if found.passed else FAILED


def print_found(found: Diagnosis) -> None:
    """Print a table, and below it what to do."""
    rows = [(one.name, Text(one.verdict, style=_STYLES[one.verdict]), one.seen) for one in found.findings]
    print_table(found.summary, ("check", "", "seen"), rows)
    for one in found.findings:
        if one.cure:
            print_line(f"{one.name}: {one.cure}")
    print_line(f"{found.seconds:.1f} s beside loading.")
