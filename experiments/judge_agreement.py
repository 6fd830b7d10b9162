"""Do different judges agree on the responses of a layer sweep?

    python experiments/judge_agreement.py --trait evil      # needs figures/layer_sweep_evil.json
    python experiments/judge_agreement.py --trait evil --person scored.csv

Judges: the sweep's own likelihood judge; the same with other instructions of the trait; the model itself reading the
rubric (expected score); Claude, when ANTHROPIC_API_KEY is set; a person, whose spreadsheet `--write-check` makes.
Judgements are cached, so a rerun costs no calls. Reproduces appendix B.2 of "Persona Vectors" (arXiv 2507.21509).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from results.judge_agreement import JudgeAgreement

import persona_lens as pl
from persona_lens.evaluation import SweepResult
from persona_lens.reproduction.arguments import BaseArguments
from persona_lens.reproduction.layer_sweep import LayerSweep
from persona_lens.storage import collect_versions


@dataclass(frozen=True)
class Arguments(BaseArguments):
    """Compare judges on the responses of a trait's layer sweep."""

    n: int = 120
    """Responses to judge, drawn evenly from the sweep's scores."""
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
    """Draw responses of the sweep, evenly over its scores, so that high ones are not rare."""
    flat = [
        (float(sweep.scores[i, j, q]), sweep.questions[q], sweep.responses[i][j][q])
        for i in range(len(sweep.layers))
        for j in range(len(sweep.coefficients))
        for q in range(len(sweep.questions))
        if sweep.responses[i][j][q].strip()
    ]
    rng = np.random.default_rng(seed)
    fifths = [[row for row in flat if low <= row[0] < low + 20 + (low == 80)] for low in range(0, 100, 20)]
    chosen = [fifth[i] for fifth in fifths for i in rng.permutation(len(fifth))[: n // 5]]
    return [row[1] for row in chosen], [row[2] for row in chosen]


def run(source: LayerSweep, questions: list[str], responses: list[str], arguments: Arguments) -> JudgeAgreement:
    """Ask all judges that can be had."""
    model = arguments.load_model()
    if pl.describe_model(model).fingerprint != source.sweep.model.fingerprint:
        raise SystemExit(f"--model must be that of the layer sweep, {source.sweep.model.name}. Got {arguments.model}.")
    trait = pl.Trait.from_dict(source.config["trait"])
    n_pairs = source.judge.n_pairs
    other_pairs = trait.instruction_pairs[n_pairs:]
    profile = source.config["profile"]
    judges: list[pl.judges.IdentifiedJudge] = [
        pl.judges.LikelihoodJudge(model, trait, n_pairs, source.judge.calibration),
        pl.judges.ExpectedScoreJudge(model, trait),
    ]
    if other_pairs:
        others = replace(trait, instruction_pairs=other_pairs)
        sampling = pl.Sampling(profile["max_new_tokens"], profile["temperature"])
        judge = pl.judges.calibrate_likelihood_judge(model, others, n_pairs=min(2, len(other_pairs)), sampling=sampling)
        judges.insert(1, Renamed(judge, "likelihood judge, other instructions"))
    else:
        print("The sweep's judge uses all of the trait's instructions: none are left for another judge.")
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
            "model": asdict(pl.describe_model(model)),
            "n": len(responses),
            "seed": arguments.seed,
            "versions": collect_versions(),
        },
        counts=panel.count_reasons(),
        agreement=tuple(panel.measure_agreement()),
        panel=panel,
    )


@dataclass(frozen=True)
class Renamed:
    """A judge under another name, so that two of a kind can sit on one panel."""

    judge: pl.judges.LikelihoodJudge
    name: str

    @property
    def identity(self) -> str:
        """The judge's own identity."""
        return self.judge.identity

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[pl.judges.Judgement]:
        """Ask the judge."""
        return self.judge.score(questions, responses)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
