"""Which of the bundled traits does a model show? AUROC of the judge, pairs kept, best steering effect, for each trait.

    python experiments/trait_survey.py                            # all bundled traits
    python experiments/trait_survey.py --trait evil --trait humorous
    python experiments/trait_survey.py --replot

A short form of layer_sweep.py for every trait: a few layers and coefficients chosen on half of the evaluation
questions, the effect measured on the other half. A trait that fails is marked as such, and stays in the table.
Killed at any point, the same command goes on where it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import tyro
from _figures import write_figure
from _measuring import BaseArguments, read_results, read_traits

import persona_lens as pl
from persona_lens.plots import plot_trait_survey
from persona_lens.storage import Shard, collect_versions

# A trait works on a model if the judge tells its two sides apart and steering lies surely above random directions.
MIN_AUROC = 0.9


@dataclass(frozen=True)
class Profile:
    """How much is sampled."""

    n_pairs: int = 3
    n_extraction_questions: int = 10
    n_evaluation_questions: int = 20
    # Of the model's layers.
    depths: tuple[float, ...] = (0.4, 0.5, 0.6)
    coefficients: tuple[float, ...] = (2.0, 3.0)
    max_new_tokens: int = 24
    temperature: float = 0.7
    confirmation_rollouts: int = 2
    random_directions: int = 3


TINY = Profile(1, 4, 4, (0.0, 0.4), (1.0,), 6, 0.7, 1, 1)


@dataclass(frozen=True)
class Arguments(BaseArguments):
    """Survey traits; all bundled ones if none is named."""


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw the survey."""
    path = arguments.out / "trait_survey.json"
    if arguments.replot:
        content = read_results(path)
    else:
        profile = TINY if arguments.tiny else Profile()
        names = arguments.trait or pl.list_traits()
        traits = [
            replace(trait, extraction_questions=trait.extraction_questions[: profile.n_extraction_questions])
            for trait in read_traits(names, profile.n_pairs, profile.n_evaluation_questions)
        ]
        content = run(traits, arguments)
    write_figure(plot_trait_survey(content["traits"]), content, arguments.out, "trait_survey")
    works = sum(row["works"] for row in content["traits"])
    print(f"{path.with_suffix('.html')}: {works} of {len(content['traits'])} work")


def run(traits: list[pl.Trait], arguments: Arguments) -> dict[str, Any]:
    """Survey each trait."""
    model = pl.load_model(arguments.model, dtype=arguments.dtype)
    profile = TINY if arguments.tiny else Profile()
    config = {
        "model": asdict(pl.describe_model(model)),
        "profile": asdict(profile),
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    rows = []
    with pl.show_progress("traits", len(traits)) as advance:
        for trait in traits:
            store = pl.ShardStore(arguments.runs, config | {"trait": trait.to_dict(), "survey": True})

            def compute(trait: pl.Trait = trait) -> Shard:
                return Shard(records=survey(model, trait, profile, arguments.seed))

            rows.append(store.load_or_compute("row", compute).records)
            advance(1)
    return {"config": config, "min_auroc": MIN_AUROC, "traits": rows}


def survey(model: Any, trait: pl.Trait, profile: Profile, seed: int) -> dict[str, Any]:
    """Measure one trait."""
    n_layers = model.cfg.n_layers
    layers = sorted({min(n_layers - 1, round(depth * n_layers)) for depth in profile.depths})
    sampling: Any = {"max_new_tokens": profile.max_new_tokens, "temperature": profile.temperature, "seed": seed}
    row: dict[str, Any] = {"trait": trait.name, "works": False, "failure": ""}
    judge = pl.judges.calibrate_likelihood_judge(model, trait, n_pairs=1, **sampling)
    row["auroc"] = asdict(pl.judges.measure_separation(judge, rollouts=2, **sampling).auroc)
    try:
        vector = pl.extract_persona_vector(model, trait, judge=judge, **sampling)
    except pl.errors.InvalidArgumentError as error:  # no pair was kept: a finding, not a failure of the survey
        return row | {"failure": str(error)}
    row["counts"] = asdict(vector.counts)
    sweep = pl.sweep_layers(
        model,
        trait,
        vector,
        layers=layers,
        coefficients=profile.coefficients,
        questions=trait.evaluation_questions[0::2],
        judge=judge,
        random_directions=1,
        null_layers=layers[-1],
        **sampling,
    )
    coherent = sweep.choose_coherent()
    choice = coherent or sweep.choose_by_score()
    confirmation = pl.confirm_choice(
        model,
        vector,
        choice,
        questions=trait.evaluation_questions[1::2],
        judge=judge,
        rollouts=profile.confirmation_rollouts,
        random_directions=profile.random_directions,
        **sampling,
    )
    failures = [
        text
        for text, is_so in (
            (f"AUROC below {MIN_AUROC}", row["auroc"]["estimate"] < MIN_AUROC),
            ("no setting that was tried is surely coherent; the highest score was taken", coherent is None),
            ("steering is not surely above random directions", not confirmation.is_clear),
            ("steered text falls below the coherence floor", confirmation.coherence.estimate < 50),
        )
        if is_so
    ]
    return row | {"confirmation": confirmation.to_json(), "works": not failures, "failure": "; ".join(failures)}


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
