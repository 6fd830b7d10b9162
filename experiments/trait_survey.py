"""Which of the bundled traits does a model show? Judges, pairs kept, best steering effect, for each trait.

    python experiments/trait_survey.py                            # all bundled traits
    python experiments/trait_survey.py --trait evil --trait humorous
    python experiments/trait_survey.py --workers 16 --worker-gpus 1   # on a Ray cluster of sixteen GPUs, a trait each

The paper's procedure in short for every trait: a vector from the model's own responses, a few layers and coefficients
chosen on half of the evaluation questions by one judge, the effect measured on the other half by it and by another that
shares neither model nor prompt with it. A trait works if both are valid, at least in part, and both see it. A trait
without written examples has one judge that nothing speaks for, so it cannot be said to work; it stays in the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from results.trait_survey import SurveyedTrait, TraitSurvey

import persona_lens as pl
from persona_lens.evaluation import RandomNull
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import BaseArguments, read_traits
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.run import Run


@dataclass(frozen=True)
class Profile:
    """How much is sampled."""

    n_pairs: int = 3
    n_extraction_questions: int = 10
    n_evaluation_questions: int = 20
    # Of the model's layers.
    depths: tuple[float, ...] = (0.4, 0.5, 0.6)
    coefficients: tuple[float, ...] = (2.0, 3.0)
    max_new_tokens: int = 48
    temperature: float = 0.7
    confirmation_rollouts: int = 2
    random_directions: int = 16
    n_examples: int | None = None


TINY = Profile(1, 4, 4, (0.0, 0.4), (1.0,), 6, 0.7, 1, 2, n_examples=10)


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
    shared, pieces, rows = arguments.share(model), [], []
    for trait in traits:
        own = run.part({"trait": trait.to_dict()})
        measure = partial(survey, model, trait, profile, arguments.seed, shared)
        pieces.append(partial(own.load_or_measure, "row", SurveyedTrait, measure))
    with run.progress("traits", len(traits)) as advance:
        for row in run.compute_each(pieces):
            rows.append(row)
            advance(1)
    return TraitSurvey(config, tuple(rows))


def survey(model: HookedModel, trait: pl.Trait, profile: Profile, seed: int, shared: Run) -> SurveyedTrait:
    """Measure one trait."""
    n_layers = model.cfg.n_layers
    layers = sorted({min(n_layers - 1, round(depth * n_layers)) for depth in profile.depths})
    once = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=seed)
    judges = prepare_judges(model, trait, once, shared, n_examples=profile.n_examples)
    # The two that vector and claim rest on: what the third, the likelihood judge, says is no part of either.
    verdicts: dict[str, str] = {one.judge: one.verdict for one in judges.validations[:2]}
    try:
        vector = pl.extract_persona_vector(model, trait, judge=judges.reader, sampling=once)
    except pl.errors.InvalidArgumentError as error:  # no pair was kept: a finding, not a failure of the survey
        return SurveyedTrait(trait.name, str(error), verdicts, None, {})
    sweep = pl.sweep_layers(
        model,
        trait,
        vector,
        layers=layers,
        coefficients=profile.coefficients,
        questions=trait.evaluation_questions[0::2],
        judge=judges.choosing,
        null=RandomNull(2, layers[-1]),
        sampling=once,
    )
    coherent = sweep.choose_coherent()
    # Both read the same responses, as these are drawn from the same streams.
    confirmations = {
        judge.name: pl.confirm_choice(
            model,
            vector,
            coherent or sweep.choose_by_score(),
            questions=trait.evaluation_questions[1::2],
            judge=judge,
            random_directions=profile.random_directions,
            sampling=replace(once, rollouts=profile.confirmation_rollouts),
        )
        for judge in judges.confirming
    }
    found = confirmations.values()
    failures = [
        text
        for text, is_so in (
            ("no judge was measured", not verdicts),
            ("a judge is not valid", "not valid" in verdicts.values()),
            ("no setting that was tried is surely coherent; the highest score was taken", coherent is None),
            ("steering is not surely above random directions", not all(one.is_clear for one in found)),
            ("steering is not surely above the unsteered model", not all(one.rise.low > 0 for one in found)),
            ("steered text falls below the coherence floor", any(one.coherence.estimate < 50 for one in found)),
        )
        if is_so
    ]
    return SurveyedTrait(trait.name, "; ".join(failures), verdicts, vector.counts, confirmations)


if __name__ == "__main__":
    enter(main, BaseArguments, __doc__)
