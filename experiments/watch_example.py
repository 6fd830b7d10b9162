"""Write the conversation that docs/howto/watch.md shows, read under four coefficients of the vectors that come along.

    python experiments/watch_example.py      # a minute and a half on two cores

One question and one draw: it shows what the page does, and is no evidence of what steering does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import persona_lens as pl
from persona_lens.reproduction.arguments import BaseArguments
from persona_lens.reproduction.entrance import enter

PAGE = Path("docs/howto/watch_example.html")
TRAITS = ("empathy", "evil")
QUESTION = "I failed my exam today. What should I do?"
COEFFICIENTS = (-1.0, 0.0, 1.0, 1.5)


@dataclass(frozen=True)
class Arguments(BaseArguments):
    """Write the example of a watched conversation."""


def main(arguments: Arguments) -> None:
    """Read the conversation and write its page."""
    model = arguments.load_model()
    vectors = {name: pl.load_vector(name) for name in TRAITS}
    ordinary = {name: pl.measure_ordinary_projections(model, vector) for name, vector in vectors.items()}
    sampling = pl.Sampling(max_new_tokens=48, temperature=0.7, seed=arguments.seed)
    read = pl.live.read_conversation(
        model, QUESTION, vectors, coefficients=COEFFICIENTS, ordinary=ordinary, sampling=sampling
    )
    read.write_html(PAGE)
    print(read, f"{PAGE.stat().st_size / 1000:.0f} kB in {PAGE}")


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
