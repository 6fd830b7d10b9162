"""Does the projection difference of a dataset say, before anyone trains on it, which traits training will strengthen?

    python experiments/projection_difference.py           # minutes after finetuning_shift.py, else half an hour
    python experiments/projection_difference.py --tiny    # a minute or two: does it run?
    python experiments/projection_difference.py --replot  # redraw from figures/projection_difference.json

Reproduces Figures 8, 17, 21 and 23 of "Persona Vectors" (arXiv 2507.21509): every dataset of finetuning_shift.py is
screened with the base model alone, and its projection difference set against the trait score and the shift of the model
that was trained on it. Beside it stand the two approximations that need less sampling, a random subset and the last
prompt token in place of the base model's response, and the raw projection. The trait datasets are the base model's own
answers under the prompts that the vectors come from, so their ΔP is high partly by construction; the judge that scores
the models accepted their rows. Levels of one dataset are not independent, so the intervals over datasets are narrower
than they should be. Killed at any point, the same command goes on where it was.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import tyro
from _figures import write_figure
from _measuring import describe_interval, read_results
from _trained_models import MIN_COHERENCE, ShiftArguments, correlate_pairs, is_coherent, prepare, train_models

import persona_lens as pl
from persona_lens.plots import plot_predictors, plot_projection_difference
from persona_lens.statistics import bootstrap_mean

NAME = "projection_difference"
# ΔP against the score, over datasets, for the paper's four further traits (Fig. 19); against the shift, over its first
# three traits and two models.
PAPER = {"score": (0.79, 0.94), "shift": (0.41, 0.95)}
PREDICTORS = ("exact", "subset", "last_prompt", "raw")
SUBSET_FRACTION = 0.25


def main(arguments: Annotated[ShiftArguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw."""
    path = arguments.out / f"{NAME}.json"
    content = read_results(path) if arguments.replot else run(arguments)
    write_figure(plot_projection_difference(content), content, arguments.out, NAME)
    write_figure(plot_predictors(content), None, arguments.out, f"{NAME}_approximations")
    print(path.with_suffix(".html"), arguments.out / f"{NAME}_approximations.html", sep="\n")


def run(arguments: ShiftArguments) -> dict[str, Any]:
    """Screen every dataset and set it against the trained models; return everything as JSON-able values."""
    setting = prepare(arguments)
    trained = train_models(setting, arguments)
    vectors = {kit.trait.name: kit.vector for kit in setting.kits}
    layers = {kit.trait.name: kit.layer for kit in setting.kits}
    settings = pl.screening.ScreenSettings(max_response_tokens=setting.profile.max_row_tokens)
    rows = []
    for model in trained.models:
        name, level = model["dataset"], model["level"]
        screened = pl.screen(
            setting.model, setting.make_rows(name, level), vectors,
            setting.store.folder / "screened" / f"{name}-{level}", layers=layers, settings=settings,
            progress=pl.show_progress,
        )  # fmt: skip
        kept = {key: model[key] for key in ("dataset", "level", "kind")}
        outcome = {
            trait: {
                "score": model["scores"][trait]["score"],
                "coherence": model["scores"][trait]["coherence"],
                "shift": model["shifts"][trait]["at_layer"],
            }
            for trait in vectors
        }
        rows.append(
            {
                **kept,
                "counts": screened.counts,
                "n_cut": screened.n_cut,
                "predictors": {trait: predict(screened, trait, arguments.seed) for trait in vectors},
                "outcome": outcome,
            }
        )
    coherent = [row for row, model in zip(rows, trained.models, strict=True) if is_coherent(model)]
    return {
        "config": {**setting.config, "experiment": NAME, "screening": asdict(settings)},
        "kits": {kit.trait.name: kit.describe() for kit in setting.kits},
        "datasets": rows,
        "correlations": correlate(rows, list(vectors)),
        "correlations_coherent": correlate(coherent, list(vectors)),
        "min_coherence": MIN_COHERENCE,
        "subset_fraction": SUBSET_FRACTION,
        "paper": PAPER,
    }


def predict(screened: pl.screening.Screening, trait: str, seed: int) -> dict[str, Any]:
    """Return what each way says of a dataset, with 95 % intervals over samples; and how the ways agree by sample."""
    n_subset = max(2, round(SUBSET_FRACTION * screened.counts["scored"]))
    check = screened.check_approximations(trait, n_subset=n_subset, seed=seed)
    raw = bootstrap_mean(screened.values(trait, "raw"))
    ways = {"exact": check.exact, "subset": check.subset, "last_prompt": check.last_prompt, "raw": raw}
    agreement = {"r_last_prompt": check.r_last_prompt, "r_raw": check.r_raw}
    return {name: describe_interval(interval) for name, interval in (ways | agreement).items()}


def correlate(rows: list[dict[str, Any]], traits: list[str]) -> dict[str, Any]:
    """Correlate each predictor with score and shift of the trait, over the datasets."""
    return {
        trait: {
            target: {
                predictor: correlate_pairs(
                    [row["predictors"][trait][predictor]["estimate"] for row in rows],
                    [row["outcome"][trait][target]["estimate"] for row in rows],
                )
                for predictor in PREDICTORS
            }
            for target in ("score", "shift")
        }
        for trait in traits
    }


if __name__ == "__main__":
    main(tyro.cli(ShiftArguments, description=__doc__))
