"""Write the default judges of the embedded model that come with the package, one for each trait with written examples.

    python experiments/ready_judges.py      # a minute a trait on two cores

They are what `pl.judges.default_judge` would make of the same model. How far each may be believed is another question:
experiments/judge_validation.py asks it of judges that are made in the same way.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import persona_lens as pl
from persona_lens.judges.default import make_judge_parts
from persona_lens.reproduction.arguments import BaseArguments
from persona_lens.traits import list_written_traits

FOLDER = Path("persona_lens/data/judges")


def main(arguments: BaseArguments) -> None:
    """Make each judge and write it."""
    model = arguments.load_model()
    FOLDER.mkdir(exist_ok=True)
    for trait in arguments.trait or list_written_traits():
        make_judge_parts(model, pl.load_trait(trait)).save(FOLDER / f"{trait}.json")
        print(FOLDER / f"{trait}.json")


if __name__ == "__main__":
    main(tyro.cli(BaseArguments, description=__doc__))
