"""Which layers steer a trait, at what cost in coherence, how far above random directions?

    python experiments/layer_sweep.py --trait evil                     # minutes on two cores
    python experiments/layer_sweep.py --trait evil --profile paper     # the paper's numbers of rollouts; for a GPU

Reproduces Figures 3 and 13 of "Persona Vectors" (arXiv 2507.21509).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

import persona_lens as pl
from persona_lens.evaluation import RandomNull
from persona_lens.judges import calibrate_likelihood_judge, measure_separation
from persona_lens.judges.likelihood import JudgeSeparation
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.layer_sweep import JudgeNote, LayerSweep, VectorNote
from persona_lens.storage import write_bytes_atomically


@dataclass(frozen=True)
class Profile:
    """How much is sampled."""

    temperature: float
    max_new_tokens: int
    extraction_rollouts: int
    coefficients: tuple[float, ...]
    layer_step: int
    sweep_rollouts: int
    random_directions: int
    confirmation_rollouts: int
    judge_pairs: int
    max_pairs: int = 5
    max_questions: int = 20


PROFILES = {
    # At the paper's temperature of 1 a 135M model writes much word salad; 0.7 was taken because positive and negative
    # responses to the *extraction* questions separated better there.
    "quick": Profile(0.7, 24, 1, (1.0, 2.0, 3.0), 3, 2, 1, 3, 1),
    "paper": Profile(1.0, 1000, 10, (0.5, 1.0, 1.5, 2.0, 2.5), 1, 10, 8, 10, 5),
    "tiny": Profile(0.7, 8, 1, (1.0, 2.0), 10, 1, 1, 1, 1, max_pairs=2, max_questions=4),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw each trait's sweep."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait, profile.max_pairs, profile.max_questions)  # before any model runs
    results = run_each_trait(LayerSweep, "layer_sweep", traits, profile, arguments, run)
    for result in results:
        write_responses(result, arguments.out / f"layer_sweep_{result.sweep.trait}_responses.txt")


def run(model: HookedModel, trait: pl.Trait, profile: Profile, arguments: CommonArguments) -> LayerSweep:
    """Calibrate, extract, sweep, confirm."""
    config, run = arguments.begin(model, profile, {"trait": trait.to_dict()})
    # Chosen on every other question, confirmed on the rest: nothing is judged by what it was chosen on.
    selection, fresh = trait.evaluation_questions[0::2], trait.evaluation_questions[1::2]
    once = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)

    def often(rollouts: int) -> pl.Sampling:
        return replace(once, rollouts=rollouts)

    judge = calibrate_likelihood_judge(model, trait, n_pairs=profile.judge_pairs, sampling=once, run=run)
    separation = run.load_or_measure(
        "separation", JudgeSeparation, lambda: measure_separation(judge, sampling=often(2), run=run)
    )
    vector = pl.extract_persona_vector(model, trait, judge=judge, sampling=often(profile.extraction_rollouts), run=run)
    sweep = pl.sweep_layers(
        model,
        trait,
        vector,
        coefficients=profile.coefficients,
        layers=range(0, model.cfg.n_layers, profile.layer_step),
        questions=selection,
        judge=judge,
        null=RandomNull(profile.random_directions),
        sampling=often(profile.sweep_rollouts),
        run=run,
    )
    choice = sweep.choose_coherent() or sweep.choose_by_score()
    confirmation = pl.confirm_choice(
        model, vector, choice, questions=fresh, judge=judge, sampling=often(profile.confirmation_rollouts), run=run
    )
    vector.save(arguments.out / f"vector_{trait.name}.safetensors")
    return LayerSweep(
        config=config,
        judge=JudgeNote(judge.name, judge.n_pairs, judge.calibration),
        separation=separation,
        vector=VectorNote(vector.counts, vector.provenance),
        norms=tuple(vector.norms.tolist()),
        split_half_cosine={name: tuple(values.tolist()) for name, values in vector.split_half_cosine.items()},
        sweep=sweep,
        confirmation=confirmation,
    )


def write_responses(result: LayerSweep, path: Path) -> None:
    """Write some steered responses as text."""
    sweep, confirmation = result.sweep, result.confirmation
    lines = [f"{sweep.trait}: layer {confirmation.layer} × {confirmation.coefficient:g} on {sweep.model.name}", ""]
    for question, plain, steered in confirmation.examples[:5]:
        lines += [f"Question:  {question}", f"Unsteered: {plain.strip()}", f"Steered:   {steered.strip()}", ""]
    write_bytes_atomically(path, "\n".join(lines).encode())


if __name__ == "__main__":
    main(tyro.cli(CommonArguments, description=__doc__))
