"""Does what can be measured of a vector, before anything is steered, say how well it will steer?

    python experiments/vector_quality.py            # all traits of figures/trait_survey.json: minutes on two cores

Each trait's responses are sampled again as the survey sampled them, from the same streams, and every pair is kept. The
survey's own vector rests on those that its judge let pass, so what is measured is near it and not the same. It is
measured at the layer that the survey chose, and the measures are correlated over traits with what the survey's steering
did. The predictor of arXiv 2505.22637, the agreement of single differences, was named in advance; the others are there
to be compared with it. Vectors of --card traits that come with the package get their whole cards, for which they are
found anew: sampled ones under other seeds, the others from other written answers.
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
from results.vector_quality import NAMED_IN_ADVANCE, OUTCOMES, PREDICTORS, PredictedTrait, VectorQualities

import persona_lens as pl
from persona_lens.evaluation import Confirmation
from persona_lens.models import HookedModel
from persona_lens.models.loading import EMBEDDED_MODEL
from persona_lens.reproduction.arguments import BaseArguments, read_traits
from persona_lens.reproduction.comparison import EQUAL_COHERENCE, Comparison, Setting
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.statistics import Interval
from persona_lens.tensors import cosine, mean_difference
from persona_lens.traits import load_written_examples
from persona_lens.vectors import ActivationPairs, NullMargin, Stability, VectorQuality

NAME = "vector_quality"
SURVEY = "trait_survey"


@dataclass(frozen=True)
class Profile:
    """How large a card is.

    Args:
        n_examples: Written examples that it rests on; None takes all.
        seeds: Under which a sampled vector is found anew.
    """

    n_examples: int | None = None
    seeds: tuple[int, ...] = (1, 2)


TINY = Profile(6, ())


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
    profile = TINY if arguments.tiny else Profile()
    config, run = arguments.begin(model, profile, parts)
    if survey.config["model"]["fingerprint"] != config["model"]["fingerprint"]:
        raise SystemExit(f"{path} is a survey of {survey.config['model']['name']}, another model than this.")
    names = arguments.trait or [row.trait for row in rows]
    traits = {one.name: one for one in read_traits(names, sizes["n_pairs"], sizes["n_evaluation_questions"])}
    pairs = {}
    with run.progress("traits", len(rows)) as advance:
        for row in rows:
            trait = traits[row.trait]
            trait = replace(trait, extraction_questions=trait.extraction_questions[: sizes["n_extraction_questions"]])
            pairs[row.trait] = sample_surveyed_pairs(model, trait, sizes, arguments)
            advance(1)
    cards = [
        run.load_or_measure(f"card-{trait}", VectorQuality, partial(make_card, model, trait, profile, arguments))
        for trait in arguments.card
    ]
    return VectorQualities(config, tuple(predict(model, row, pairs) for row in rows), tuple(cards))


def sample_surveyed_pairs(
    model: HookedModel, trait: pl.Trait, sizes: Mapping[str, Any], arguments: Arguments
) -> ActivationPairs:
    """Sample the pairs again that a surveyed vector was chosen from."""
    sampling = pl.Sampling(sizes["max_new_tokens"], sizes["temperature"], seed=arguments.seed)
    return pl.vectors.sample_pairs(model, trait, judge="none", sampling=sampling, run=arguments.share(model))


def predict(model: HookedModel, row: SurveyedTrait, pairs: Mapping[str, ActivationPairs]) -> PredictedTrait:
    """Measure a surveyed vector at its layer, beside what the survey saw."""
    judge, seen = next(iter(row.confirmations.items()))
    own = pairs[row.trait]
    others = [one for name, one in pairs.items() if name != row.trait]
    kept = 0 if row.counts is None else row.counts.kept
    stability = pl.vectors.measure_stability(own)
    predictors = measure(model, own, stability, others, seen) | {"pairs that the judge kept": float(kept)}
    return PredictedTrait(
        trait=row.trait,
        layer=seen.layer,
        coefficient=seen.coefficient,
        judge=judge,
        pairs=len(own),
        kept=kept,
        predictors={name: predictors[name] for name in PREDICTORS},
        agreement=stability.agreement[seen.layer],
        measured={name: getattr(seen, name) for name in OUTCOMES},
    )


def measure(
    model: HookedModel,
    pairs: ActivationPairs,
    stability: Stability,
    others: Sequence[ActivationPairs],
    seen: Confirmation,
) -> dict[str, float]:
    """Return what is measured of a mean difference, at the layer that was steered."""
    layer = seen.layer
    separation = pl.vectors.cross_validate_separation(pairs, n_folds=min(5, len(set(pairs.questions))))
    directions = mean_difference(pairs.positive, pairs.negative)
    nearest = [
        float(cosine(directions[layer], mean_difference(one.positive, one.negative)[layer]).abs()) for one in others
    ]
    typical = torch.cat([pairs.positive, pairs.negative])[:, layer].norm(dim=-1).mean()
    return {
        NAMED_IN_ADVANCE: stability.agreement[layer].estimate,
        "cosine of two differences": stability.pairwise[layer].estimate,
        "cosine of two halves": stability.split_half[layer].estimate,
        "angle to that of endless pairs": stability.cone[layer].estimate,
        "held-out AUROC": separation.auroc[layer].estimate,
        "held-out d'": separation.d_prime[layer].estimate,
        "cosine with the nearest other trait": max(nearest),
        "kurtosis of the unembedding": pl.vectors.read_unembedding(model, directions).layers[layer].kurtosis,
        "length of the push": float(abs(seen.coefficient) * directions[layer].norm() / typical),
    }


def make_card(model: HookedModel, trait: str, profile: Profile, arguments: Arguments) -> VectorQuality:
    """Make the card of a trait's bundled vector; of another model, of the vector read from written answers."""
    data = pl.vectors.read_quality_data(model, trait, n_examples=profile.n_examples)
    training, judging = (load_written_examples(trait, half)[: profile.n_examples] for half in ("training", "judging"))
    if arguments.model != EMBEDDED_MODEL:
        vector, null = pl.read_persona_vector(model, trait, training), None
    else:
        vector = pl.load_vector(trait)
        null = read_null(arguments.out, vector)
    if "examples" not in vector.provenance:
        pairs, again = sample_again(model, vector, profile, arguments)
        return vector.quality(model, replace(data, pairs=pairs), again=again or None, null=null)
    other = pl.read_persona_vector(model, trait, judging)
    other = replace(other, provenance={"source": "the other half of the written answers"})
    return vector.quality(model, data, again=other, null=null)


def sample_again(
    model: HookedModel, vector: pl.PersonaVector, profile: Profile, arguments: Arguments
) -> tuple[ActivationPairs, tuple[pl.PersonaVector, ...]]:
    """Sample the pairs of a bundled vector as its evidence did, and find it under other seeds."""
    found = SteeringEvidence.load(arguments.out / f"steering_evidence_{vector.trait}.json")
    sizes, told, run = found.config["profile"], vector.provenance, arguments.share(model)
    (trait,) = read_traits([vector.trait], sizes["n_pairs"], sizes["n_questions"])
    once = pl.Sampling(told["max_new_tokens"], told["temperature"], seed=told["seed"])
    judge = prepare_judges(model, trait, once, run).reader
    sampling = replace(once, rollouts=told["rollouts"])
    pairs = pl.vectors.sample_pairs(model, trait, judge=judge, sampling=sampling, run=run)
    if not profile.seeds:
        return pairs, ()
    return pairs, pl.vectors.extract_again(vector, model, trait, seeds=profile.seeds, judge=judge, run=run)


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
        scale=found.null_step / abs(setting.step),
    )


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
