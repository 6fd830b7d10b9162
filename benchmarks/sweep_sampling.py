"""The sampling of a layer sweep against one configuration after the other, leaving the judgements out.

In the paper the judge is a remote model, so sampling is all that its own code computes: for each layer and coefficient
a forward hook and Hugging Face ``generate`` (batch 20). Ours: ``sweep_layers`` with a judge that costs nothing. The
comparison with local judgements on both sides is sweep.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from _compare import HuggingFaceWay, summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.models.loading import resolve_dtype

LAYERS, COEFFICIENTS, TOKENS, REPEATS = (9, 15, 21), (1.0, 2.0, 3.0), 24, 2


class RemoteJudge:
    """Stands for a judge elsewhere: costs no time here."""

    name = "elsewhere"

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[pl.Judgement]:
        """Say nothing of interest."""
        return [pl.Judgement(50.0, 50.0) for _ in responses]


def main() -> None:
    """Time both and write the ratio."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    model: Any = pl.load_model(backend="hooked", dtype=dtype, device="cpu")
    hugging_face = HuggingFaceWay(dtype)
    trait = pl.load_trait("evil")
    vector = pl.extract_persona_vector(model, trait, judge="none", max_new_tokens=8)
    prompts = [
        pl.encode_prompt(model.tokenizer, [{"role": "user", "content": question}]).tokens
        for question in trait.evaluation_questions
    ]
    configurations: list[tuple[int, torch.Tensor] | None] = [None]
    configurations += [(layer, c * vector.direction(layer)) for layer in LAYERS for c in COEFFICIENTS]
    # As many random directions as sweep_layers tries below.
    configurations += [(LAYERS[1], c * vector.direction(LAYERS[1]).roll(1)) for c in COEFFICIENTS]

    def sample_one_after_the_other() -> None:
        for configuration in configurations:
            with hugging_face.steered(configuration):
                hugging_face.generate(prompts, TOKENS)

    ways = {
        "persona_lens": lambda: pl.sweep_layers(
            model, trait, vector, layers=LAYERS, coefficients=COEFFICIENTS, judge=RemoteJudge(), max_new_tokens=TOKENS,
            random_directions=1, null_layers=LAYERS[1],
        ),
        "one configuration after the other": sample_one_after_the_other,
    }  # fmt: skip
    seconds = time_in_turn(ways, REPEATS)
    rows = [
        {
            "what": "layer sweep with a remote judge (sampling alone), against one configuration after the other",
            "ratio": summarize_ratio(seconds, "one configuration after the other", "persona_lens"),
            "target": "≥ 3",
        }
    ]
    details = {
        "configurations": len(configurations),
        "questions": len(prompts),
        "tokens": TOKENS,
        "rounds": REPEATS,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }
    write_benchmark("sweep_sampling", rows, pl.describe_model(model), details)


if __name__ == "__main__":
    main()
