"""Which layers steer a trait, at what cost in coherence, how far above random directions?

    python experiments/layer_sweep.py --trait evil                     # minutes on two cores
    python experiments/layer_sweep.py --trait evil --tiny              # seconds: does it run?
    python experiments/layer_sweep.py --trait evil --profile paper     # the paper's numbers of rollouts; for a GPU
    python experiments/layer_sweep.py --trait evil --replot            # redraw from figures/layer_sweep_evil.json

Reproduces Figures 3 and 13 of "Persona Vectors" (arXiv 2507.21509). Killed at any point, the same command goes on
where it was, and writes what an uninterrupted run writes.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from _figures import write_figure
from _measuring import (
    CommonArguments,
    Sampling,
    describe_judge,
    extract_vector,
    prepare_judge,
    read_results,
    read_traits,
)

import persona_lens as pl
from persona_lens.plots import plot_sweep
from persona_lens.storage import Shard, collect_versions, write_bytes_atomically


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
}
TINY = Profile(0.7, 8, 1, (1.0, 2.0), 10, 1, 1, 1, 1, max_pairs=2, max_questions=4)


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Sweep layers for one or several traits."""


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw each trait's sweep."""
    profile = TINY if arguments.tiny else PROFILES[arguments.profile]
    traits = read_traits(arguments.trait, profile.max_pairs, profile.max_questions)  # before any model runs
    model = None if arguments.replot else pl.load_model(arguments.model, dtype=arguments.dtype)
    for trait in traits:
        path = arguments.out / f"layer_sweep_{trait.name}.json"
        start = time.perf_counter()
        content = read_results(path) if model is None else run(model, trait, arguments)
        draw(content, arguments.out)
        print(f"{trait.name}: {path.with_suffix('.html')} ({time.perf_counter() - start:.0f} s)")


def run(model: Any, trait: pl.Trait, arguments: Arguments) -> dict[str, Any]:
    """Calibrate, extract, sweep, confirm; return everything as JSON-able values."""
    profile = TINY if arguments.tiny else PROFILES[arguments.profile]
    config = {
        "model": asdict(pl.describe_model(model)),
        "trait": trait.to_dict(),
        "profile": asdict(profile),
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    store = pl.ShardStore(arguments.runs, config)
    print(f"{trait.name}: unfinished work is kept in {store.folder}")
    # Chosen on every other question, confirmed on the rest: nothing is judged by what it was chosen on.
    selection, fresh = trait.evaluation_questions[0::2], trait.evaluation_questions[1::2]
    sampling = Sampling(profile.max_new_tokens, profile.temperature, arguments.seed)
    drawing: Any = asdict(sampling)
    keeping: Any = {"store": store, "progress": pl.show_progress}
    judge = prepare_judge(model, trait, profile.judge_pairs, sampling, store)
    separation = store.load_or_compute("separation", lambda: measure_judge(judge, sampling)).records
    vector = extract_vector(model, trait, judge, profile.extraction_rollouts, sampling, store)
    sweep = pl.sweep_layers(
        model,
        trait,
        vector,
        coefficients=profile.coefficients,
        layers=range(0, model.cfg.n_layers, profile.layer_step),
        questions=selection,
        judge=judge,
        rollouts=profile.sweep_rollouts,
        random_directions=profile.random_directions,
        **drawing,
        **keeping,
    )
    choice = sweep.choose_coherent() or sweep.choose_by_score()
    confirmation = pl.confirm_choice(
        model,
        vector,
        choice,
        questions=fresh,
        judge=judge,
        rollouts=profile.confirmation_rollouts,
        **drawing,
        **keeping,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    vector.save(arguments.out / f"vector_{trait.name}.safetensors")
    return {
        "config": config,
        "judge": {
            **describe_judge(judge),
            "separation": separation,
        },
        "vector": {
            "counts": asdict(vector.counts),
            "norms": vector.norms.tolist(),
            "split_half_cosine": {k: v.tolist() for k, v in vector.split_half_cosine.items()},
            "provenance": vector.provenance,
        },
        "sweep": sweep.to_json(),
        "confirmation": confirmation.to_json(),
    }


def measure_judge(judge: pl.judges.LikelihoodJudge, sampling: Sampling) -> Shard:
    """Measure the judge on the evaluation questions, which it was not fitted on."""
    print(f"{judge.trait.name}: measuring the judge on held-out questions")
    return Shard(records=asdict(pl.judges.measure_separation(judge, rollouts=2, **asdict(sampling))))


def draw(content: dict[str, Any], out: Path) -> None:
    """Write the figure and some steered responses as text."""
    sweep = pl.evaluation.SweepResult.from_json(content["sweep"])
    confirmation = pl.evaluation.Confirmation.from_json(content["confirmation"])
    name = f"layer_sweep_{sweep.trait}"
    write_figure(plot_sweep(sweep, confirmation), content, out, name)
    lines = [f"{sweep.trait}: layer {confirmation.layer} × {confirmation.coefficient:g} on {sweep.model.name}", ""]
    for question, plain, steered in confirmation.examples[:5]:
        lines += [f"Question:  {question}", f"Unsteered: {plain.strip()}", f"Steered:   {steered.strip()}", ""]
    write_bytes_atomically(out / f"{name}_responses.txt", "\n".join(lines).encode())


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
