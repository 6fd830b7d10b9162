"""``persona-lens doctor``: does a model run as it should, and what will work on it take?"""

from __future__ import annotations

import torch
from rich.text import Text

from persona_lens.cli.arguments import Doctor
from persona_lens.cli.choosing import read_template_arguments
from persona_lens.cli.terminal import print_json, print_line, print_table
from persona_lens.diagnosis.examination import doctor
from persona_lens.diagnosis.finding import Diagnosis
from persona_lens.models.loading import load_model, resolve_dtype
from persona_lens.models.loading.placing import find_device
from persona_lens.planning import measure_hardware, plan_work

_STYLES = {"passed": "green", "FAILED": "bold red", "not checked": "yellow"}
FAILED = 1


def run(arguments: Doctor) -> int:
    """Do what was asked about the model."""
    return print_plan(arguments) if arguments.plan else examine(arguments)


def print_plan(arguments: Doctor) -> int:
    """Print what work on the model will take; status 1 if it does not fit."""
    here = arguments.hardware == "here"
    machine = measure_hardware(arguments.dtype, arguments.device) if here else arguments.hardware
    # A GPU that is planned for computes in bfloat16, whatever this machine does.
    dtype: str | torch.dtype = "bfloat16" if arguments.dtype == "auto" and not here else arguments.dtype
    if here:
        dtype = resolve_dtype(arguments.dtype, find_device(arguments.device))
    plan = plan_work(arguments.model, machine, dtype=dtype)
    if arguments.json:
        print_json(plan.to_json())
    else:
        print_line(str(plan))
    return 0 if plan.fitting_rows else FAILED


def examine(arguments: Doctor) -> int:
    """Load the model, examine it, print what was found."""
    model = load_model(
        arguments.model, backend=arguments.backend, dtype=arguments.dtype, device=arguments.device,
        template_arguments=read_template_arguments(arguments.template_arguments),
    )  # fmt: skip
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
