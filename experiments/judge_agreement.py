"""Do different judges agree on the responses of a layer sweep?

    python experiments/judge_agreement.py --trait evil      # needs figures/layer_sweep_evil.json
    python experiments/judge_agreement.py --trait evil --person scored.csv

Judges: those that were measured (the model's own reading, sentence vectors of another model, the likelihood judge); the
model itself reading the rubric (expected score); Claude, when ANTHROPIC_API_KEY is set; a person, whose spreadsheet
`--write-check` makes. The responses are drawn from all that the sweep kept, whatever their scores: drawn by one judge's
scores, they would make others seem to agree with it. Judgements are cached, so a rerun costs no calls. Reproduces
appendix B.2 of "Persona Vectors" (arXiv 2507.21509).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from results.judge_agreement import JudgeAgreement

import persona_lens as pl
from persona_lens.evaluation import SweepResult
from persona_lens.reproduction.arguments import BaseArguments
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.reproduction.layer_sweep import LayerSweep
from persona_lens.storage import collect_versions


@dataclass(frozen=True)
class Arguments(BaseArguments):
    """Compare judges on the responses of a trait's layer sweep."""

    n: int = 120
    """Responses to judge."""
    person: Path | None = None
    """A spreadsheet that a person has scored."""
    write_check: Path | None = None
    """Write such a spreadsheet here and stop."""
    cache: Path = Path(".persona-lens-runs/judgements.sqlite")
    """Where judgements are kept."""


@dataclass(frozen=True)
class PersonJudge:
    """A person's scores, read back from a spreadsheet."""

    path: Path
    name: str = "a person"

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[pl.judges.Judgement]:
        """Look the scores up."""
        return pl.judges.read_spot_check(self.path, questions, responses)


def main(arguments: Arguments) -> None:
    """pl.judges.Judge, or redraw."""
    if len(arguments.trait) != 1:
        raise SystemExit("--trait must be given once: a trait whose layer sweep is in the results folder.")
    name = f"judge_agreement_{arguments.trait[0]}"
    if arguments.replot:
        result = arguments.read(JudgeAgreement, name)
    else:
        source = LayerSweep.load(arguments.out / f"layer_sweep_{arguments.trait[0]}.json")
        questions, responses = draw_responses(source.sweep, arguments.n, arguments.seed)
        if arguments.write_check:
            n = pl.judges.write_spot_check(arguments.write_check, questions, responses)
            print(f"{arguments.write_check}: {n} responses to score from 0 to 100")
            return
        result = run(source, questions, responses, arguments)
    result.write(arguments.out, name)
    print(arguments.out / f"{name}.html")


def draw_responses(sweep: SweepResult, n: int, seed: int) -> tuple[list[str], list[str]]:
    """Draw responses of the sweep, all alike likely."""
    flat = [
        (question, response)
        for layer in sweep.responses
        for coefficient in layer
        for question, response in zip(sweep.questions, coefficient, strict=True)
        if response.strip()
    ]
    chosen = np.random.default_rng(seed).permutation(len(flat))[:n]
    return [flat[i][0] for i in chosen], [flat[i][1] for i in chosen]


def run(source: LayerSweep, questions: list[str], responses: list[str], arguments: Arguments) -> JudgeAgreement:
    """Ask all judges that can be had."""
    model = arguments.load_model()
    if pl.describe_model(model).fingerprint != source.sweep.model.fingerprint:
        raise SystemExit(f"--model must be that of the layer sweep, {source.sweep.model.name}. Got {arguments.model}.")
    trait = pl.Trait.from_dict(source.config["trait"])
    profile = source.config["profile"]
    sampling = pl.Sampling(profile["max_new_tokens"], profile["temperature"], seed=source.config["seed"])
    measured = prepare_judges(model, trait, sampling, arguments.share(model), n_examples=profile["n_examples"])
    judges: list[pl.judges.IdentifiedJudge] = [*measured.all, pl.judges.ExpectedScoreJudge(model, trait)]
    if os.environ.get("ANTHROPIC_API_KEY"):
        judges.append(pl.judges.ClaudeJudge(trait))
    cache = pl.judges.ScoreCache(arguments.cache)
    cached: list[pl.judges.Judge] = [pl.judges.CachedJudge(judge, cache) for judge in judges]
    if arguments.person:
        cached.append(PersonJudge(arguments.person))
    panel = pl.judges.judge_with_panel(cached, questions, responses)
    return JudgeAgreement(
        trait=trait.name,
        config={
            "model": pl.describe_model(model).to_json(),
            "n": len(responses),
            "seed": arguments.seed,
            "versions": collect_versions(),
        },
        counts=panel.count_reasons(),
        agreement=tuple(panel.measure_agreement()),
        panel=panel,
    )


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
