"""``persona-lens extract``: a trait's vector, into a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from persona_lens.cli.choosing import Source, choose_source, make_vector, read_trait
from persona_lens.cli.terminal import print_json, print_line
from persona_lens.models.loading import EMBEDDED_MODEL, load_model
from persona_lens.run import Run


@dataclass(frozen=True)
class Extract:
    """Find a trait's direction at every layer of a model and write it to a file.

    From written answers where there are some (seconds), else from the model's own responses under contrasting system
    prompts, as in the paper (minutes).

    Try:

    persona-lens extract --trait evil --out evil.safetensors

    persona-lens extract --trait evil --source sampled --out evil.safetensors --model Qwen/Qwen2.5-7B-Instruct

    persona-lens extract --trait my_trait.json --out my_trait.safetensors
    """

    trait: str
    """Bundled trait's name, or path of a trait's JSON file."""
    out: Path
    """The file: safetensors, its description as JSON in the header."""
    source: Source | None = None
    """Where the vector is from; written answers where there are some, if left out."""
    model: str = EMBEDDED_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""

    def run(self) -> int:
        """Make the vector, write it, say how far it can be trusted."""
        trait = read_trait(self.trait)
        source = choose_source(trait, self.source)
        self.out.parent.mkdir(parents=True, exist_ok=True)  # before any model runs
        model = load_model(self.model)
        vector = make_vector(model, trait, source, Run())
        vector.save(self.out)
        cosines = vector.split_half_cosine[vector.position]
        best = int(cosines.argmax())
        if self.json:
            print_json(
                {
                    "trait": trait.name, "out": str(self.out), "model": vector.model.name, "pairs": vector.counts.pairs,
                    "kept": vector.counts.kept, "norms": vector.norms.tolist(), "split_half_cosine": cosines.tolist(),
                }
            )  # fmt: skip
            return 0
        print_line(repr(vector))
        print_line(
            f"Two halves of the questions agree best at layer {best} (cosine {float(cosines[best]):.2f}); under about "
            "0.5 the direction depends on which questions were asked."
        )
        print_line(f"Wrote {self.out}. Next: persona-lens sweep --trait {self.trait} --vector {self.out} --out sweep")
        return 0
