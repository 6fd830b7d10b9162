"""Does the projection difference of a dataset say, before anyone trains on it, which traits training will strengthen?

    python experiments/projection_difference.py           # minutes after finetuning_shift.py, else half an hour

Reproduces Figures 8, 17, 21 and 23 of "Persona Vectors" (arXiv 2507.21509): every dataset of finetuning_shift.py is
screened with the base model alone, and its projection difference set against the trait score and the shift of the model
that was trained on it. Beside it stand the two approximations that need less sampling, a random subset and the last
prompt token in place of the base model's response, and the raw projection. The trait datasets are the written answers
that the vectors are read from, so their ΔP is high by construction. Levels of one dataset are not independent, so
datasets are what the intervals resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from results.projection_difference import TARGETS, Outcome, Predictors, ProjectionDifference, ScreenedDataset

import persona_lens as pl
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.shift_models import MIN_COHERENCE, ShiftArguments, prepare, train_models
from persona_lens.reproduction.trained_models import Correlation, correlate_pairs, describe_kit, is_coherent
from persona_lens.screening import Screening, ScreenSettings
from persona_lens.statistics import bootstrap_mean

NAME = "projection_difference"
# ΔP against the score, over datasets, for the paper's four further traits (Fig. 19); against the shift, over its first
# three traits and two models.
PAPER = {"score": (0.79, 0.94), "shift": (0.41, 0.95)}
PREDICTORS = ("exact", "subset", "last_prompt", "raw")
SUBSET_FRACTION = 0.25


def main(arguments: ShiftArguments) -> None:
    """Run or redraw."""
    result = arguments.read(ProjectionDifference, NAME) if arguments.replot else run(arguments)
    result.write(arguments.out, NAME)
    print(*(arguments.out / f"{NAME}{ending}.html" for ending in result.list_figures()), sep="\n")


def run(arguments: ShiftArguments) -> ProjectionDifference:
    """Screen every dataset and set it against the trained models."""
    setting = prepare(arguments)
    _, models = train_models(setting, arguments)
    vectors = {kit.trait.name: kit.vector for kit in setting.kits}
    layers = {kit.trait.name: kit.layer for kit in setting.kits}
    settings = ScreenSettings(max_response_tokens=setting.profile.max_row_tokens)
    rows = []
    for model, (name, level) in zip(models, setting.list_datasets(), strict=True):
        screened = pl.screen(
            setting.model, setting.make_rows(name, level), vectors,
            setting.run.folder / "screened" / f"{name}-{level}", layers=layers, settings=settings,
            run=setting.run,
        )  # fmt: skip
        rows.append(
            ScreenedDataset(
                dataset=name,
                level=level,
                kind=model.kind,
                counts=screened.counts,
                n_cut=screened.n_cut,
                predictors={trait: predict(screened, trait, arguments.seed) for trait in vectors},
                outcome={
                    trait: Outcome(
                        model.scores[trait].score,
                        model.scores[trait].coherence,
                        model.shifts[trait].at_layer,
                        model.scores[trait].second,
                    )
                    for trait in vectors
                },
            )
        )
    coherent = [row for row, model in zip(rows, models, strict=True) if is_coherent(model.scores, MIN_COHERENCE)]
    return ProjectionDifference(
        config={**setting.config, "experiment": NAME, "screening": asdict(settings)},
        kits={kit.trait.name: describe_kit(kit) for kit in setting.kits},
        datasets=tuple(rows),
        correlations=correlate(rows, list(vectors)),
        correlations_coherent=correlate(coherent, list(vectors)),
        min_coherence=MIN_COHERENCE,
        subset_fraction=SUBSET_FRACTION,
        paper=PAPER,
    )


def predict(screened: Screening, trait: str, seed: int) -> Predictors:
    """Return what each way says of a dataset, with 95 % intervals over samples; and how the ways agree by sample."""
    n_subset = max(2, round(SUBSET_FRACTION * screened.counts["scored"]))
    check = screened.check_approximations(trait, n_subset=n_subset, seed=seed)
    raw = bootstrap_mean(screened.values(trait, "raw"))
    return Predictors(check.exact, check.subset, check.last_prompt, raw, check.r_last_prompt, check.r_raw)


def correlate(rows: Sequence[ScreenedDataset], traits: Sequence[str]) -> dict[str, dict[str, dict[str, Correlation]]]:
    """Correlate each predictor with what was measured of the trained models, over the datasets."""
    targets = [
        name for name in TARGETS if all(getattr(row.outcome[t], name) is not None for row in rows for t in traits)
    ]
    return {
        trait: {
            target: {
                predictor: correlate_pairs(
                    [getattr(row.predictors[trait], predictor).estimate for row in rows],
                    [getattr(row.outcome[trait], target).estimate for row in rows],
                    [row.dataset for row in rows],
                )
                for predictor in PREDICTORS
            }
            for target in targets
        }
        for trait in traits
    }


if __name__ == "__main__":
    enter(main, ShiftArguments, __doc__)
