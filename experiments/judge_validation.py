"""Which judge may be believed for which trait? Measured on written texts that no judge was fitted on.

    python experiments/judge_validation.py                     # every trait with written examples
    python experiments/judge_validation.py --trait evil

Judges: the likelihood judge; sentence vectors of another model; the model's own reading of the text. Writes the table
of docs/results/judges.md too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from results.judge_validation import JudgeValidations

import persona_lens as pl
from persona_lens.models.loading import describe_model
from persona_lens.reproduction.arguments import BaseArguments, read_traits
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.storage import collect_versions
from persona_lens.traits import list_written_traits

NAME = "judge_validation"


@dataclass(frozen=True)
class ValidationProfile:
    """How much is read and sampled."""

    n_examples: int | None = None
    max_new_tokens: int = 48
    temperature: float = 0.7


TINY = ValidationProfile(n_examples=10, max_new_tokens=6)


def main(arguments: BaseArguments) -> None:
    """Validate, or redraw; write the page's table where there is a page."""
    if arguments.replot:
        result = arguments.read(JudgeValidations, NAME)
    else:
        result = run(TINY if arguments.tiny else ValidationProfile(), arguments)
    result.write(arguments.out, NAME)
    print(result.to_markdown())


def run(profile: ValidationProfile, arguments: BaseArguments) -> JudgeValidations:
    """Validate every judge for every trait; what an earlier script measured is not measured again."""
    model = arguments.load_model()
    traits = read_traits(arguments.trait or list_written_traits(), 5, 20)
    sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    found: list[pl.judges.JudgeValidation] = []
    for trait in traits:
        judges = prepare_judges(model, trait, sampling, arguments.share(model), n_examples=profile.n_examples)
        found += judges.validations
        print(*judges.validations, sep="\n")
    config = {
        "experiment": NAME,
        "model": describe_model(model).to_json(),
        "profile": asdict(profile),
        "traits": [one.to_dict() for one in traits],
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    return JudgeValidations(config, tuple(found))


if __name__ == "__main__":
    enter(main, BaseArguments, __doc__)
