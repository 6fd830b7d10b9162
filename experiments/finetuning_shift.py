"""Does fine-tuning shift a model along persona vectors, and does the shift say how strongly a trait will show?

    python experiments/finetuning_shift.py                    # half an hour on two cores
    python experiments/finetuning_shift.py --tiny             # a minute: does it run?
    python experiments/finetuning_shift.py --profile paper    # the paper's settings; for a GPU
    python experiments/finetuning_shift.py --replot           # redraw from figures/finetuning_shift.json

Reproduces Figures 5 and 6 of "Persona Vectors" (arXiv 2507.21509): one model is trained on each dataset at each level
(normal, I, II): on trait-eliciting responses that the base model gives itself; and on answers with domain errors, mixed
with as many of the base model's ordinary answers, as on the former alone a small model unlearns all else. Each is
scored on the traits' evaluation questions, which no dataset holds, and its shift measured along each vector at the
layer that layer_sweep.py chose by steering. Killed at any point, the same command goes on where it was.
"""

from __future__ import annotations

from typing import Annotated, Any

import tyro
from _figures import write_figure
from _measuring import read_results
from _trained_models import (
    MIN_COHERENCE,
    Setting,
    ShiftArguments,
    correlate_pairs,
    is_coherent,
    prepare,
    train_models,
)

from persona_lens.plots import plot_finetuning_scores, plot_finetuning_shift

NAME = "finetuning_shift"
# r between shift and trait score, own trait; the paper gives the range over traits and models.
PAPER = {"own": (0.76, 0.97), "cross": (0.34, 0.86)}


def main(arguments: Annotated[ShiftArguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw."""
    path = arguments.out / f"{NAME}.json"
    content = read_results(path) if arguments.replot else run(prepare(arguments), arguments)
    write_figure(plot_finetuning_shift(content), content, arguments.out, NAME)
    write_figure(plot_finetuning_scores(content), None, arguments.out, f"{NAME}_scores")
    print(path.with_suffix(".html"), arguments.out / f"{NAME}_scores.html", sep="\n")


def run(setting: Setting, arguments: ShiftArguments) -> dict[str, Any]:
    """Train and measure every model; return everything as JSON-able values."""
    trained = train_models(setting, arguments)
    rows, names = trained.models, [kit.trait.name for kit in setting.kits]
    return {
        "config": setting.config,
        "kits": {kit.trait.name: kit.describe() for kit in setting.kits},
        "base": trained.base,
        "models": rows,
        "correlations": correlate(rows, names),
        "correlations_coherent": correlate([row for row in rows if is_coherent(row)], names),
        "min_coherence": MIN_COHERENCE,
        "paper": PAPER,
        "n_questions": len(setting.kits[0].trait.evaluation_questions),
    }


def correlate(rows: list[dict[str, Any]], traits: list[str]) -> dict[str, dict[str, Any]]:
    """Correlate shift along one trait's vector with another's (or its own) score, over the models."""
    return {
        along: {
            scored: correlate_pairs(
                [row["shifts"][along]["at_layer"]["estimate"] for row in rows],
                [row["scores"][scored]["score"]["estimate"] for row in rows],
            )
            for scored in traits
        }
        for along in traits
    }


if __name__ == "__main__":
    main(tyro.cli(ShiftArguments, description=__doc__))
