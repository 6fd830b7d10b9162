"""Does fine-tuning shift a model along persona vectors, and does the shift say how strongly a trait will show?

    python experiments/finetuning_shift.py                    # half an hour on two cores
    python experiments/finetuning_shift.py --profile brief    # eight minutes: a first look
    python experiments/finetuning_shift.py --profile paper    # the paper's settings; for a GPU

Reproduces Figures 5 and 6 of "Persona Vectors" (arXiv 2507.21509): one model is trained on each trait's written answers
at each level (ordinary, mild, overt), as the paper's are a strong writer's; for a trait without written examples, on
the base model's own. With --domain, answers with domain errors are another dataset, mixed with as many of the base
model's ordinary answers. Each model is scored by two judges on the traits' evaluation questions, which no dataset
holds, and its shift measured along each vector. Shift and score are taken less those of the model trained on the same
questions' ordinary answers, as any training moves a model.
"""

from __future__ import annotations

from collections.abc import Sequence

from results.finetuning_shift import FinetuningShift, ShiftCorrelations, find_normal, list_raised, raise_of

from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.shift_models import MIN_COHERENCE, Setting, ShiftArguments, prepare, train_models
from persona_lens.reproduction.trained_models import TrainedModel, compare_correlations, correlate_pairs, describe_kit

NAME = "finetuning_shift"
# r between shift and trait score, own trait; the paper gives the range over traits and models.
PAPER = {"own": (0.76, 0.97), "cross": (0.34, 0.86)}


def main(arguments: ShiftArguments) -> None:
    """Run or redraw."""
    result = arguments.read(FinetuningShift, NAME) if arguments.replot else run(prepare(arguments), arguments)
    result.write(arguments.out, NAME)
    print(arguments.out / f"{NAME}.html", arguments.out / f"{NAME}_scores.html", sep="\n")


def run(setting: Setting, arguments: ShiftArguments) -> FinetuningShift:
    """Train and measure every model."""
    base, models = train_models(setting, arguments)
    names = [kit.trait.name for kit in setting.kits]
    labels = ["first", "second"] if all(kit.second for kit in setting.kits) else ["first"]
    return FinetuningShift(
        config=setting.config,
        kits={kit.trait.name: describe_kit(kit) for kit in setting.kits},
        base=base,
        models=tuple(models),
        correlations={label: correlate(models, names, label) for label in labels},
        min_coherence=MIN_COHERENCE,
        paper=PAPER,
        n_questions=len(setting.kits[0].trait.evaluation_questions),
    )


def correlate(models: Sequence[TrainedModel], traits: Sequence[str], label: str) -> ShiftCorrelations:
    """Correlate shifts with one judge's scores, each less those of the matched normal training."""
    rows = list_raised(models)
    groups = [row.dataset for row in rows]
    normal = [find_normal(models, row.dataset) for row in rows]
    shifts = {
        trait: [
            row.shifts[trait].at_layer.estimate - zero.shifts[trait].at_layer.estimate
            for row, zero in zip(rows, normal, strict=True)
        ]
        for trait in traits
    }
    rises = {
        trait: [
            raise_of(row.scores[trait], zero.scores[trait], label).estimate
            for row, zero in zip(rows, normal, strict=True)
        ]
        for trait in traits
    }

    def leave_out(trait: str, dataset: str) -> float:
        kept = [index for index, group in enumerate(groups) if group != dataset]
        x, y = ([side[trait][index] for index in kept] for side in (shifts, rises))
        return correlate_pairs(x, y, [groups[index] for index in kept]).estimate

    return ShiftCorrelations(
        r={
            along: {scored: correlate_pairs(shifts[along], rises[scored], groups) for scored in traits}
            for along in traits
        },
        own_less_other={
            trait: {
                other: compare_correlations(shifts[trait], shifts[other], rises[trait], groups)
                for other in traits
                if other != trait
            }
            for trait in traits
        },
        leave_one_out={trait: {name: leave_out(trait, name) for name in dict.fromkeys(groups)} for trait in traits},
    )


if __name__ == "__main__":
    enter(main, ShiftArguments, __doc__)
