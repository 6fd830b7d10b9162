"""``persona-lens sweep``: at which layer does a vector steer?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from persona_lens.cli.choosing import choose_sampling, choose_source, make_vector, read_trait
from persona_lens.cli.terminal import print_json, print_line, print_table
from persona_lens.errors import InvalidArgumentError
from persona_lens.evaluation.sweep import SweepResult, sweep_layers
from persona_lens.files import write_bytes_atomically
from persona_lens.models.loading import EMBEDDED_MODEL, load_model
from persona_lens.run import Run
from persona_lens.statistics.missing import mean_interval
from persona_lens.traits.written import list_written_traits
from persona_lens.vectors.persona_vector import PersonaVector


@dataclass(frozen=True)
class Sweep:
    """Steer at several layers with several strengths, score what the model then says, and choose.

    Writes sweep.json, sweep.html and vector.safetensors with the chosen layer and coefficient in it, so that
    `persona-lens steer --vector` needs neither. Beside the vector stand random directions of equal length. The choice
    is made on the questions that are shown, so its score flatters: experiments/layer_sweep.py confirms a choice on
    fresh questions with a second judge.

    Try:

    persona-lens sweep --trait humorous --out sweep

    persona-lens sweep --trait my_trait.json --vector my_trait.safetensors --out sweep --layers 8 12 16
    """

    trait: str
    """Bundled trait's name, or path of a trait's JSON file."""
    out: Path
    """Folder for what is written."""
    vector: Path | None = None
    """A file that `persona-lens extract` wrote; made anew if left out."""
    model: str = EMBEDDED_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    layers: tuple[int, ...] = ()
    """Zero-based block indices; every third if left out."""
    coefficients: tuple[float, ...] = (1.0, 2.0)
    """How many of the vector's lengths are added."""
    questions: int = 10
    """How many of the trait's evaluation questions are asked."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""

    def run(self) -> int:
        """Sweep, choose, write."""
        trait = read_trait(self.trait)
        if self.questions < 1:
            raise InvalidArgumentError.of("--questions", "be at least 1", self.questions)
        given = None if self.vector is None else PersonaVector.load(self.vector)
        self.out.mkdir(parents=True, exist_ok=True)  # before any model runs
        model = load_model(self.model)
        vector = make_vector(model, trait, choose_source(trait), Run()) if given is None else given
        swept = sweep_layers(
            model, trait, vector, coefficients=self.coefficients,
            layers=self.layers or range(1, model.cfg.n_layers, 3),
            questions=trait.evaluation_questions[: self.questions], sampling=choose_sampling(model),
        )  # fmt: skip
        choice = swept.choose_coherent() or swept.choose_by_score()
        setting = {"layer": choice.layer, "coefficient": choice.coefficient, "coherence": choice.coherence.estimate}
        replace(vector, provenance=vector.provenance | {"setting": setting}).save(self.out / "vector.safetensors")
        swept.save(self.out / "sweep.json")
        page = swept.plot().to_html(include_plotlyjs=True)  # looked at where there is no network too
        write_bytes_atomically(self.out / "sweep.html", page.encode())
        unsteered = mean_interval(swept.baseline_scores)
        random = swept.null_interval(choice.coefficient)
        if self.json:
            print_json({"trait": trait.name, "out": str(self.out), "rule": choice.rule, **setting,
                        "score": choice.score.estimate, "unsteered": unsteered.estimate, "random": random.estimate,
                        "judge": swept.judge})  # fmt: skip
            return 0
        show(swept)
        print_line(
            f"Chosen ({choice.rule}): layer {choice.layer} × {choice.coefficient:g}, score {choice.score:.0f}, "
            f"coherence {choice.coherence:.0f}. Unsteered: score {unsteered:.0f}; random directions of that length: "
            f"{random:.0f}"
        )
        print_line(
            f"Scored by the {swept.judge}, on the questions that chose. Read some answers before you believe it"
            + ("" if trait.name in list_written_traits() else ": for this trait no judge was measured")
            + "."
        )
        print_line(f'Next: persona-lens steer "How are you?" --vector {self.out / "vector.safetensors"}')
        return 0


def show(swept: SweepResult) -> None:
    """Print the mean score and coherence of each layer and coefficient."""
    scores, coherences = swept.scores.nanmean(dim=-1), swept.coherences.nanmean(dim=-1)
    print_table(
        f"{swept.trait}: mean score of 100 (coherence)",
        ("layer", *(f"× {one:g}" for one in swept.coefficients)),
        [
            (str(layer), *(f"{s:.0f} ({c:.0f})" for s, c in zip(scores[i], coherences[i], strict=True)))
            for i, layer in enumerate(swept.layers)
        ],
    )
