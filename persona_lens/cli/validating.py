"""``persona-lens validate``: may a judge be believed?"""

from __future__ import annotations

from persona_lens.cli.arguments import Validate
from persona_lens.cli.choosing import Origin, choose_origin, choose_sampling, load
from persona_lens.cli.choosing import make_judge as make_reading_judge
from persona_lens.cli.terminal import print_json, print_line, print_table
from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.default import default_judge
from persona_lens.judges.embedding import fit_embedding_judge
from persona_lens.judges.judgement import Judge
from persona_lens.judges.likelihood import calibrate_likelihood_judge
from persona_lens.judges.openai_compatible import OpenAIJudge
from persona_lens.judges.temperature_samples import sample_temperatures
from persona_lens.judges.validation import UNRELATED_WITHIN, validate
from persona_lens.models.hooked_model import HookedModel
from persona_lens.run import Run
from persona_lens.traits.written import list_written_traits


def run(arguments: Validate) -> int:
    """Make the judge, measure it, say what was found."""
    origin = choose_origin(arguments.trait, arguments.examples)
    trait = origin.require_trait()
    if not origin.has_examples:
        hint = "For a trait of your own give answers of your own too: --examples FILE.jsonl."
        rule = f"have written answers: {', '.join(list_written_traits())}"
        raise InvalidArgumentError.of("--trait", rule, arguments.trait, hint)
    if (arguments.judge == "endpoint") != (arguments.judge_model is not None):
        rule = "be given with --judge endpoint alone"
        raise InvalidArgumentError.of("--judge-model", rule, arguments.judge_model)
    if arguments.judge == "endpoint":  # its arguments are checked before any model runs
        OpenAIJudge(trait, arguments.judge_model or "", arguments.base_url)
    examples = origin.load_examples("judging")
    model = load(arguments)
    samples = sample_temperatures(model, [one.question for one in examples], sampling=choose_sampling(model))
    found = validate(make_judge(arguments, model, origin), trait.name, examples, samples)
    if arguments.json:
        print_json(found.to_json() | {"verdict": found.verdict})
    else:
        wanted = f"{0.5 - UNRELATED_WITHIN:g} to {0.5 + UNRELATED_WITHIN:g}"
        print_table(
            f"{found.judge}: {found.verdict} for {found.trait}",
            ("tells apart", "AUROC with 95 % interval", "must be", ""),
            [
                (one.name, str(one.auroc), f"at least {one.least:g}" if one.least else wanted,
                 "met" if one.is_met() else "missed")
                for one in found.contrasts
            ],
        )  # fmt: skip
        print_line(f"{found.n_questions} questions, written answers that the judge was not fitted on.")
    return 0 if found.verdict == "valid" else 1


def make_judge(arguments: Validate, model: HookedModel, origin: Origin) -> Judge:
    """Return the judge that was asked for, fitted on the half of the written answers that does not measure it."""
    trait = origin.require_trait()
    if arguments.judge == "endpoint":
        return OpenAIJudge(trait, arguments.judge_model or "", arguments.base_url)
    if arguments.judge == "likelihood":
        return calibrate_likelihood_judge(model, trait, sampling=choose_sampling(model))
    if arguments.judge == "reading":
        return make_reading_judge(model, origin, Run()) or default_judge(model, trait)
    examples = origin.load_examples("training")
    samples = sample_temperatures(model, [one.question for one in examples], sampling=choose_sampling(model))
    return fit_embedding_judge(trait.name, examples, samples=samples)
