"""``persona-lens traits``: what there is to begin with."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from persona_lens.cli.arguments import Traits
from persona_lens.cli.terminal import print_json, print_line, print_table
from persona_lens.traits.library import list_traits, load_trait
from persona_lens.traits.written import list_written_traits


def run(arguments: Traits) -> int:
    """Print them."""
    written, settings = list_written_traits(), read_ready_settings()
    names = list_traits()
    descriptions = {name: load_trait(name).description for name in names}
    if arguments.json:
        found = [
            {"trait": name, "description": descriptions[name], "written_answers": name in written,
             "ready_vector": settings.get(name)}
            for name in names
        ]  # fmt: skip
        print_json({"traits": found})
        return 0
    tried = {name: f"{one['layer']} × {one['coefficient']:.2f}" for name, one in settings.items()}
    print_table(
        "Traits",
        ("trait", "what it is", "written answers", "ready vector: layer × coefficient"),
        [(name, descriptions[name], "yes" if name in written else "", tried.get(name, "")) for name in names],
    )
    print_line('Next: persona-lens steer "How are you?" --trait humorous')
    return 0


def read_ready_settings() -> dict[str, dict[str, Any]]:
    """Return where each ready vector was tried, out of the files' headers: reading a vector takes torch, and seconds.

    A safetensors file begins with the length of its header, eight bytes, and the header, JSON.
    """
    found = {}
    for file in sorted((files("persona_lens") / "data" / "vectors").iterdir(), key=lambda one: one.name):
        if file.name.endswith(".safetensors"):
            data = file.read_bytes()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            content = json.loads(header["__metadata__"]["persona_lens"])
            found[file.name.removesuffix(".safetensors")] = content["provenance"]["setting"]
    return found
