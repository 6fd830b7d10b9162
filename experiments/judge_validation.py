"""Which judge may be believed for which trait? Measured on written texts that no judge was fitted on.

    python experiments/judge_validation.py                     # every trait with written examples
    python experiments/judge_validation.py --trait evil

Judges: the likelihood judge; sentence vectors of another model; the model's own reading of the text. Writes the table
of docs/results/judges.md too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from results.judge_validation import JudgeValidations

import persona_lens as pl
from persona_lens.judges import (
    IdentifiedJudge,
    JudgeValidation,
    ResidualEncoder,
    TemperatureSamples,
    calibrate_likelihood_judge,
    fit_embedding_judge,
    load_sentence_encoder,
    validate,
)
from persona_lens.models import HookedModel, RolloutRequest, sample_rollouts
from persona_lens.reproduction.arguments import BaseArguments, read_traits
from persona_lens.reproduction.kits import READING_DEPTH
from persona_lens.reproduction.pages import fill_page
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.traits import WrittenExample, list_written_traits, load_written_examples

NAME = "judge_validation"
PAGE = Path("docs/results/judges.md")


@dataclass(frozen=True)
class ValidationProfile:
    """How much is read and sampled."""

    n_examples: int = 40
    max_new_tokens: int = 24
    cool: float = 0.7
    hot: float = 1.4
    n_pairs: int = 1


TINY = ValidationProfile(n_examples=10, max_new_tokens=4)


def main(arguments: BaseArguments) -> None:
    """Validate, or redraw; write the page's table where there is a page."""
    if arguments.replot:
        result = arguments.read(JudgeValidations, NAME)
    else:
        result = run(TINY if arguments.tiny else ValidationProfile(), arguments)
    result.write(arguments.out, NAME)
    print(result.to_markdown())
    if arguments.out == Path("figures") and PAGE.exists():
        fill_page(PAGE, "table", result.to_markdown())


def run(profile: ValidationProfile, arguments: BaseArguments) -> JudgeValidations:
    """Validate every judge for every trait."""
    model = arguments.load_model()
    traits = read_traits(arguments.trait or list_written_traits(), 5, 20)
    config, run = arguments.begin(model, profile, {"experiment": NAME, "traits": [one.to_dict() for one in traits]})
    found = []
    encoders = (load_sentence_encoder(), ResidualEncoder(model, round(READING_DEPTH * model.cfg.n_layers)))
    for trait in traits:
        training = load_written_examples(trait.name, "training")[: profile.n_examples]
        judging = load_written_examples(trait.name, "judging")[: profile.n_examples]
        samples = sample_temperatures(model, judging, profile, arguments.seed)
        makers: list[Callable[[], IdentifiedJudge]] = [
            partial(make_likelihood_judge, model, trait, profile, arguments.seed, run)
        ]
        makers += [partial(fit_embedding_judge, trait.name, training, encoder=encoder) for encoder in encoders]
        for index, make in enumerate(makers):
            measure = partial(measure_judge, make, trait.name, judging, samples)
            found.append(run.load_or_measure(f"{trait.name}-{index}", JudgeValidation, measure))
            print(found[-1])
    return JudgeValidations(config, tuple(found))


def make_likelihood_judge(
    model: HookedModel, trait: pl.Trait, profile: ValidationProfile, seed: int, run: Run
) -> IdentifiedJudge:
    """Calibrate a likelihood judge on responses like those that are read here."""
    sampling = pl.Sampling(profile.max_new_tokens, profile.cool, seed=seed)
    return calibrate_likelihood_judge(model, trait, n_pairs=profile.n_pairs, sampling=sampling, run=run)


def measure_judge(
    make: Callable[[], IdentifiedJudge], trait: str, examples: Sequence[WrittenExample], samples: TemperatureSamples
) -> JudgeValidation:
    """Make a judge and validate it."""
    return validate(make(), trait, examples, samples=samples)


def sample_temperatures(
    model: HookedModel, examples: Sequence[WrittenExample], profile: ValidationProfile, seed: int
) -> TemperatureSamples:
    """Ask the written questions without a system prompt, cool and hot."""
    questions = tuple(one.question for one in examples)
    requests = [RolloutRequest(question, (seed, Stream.TEMPERATURES, q)) for q, question in enumerate(questions)]
    cool, hot = (
        tuple(one.response for one in sample_rollouts(model, requests, pl.Sampling(profile.max_new_tokens, at)))
        for at in (profile.cool, profile.hot)
    )
    return TemperatureSamples(questions, cool, hot)


if __name__ == "__main__":
    main(tyro.cli(BaseArguments, description=__doc__))
