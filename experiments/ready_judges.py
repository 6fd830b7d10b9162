"""Write the judges of the embedded model that come with the package, for each trait with written examples.

    python experiments/ready_judges.py      # two minutes a trait on two cores

The default judge is what `pl.judges.default_judge` would make of the same model; the measured ones are those that the
other scripts would make, with what validation found of them. Scripts that ask for the same then need not wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import persona_lens as pl
from persona_lens.judges.default import make_judge_parts
from persona_lens.reproduction.arguments import BaseArguments, read_traits
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import load_encoders, make_judges
from persona_lens.reproduction.training import TRAINING
from persona_lens.traits import list_written_traits

FOLDER = Path("persona_lens/data/judges")


@dataclass(frozen=True)
class Arguments(BaseArguments):
    """Write all traits' judges, or some."""

    kind: Literal["default", "measured", "both"] = "both"
    """Which judges."""


def main(arguments: Arguments) -> None:
    """Make each judge and write it."""
    model = arguments.load_model()
    profile = TRAINING["quick"]
    encoders = load_encoders(model)
    (FOLDER / "measured").mkdir(parents=True, exist_ok=True)
    for trait in read_traits(arguments.trait or list_written_traits(), profile.n_pairs, profile.n_questions):
        if arguments.kind != "measured":
            make_judge_parts(model, pl.load_trait(trait.name)).save(FOLDER / f"{trait.name}.json")
        if arguments.kind != "default":
            sampling = profile.sample_once(arguments.seed)
            judges = make_judges(model, trait, sampling, arguments.share(model), encoders)
            judges.save(FOLDER / "measured" / f"{trait.name}.json")
        print(trait.name)


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
