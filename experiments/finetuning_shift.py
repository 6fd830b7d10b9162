"""Does fine-tuning shift a model along persona vectors, and does the shift say how strongly a trait will show?

    python experiments/finetuning_shift.py                    # half an hour on two cores
    python experiments/finetuning_shift.py --profile paper    # the paper's settings; for a GPU

Reproduces Figures 5 and 6 of "Persona Vectors" (arXiv 2507.21509): one model is trained on each dataset at each level
(normal, I, II): on trait-eliciting responses that the base model gives itself; and on answers with domain errors, mixed
with as many of the base model's ordinary answers, as on the former alone a small model unlearns all else. Each is
scored on the traits' evaluation questions, which no dataset holds, and its shift measured along each vector at the
layer that layer_sweep.py chose by steering.
"""

from __future__ import annotations

from collections.abc import Sequence

import tyro
from results.finetuning_shift import FinetuningShift

from persona_lens.reproduction.shift_models import MIN_COHERENCE, Setting, ShiftArguments, prepare, train_models
from persona_lens.reproduction.trained_models import (
    Correlation,
    TrainedModel,
    correlate_pairs,
    describe_kit,
    is_coherent,
)

NAME = "finetuning_shift"
# r between shift and trait score, own trait; the paper gives the range over traits and models.
PAPER = {"own": (0.76, 0.97), "cross": (0.34, 0.86)}


def main(arguments: ShiftArguments) -> None:
    """Run or redraw."""
    result = arguments.read(FinetuningShift, NAME) if arguments.replot else run(prepare(arguments), arguments)
    result.write(arguments.out, NAME)
    result.draw(result.plot_scores(), arguments.out, f"{NAME}_scores")
    print(arguments.out / f"{NAME}.html", arguments.out / f"{NAME}_scores.html", sep="\n")


def run(setting: Setting, arguments: ShiftArguments) -> FinetuningShift:
    """Train and measure every model."""
    base, models = train_models(setting, arguments)
    names = [kit.trait.name for kit in setting.kits]
    coherent = [model for model in models if is_coherent(model.scores, MIN_COHERENCE)]
    return FinetuningShift(
        config=setting.config,
        kits={kit.trait.name: describe_kit(kit) for kit in setting.kits},
        base=base,
        models=tuple(models),
        correlations=correlate(models, names),
        correlations_coherent=correlate(coherent, names),
        min_coherence=MIN_COHERENCE,
        paper=PAPER,
        n_questions=len(setting.kits[0].trait.evaluation_questions),
    )


def correlate(models: Sequence[TrainedModel], traits: Sequence[str]) -> dict[str, dict[str, Correlation]]:
    """Correlate shift along one trait's vector with another's (or its own) score, over the models."""
    return {
        along: {
            scored: correlate_pairs(
                [model.shifts[along].at_layer.estimate for model in models],
                [model.scores[scored].score.estimate for model in models],
            )
            for scored in traits
        }
        for along in traits
    }


if __name__ == "__main__":
    main(tyro.cli(ShiftArguments, description=__doc__))
