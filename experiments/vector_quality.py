"""Does what can be measured of a vector, before anything is steered, say how well it will steer?

    python experiments/vector_quality.py            # all traits of figures/trait_survey.json: minutes on two cores

Each trait's vector is found again as the survey found it: the same responses, judge and filter, from the same
streams. Its quality is measured at the layer that the survey chose, and correlated over traits with what the
survey's steering did. The predictor of arXiv 2505.22637, the agreement of single differences, was named in advance; the
others are there to be compared with it. Vectors of --card traits that come with the package get their whole cards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results.steering_away import SteeringAway
from results.steering_evidence import SteeringEvidence
from results.trait_survey import SurveyedTrait, TraitSurvey
from results.vector_quality import OUTCOMES, PREDICTORS, PredictedTrait, VectorQualities

import persona_lens as pl
from persona_lens.models import HookedModel
from persona_lens.models.loading import EMBEDDED_MODEL
from persona_lens.reproduction.arguments import BaseArguments, read_traits
from persona_lens.reproduction.comparison import EQUAL_COHERENCE, Comparison, Setting
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.statistics import Interval
from persona_lens.tensors import cosine, mean_difference
from persona_lens.traits import load_written_examples
from persona_lens.vectors import ActivationPairs, NullMargin, VectorQuality

NAME = "vector_quality"
SURVEY = "trait_survey"


@dataclass(frozen=True)
class Profile:
    """How many written examples a card rests on; None takes all."""

    n_examples: int | None = None


@dataclass(frozen=True)
class Arguments(BaseArguments):
    """What this script understands."""

    card: tuple[str, ...] = ("evil", "hallucination")
    """Traits of which the bundled vector's card is made."""
    survey: Path | None = None
    """The survey's JSON; else that in the folder of results."""


def main(arguments: Arguments) -> None:
    """Run or redraw the comparison."""
    result = arguments.read(VectorQualities, NAME) if arguments.replot else run(arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html: {result.say_finding()}")


def run(arguments: Arguments) -> VectorQualities:
    """Find every surveyed trait's pairs again, measure them, and make the cards."""
    path = arguments.survey or arguments.out / f"{SURVEY}.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing, which trait_survey.py writes.")
    survey = TraitSurvey.load(path)
    rows = [row for row in survey.traits if row.confirmations]
    if len(rows) < 2:
        raise SystemExit(f"{path} holds fewer than two traits with a vector: there is nothing to correlate.")
    model, sizes = arguments.load_model(), survey.config["profile"]
    parts = {"experiment": NAME, "survey": survey.config, "card": list(arguments.card)}
    config, run = arguments.begin(model, Profile(6 if arguments.tiny else None), parts)
    if survey.config["model"]["fingerprint"] != config["model"]["fingerprint"]:
        raise SystemExit(f"{path} is a survey of {survey.config['model']['name']}, another model than this.")
    names = arguments.trait or [row.trait for row in rows]
    traits = {one.name: one for one in read_traits(names, sizes["n_pairs"], sizes["n_evaluation_questions"])}
    pairs = {}
    with run.progress("traits", len(rows)) as advance:
        for row in rows:
            trait = traits[row.trait]
            trait = replace(trait, extraction_questions=trait.extraction_questions[: sizes["n_extraction_questions"]])
            pairs[row.trait] = sample_surveyed_pairs(model, row, trait, sizes, arguments)
            advance(1)
    cards = [
        run.load_or_measure(f"card-{trait}", VectorQuality, partial(make_card, model, trait, arguments))
        for trait in arguments.card
    ]
    return VectorQualities(config, tuple(predict(model, row, pairs) for row in rows), tuple(cards))


def sample_surveyed_pairs(
    model: HookedModel, row: SurveyedTrait, trait: pl.Trait, sizes: Mapping[str, Any], arguments: Arguments
) -> ActivationPairs | None:
    """Sample the pairs again that a surveyed vector was made from; None where fewer than two are kept."""
    sampling = pl.Sampling(sizes["max_new_tokens"], sizes["temperature"], seed=arguments.seed)
    shared = arguments.share(model)
    judge = prepare_judges(model, trait, sampling, shared, n_examples=sizes["n_examples"]).reader
    try:
        return pl.vectors.sample_pairs(model, trait, judge=judge, sampling=sampling, run=shared)
    except pl.errors.InvalidArgumentError as error:
        print(f"{row.trait}: {error}")
        return None


def predict(model: HookedModel, row: SurveyedTrait, pairs: Mapping[str, ActivationPairs | None]) -> PredictedTrait:
    """Measure a surveyed vector at its layer, beside what the survey saw."""
    judge, seen = next(iter(row.confirmations.items()))
    own = pairs[row.trait]
    others = [one for name, one in pairs.items() if name != row.trait and one is not None]
    values = dict.fromkeys(PREDICTORS, math.nan)
    agreement = Interval.missing()
    if own is not None and len(set(own.questions)) >= 4:
        values = measure(model, own, others, seen.layer, seen.coefficient)
        agreement = pl.vectors.measure_stability(own).agreement[seen.layer]
    return PredictedTrait(
        trait=row.trait,
        layer=seen.layer,
        coefficient=seen.coefficient,
        judge=judge,
        kept=0 if own is None else len(own),
        surveyed=0 if row.counts is None else row.counts.kept,
        predictors=values,
        agreement=agreement,
        measured={name: getattr(seen, name) for name in OUTCOMES},
    )


def measure(
    model: HookedModel, pairs: ActivationPairs, others: Sequence[ActivationPairs], layer: int, coefficient: float
) -> dict[str, float]:
    """Return every predictor of a mean difference, at one layer."""
    stability = pl.vectors.measure_stability(pairs)
    folds = min(5, len(set(pairs.questions)))
    separation = pl.vectors.cross_validate_separation(pairs, n_folds=folds)
    directions = mean_difference(pairs.positive, pairs.negative)
    nearest = [
        float(cosine(directions[layer], mean_difference(one.positive, one.negative)[layer]).abs()) for one in others
    ]
    typical = torch.cat([pairs.positive, pairs.negative])[:, layer].norm(dim=-1).mean()
    values = (
        stability.agreement[layer].estimate,
        stability.pairwise[layer].estimate,
        stability.split_half[layer].estimate,
        stability.cone[layer].estimate,
        separation.auroc[layer].estimate,
        separation.d_prime[layer].estimate,
        max(nearest, default=math.nan),
        pl.vectors.read_unembedding(model, directions).layers[layer].kurtosis,
        float(abs(coefficient) * directions[layer].norm() / typical),
        float(len(pairs)),
    )
    return dict(zip(PREDICTORS, values, strict=True))


def make_card(model: HookedModel, trait: str, arguments: Arguments) -> VectorQuality:
    """Make the card of a trait's bundled vector; of another model, of the vector read from written answers."""
    n_examples = 6 if arguments.tiny else None
    data = pl.vectors.read_quality_data(model, trait, n_examples=n_examples)
    if arguments.model == EMBEDDED_MODEL:
        vector = pl.load_vector(trait)
        return vector.quality(model, data, null=read_null(arguments.out, vector))
    examples = load_written_examples(trait, "training")[:n_examples]
    return pl.read_persona_vector(model, trait, examples).quality(model, data)


def read_null(folder: Path, vector: pl.PersonaVector) -> NullMargin | None:
    """Return what was found at equal coherence where a vector was steered with at the setting that it comes with."""
    setting = vector.provenance["setting"]
    for kind, stem in ((SteeringEvidence, "steering_evidence"), (SteeringAway, "steering_away")):
        path = folder / f"{stem}_{vector.trait}.json"
        if path.exists():
            found: SteeringEvidence | SteeringAway = kind.load(path)
            for condition, tried in list_settings(found):
                if tried.layer == setting["layer"] and math.isclose(tried.coefficient, setting["coefficient"]):
                    return compare_with_null(found, condition, tried)
    return None


def list_settings(found: SteeringEvidence | SteeringAway) -> list[tuple[str, Setting]]:
    """Return the settings of a comparison by the condition's name."""
    if isinstance(found, SteeringAway):
        return [("steered away", found.setting)]
    return [(f"{one.source} vector", one) for one in found.settings]


def compare_with_null(found: Comparison, condition: str, setting: Setting) -> NullMargin:
    """Return by how much a condition goes beyond random directions of equal coherence, by the judge that confirms."""
    above = found.above(found.confirming, condition, EQUAL_COHERENCE)
    if setting.coefficient < 0:
        above = Interval(-above.estimate, -above.high, -above.low, above.level)
    return NullMargin(
        judge=found.confirming,
        layer=setting.layer,
        coefficient=setting.coefficient,
        margin=above,
        coherence=found.coherence(condition),
        null_coherence=found.coherence(EQUAL_COHERENCE),
    )


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
