"""``persona-lens traits``: what there is to begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from persona_lens.cli.terminal import print_json, print_line, print_table
from persona_lens.traits.library import list_traits, load_trait
from persona_lens.traits.written import list_written_traits
from persona_lens.vectors.ready import list_ready_vectors, load_vector


@dataclass(frozen=True)
class Traits:
    """List the traits that come with the package.

    A trait with written answers has judges that can be measured before they are believed; one with a ready vector can
    be steered by at once (`persona-lens steer`). A trait of your own is a JSON file with the same keys as these.

    Try:

    persona-lens traits

    persona-lens traits --json
    """

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""

    def run(self) -> int:
        """Print them."""
        written, ready = list_written_traits(), list_ready_vectors()
        names = list_traits()
        descriptions = {name: load_trait(name).description for name in names}
        settings = {name: load_vector(name).provenance["setting"] for name in ready}
        if self.json:
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
