"""``persona-lens validate``: may a judge be believed?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from persona_lens.cli.choosing import choose_sampling
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
from persona_lens.models.loading import EMBEDDED_MODEL, load_model
from persona_lens.traits.library import load_trait
from persona_lens.traits.trait import Trait
from persona_lens.traits.written import list_written_traits, load_written_examples

Kind = Literal["reading", "sentences", "likelihood", "endpoint"]


@dataclass(frozen=True)
class Validate:
    """Measure a judge of a trait on texts whose nature is known, before anything is believed of its scores.

    It must tell overt answers from ordinary and opposite ones, and must not take shuffled words, hotter sampling or the
    trait's style without its substance for the trait. Exit status: 0 valid; 1 partly valid or not; 2 a wrong argument.

    Try:

    persona-lens validate --trait evil --judge reading

    persona-lens validate --trait evil --judge endpoint --judge-model qwen3:8b --base-url http://localhost:11434/v1
    """

    trait: str
    """A trait with written answers: see `persona-lens traits`."""
    judge: Kind = "reading"
    """`reading`: the model's own reading of a text; `sentences`: sentence vectors (the extra `embeddings`);
    `likelihood`: likelier under the trait's prompts?; `endpoint`: a model behind an OpenAI-compatible address."""
    judge_model: str | None = None
    """The endpoint's model."""
    base_url: str | None = None
    """The endpoint; OPENAI_BASE_URL or OpenAI itself if left out. The key comes from OPENAI_API_KEY."""
    model: str = EMBEDDED_MODEL
    """The model that is judged, and that reads."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""

    def run(self) -> int:
        """Make the judge, measure it, say what was found."""
        if self.trait not in list_written_traits():
            hint = "For a trait of your own, with answers of your own: pl.judges.validate, in Python."
            rule = f"have written answers: {', '.join(list_written_traits())}"
            raise InvalidArgumentError.of("--trait", rule, self.trait, hint)
        trait = load_trait(self.trait)
        if (self.judge == "endpoint") != (self.judge_model is not None):
            raise InvalidArgumentError.of("--judge-model", "be given with --judge endpoint alone", self.judge_model)
        model = load_model(self.model)
        examples = load_written_examples(trait.name, "judging")
        samples = sample_temperatures(model, [one.question for one in examples], sampling=choose_sampling(model))
        found = validate(self.make_judge(model, trait), trait.name, examples, samples)
        if self.json:
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

    def make_judge(self, model: HookedModel, trait: Trait) -> Judge:
        """Return the judge that was asked for, fitted on the half of the written answers that does not measure it."""
        if self.judge == "endpoint":
            return OpenAIJudge(trait, self.judge_model or "", self.base_url)
        if self.judge == "likelihood":
            return calibrate_likelihood_judge(model, trait, sampling=choose_sampling(model))
        if self.judge == "reading":
            return default_judge(model, trait)
        examples = load_written_examples(trait.name, "training")
        samples = sample_temperatures(model, [one.question for one in examples], sampling=choose_sampling(model))
        return fit_embedding_judge(trait.name, examples, samples=samples)
