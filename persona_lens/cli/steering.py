"""``persona-lens steer``: one question, answered as the model is and steered."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from persona_lens.cli.choosing import Way, choose_sampling, find_way
from persona_lens.cli.terminal import print_json, print_nothing
from persona_lens.errors import InvalidArgumentError
from persona_lens.interventions.hooks import steering
from persona_lens.models.engine.answers import ask
from persona_lens.models.engine.sampling import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import EMBEDDED_MODEL, load_model


@dataclass(frozen=True)
class Steer:
    """Ask a question twice: the model as it is, and steered along a trait's vector.

    With --trait the vector is the one that comes with the package for the embedded model, at the layer and coefficient
    at which it was tried. For another model extract one first: persona-lens extract.

    Try:

    persona-lens steer "I failed my exam." --trait empathy

    persona-lens steer "I failed my exam." --trait empathy --coefficient -1.5

    persona-lens steer "How was your day?" --vector evil.safetensors --model Qwen/Qwen2.5-7B-Instruct --layer 19
    --coefficient 2
    """

    question: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUESTION")]
    """What is asked."""
    trait: str | None = None
    """A trait with a ready vector: see `persona-lens traits`."""
    vector: Path | None = None
    """Or a file that `persona-lens extract` wrote."""
    model: str = EMBEDDED_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    layer: int | None = None
    """Zero-based block index; the one that was tried if left out."""
    coefficient: float | None = None
    """How many of the vector's lengths are added; below zero steers away."""
    system: str | None = None
    """System prompt."""
    max_new_tokens: int = 96
    """Most tokens of an answer."""
    seed: int = 0
    """Another seed draws other answers."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""

    def run(self) -> int:
        """Print both answers as they come."""
        if not self.question.strip():
            raise InvalidArgumentError.of("QUESTION", "hold some text", self.question)
        way = find_way(self.trait, self.vector, self.layer, self.coefficient)
        model = load_model(self.model)
        way.vector.check_model(model)
        say = print_nothing if self.json else print
        like = choose_sampling(model)
        sampling = Sampling(self.max_new_tokens, like.temperature, seed=self.seed)
        head = f"{way.vector.trait}, layer {way.layer} × {way.coefficient:.3g}"
        say("unsteered:")
        plain = self._ask(model, sampling)
        say(f"\nsteered ({head}):")
        steered = self._ask_steered(model, way, sampling)
        if self.json:
            print_json(
                {
                    "question": self.question, "trait": way.vector.trait, "layer": way.layer,
                    "coefficient": way.coefficient, "unsteered": plain, "steered": steered,
                }
            )  # fmt: skip
        return 0

    def _ask(self, model: HookedModel, sampling: Sampling) -> str:
        stream = None if self.json else sys.stdout
        return ask(model, self.question, system=self.system, sampling=sampling, stream=stream)

    def _ask_steered(self, model: HookedModel, way: Way, sampling: Sampling) -> str:
        with steering(model, way.vector, layer=way.layer, coefficient=way.coefficient, positions="response"):
            return self._ask(model, sampling)
