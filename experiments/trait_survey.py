"""Which of the bundled traits does a model show? AUROC of the judge, pairs kept, best steering effect, for each trait.

    python experiments/trait_survey.py                            # all bundled traits
    python experiments/trait_survey.py --trait evil --trait humorous

A short form of layer_sweep.py for every trait: a few layers and coefficients chosen on half of the evaluation
questions, the effect measured on the other half. A trait that fails is marked as such, and stays in the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import tyro
from results.trait_survey import SurveyedTrait, TraitSurvey

import persona_lens as pl
from persona_lens.evaluation import RandomNull
from persona_lens.judges import calibrate_likelihood_judge, measure_separation
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import BaseArguments, read_traits
from persona_lens.run import Run

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
    random_directions: int = 16


TINY = Profile(1, 4, 4, (0.0, 0.4), (1.0,), 6, 0.7, 1, 2)


def main(arguments: BaseArguments) -> None:
    """Run or redraw the survey."""
    name = "trait_survey"
    if arguments.replot:
        result = arguments.read(TraitSurvey, name)
    else:
        profile = TINY if arguments.tiny else Profile()
        names = arguments.trait or pl.list_traits()
        traits = [
            replace(trait, extraction_questions=trait.extraction_questions[: profile.n_extraction_questions])
            for trait in read_traits(names, profile.n_pairs, profile.n_evaluation_questions)
        ]
        result = run(traits, profile, arguments)
    result.write(arguments.out, name)
    works = sum(row.works for row in result.traits)
    print(f"{arguments.out / name}.html: {works} of {len(result.traits)} work")


def run(traits: list[pl.Trait], profile: Profile, arguments: BaseArguments) -> TraitSurvey:
    """Survey each trait."""
    model = arguments.load_model()
    config, run = arguments.begin(model, profile, {"survey": True})
    rows = []
    with run.progress("traits", len(traits)) as advance:
        for trait in traits:
            own = Run(run.part({"trait": trait.to_dict()}).store)
            rows.append(
                own.load_or_measure("row", SurveyedTrait, partial(survey, model, trait, profile, arguments.seed))
            )
            advance(1)
    return TraitSurvey(config, MIN_AUROC, tuple(rows))


def survey(model: HookedModel, trait: pl.Trait, profile: Profile, seed: int) -> SurveyedTrait:
    """Measure one trait."""
    n_layers = model.cfg.n_layers
    layers = sorted({min(n_layers - 1, round(depth * n_layers)) for depth in profile.depths})
    once = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=seed)
    judge = calibrate_likelihood_judge(model, trait, n_pairs=1, sampling=once)
    auroc = measure_separation(judge, sampling=replace(once, rollouts=2)).auroc
    try:
        vector = pl.extract_persona_vector(model, trait, judge=judge, sampling=once)
    except pl.errors.InvalidArgumentError as error:  # no pair was kept: a finding, not a failure of the survey
        return SurveyedTrait(trait.name, False, str(error), auroc, None, None)
    sweep = pl.sweep_layers(
        model,
        trait,
        vector,
        layers=layers,
        coefficients=profile.coefficients,
        questions=trait.evaluation_questions[0::2],
        judge=judge,
        null=RandomNull(2, layers[-1]),
        sampling=once,
    )
    coherent = sweep.choose_coherent()
    choice = coherent or sweep.choose_by_score()
    confirmation = pl.confirm_choice(
        model,
        vector,
        choice,
        questions=trait.evaluation_questions[1::2],
        judge=judge,
        random_directions=profile.random_directions,
        sampling=replace(once, rollouts=profile.confirmation_rollouts),
    )
    failures = [
        text
        for text, is_so in (
            (f"AUROC below {MIN_AUROC}", auroc.estimate < MIN_AUROC),
            ("no setting that was tried is surely coherent; the highest score was taken", coherent is None),
            ("steering is not surely above random directions", not confirmation.is_clear),
            ("steering is not surely above the unsteered model", not confirmation.rise.low > 0),
            ("steered text falls below the coherence floor", confirmation.coherence.estimate < 50),
        )
        if is_so
    ]
    return SurveyedTrait(trait.name, not failures, "; ".join(failures), auroc, vector.counts, confirmation)


if __name__ == "__main__":
    main(tyro.cli(BaseArguments, description=__doc__))
