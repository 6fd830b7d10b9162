"""Which layers steer a trait, at what cost in coherence, how far above random directions?

    python experiments/layer_sweep.py --trait evil                     # minutes on two cores
    python experiments/layer_sweep.py --trait evil --tiny              # seconds: does it run?
    python experiments/layer_sweep.py --trait evil --profile paper     # the paper's numbers of rollouts; for a GPU
    python experiments/layer_sweep.py --trait evil --replot            # redraw from figures/layer_sweep_evil.json

Reproduces Figures 3 and 13 of "Persona Vectors" (arXiv 2507.21509). Killed at any point, the same command goes on
where it was, and writes what an uninterrupted run writes.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from _figures import write_figure

import persona_lens as pl
from persona_lens.plots import plot_sweep
from persona_lens.storage import write_bytes_atomically


@dataclass(frozen=True)
class Profile:
    """How much is sampled."""

    extraction_rollouts: int
    extraction_tokens: int
    coefficients: tuple[float, ...]
    layer_step: int
    sweep_rollouts: int
    sweep_tokens: int
    random_directions: int
    confirmation_rollouts: int
    max_pairs: int = 5
    max_questions: int = 20


PROFILES = {
    "quick": Profile(1, 32, (1.0, 2.0, 3.0), 2, 1, 24, 2, 4),
    "paper": Profile(10, 1000, (0.5, 1.0, 1.5, 2.0, 2.5), 1, 10, 1000, 8, 10),
}
TINY = Profile(1, 8, (1.0, 2.0), 10, 1, 8, 1, 1, max_pairs=1, max_questions=4)


@dataclass(frozen=True)
class Arguments:
    """Sweep layers for one or several traits."""

    trait: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Bundled trait's name, or path of a trait's JSON file; may be repeated."""
    model: str = "smollm2-135m-instruct"
    """Bundled model, Hugging Face name, folder or GGUF file."""
    profile: Literal["quick", "paper"] = "quick"
    """`quick` for two cores, `paper` for a GPU."""
    tiny: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Seconds instead of minutes; the figure means nothing."""
    replot: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Redraw from the results already written; no model runs."""
    seed: int = 0
    """Seed of all sampling."""
    dtype: str = "auto"
    """`auto`, `float32` or `bfloat16`."""
    out: Path = Path("figures")
    """Where results and figures go."""
    runs: Path = Path(".persona-lens-runs")
    """Where unfinished work is kept."""


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw each trait's sweep."""
    if not arguments.trait:
        raise SystemExit(
            f"--trait is missing: one of {', '.join(pl.list_traits())}, or the path of a trait's JSON file."
        )
    traits = [read_trait(name) for name in arguments.trait]  # before any model runs
    model = None if arguments.replot else pl.load_model(arguments.model, dtype=arguments.dtype)
    for trait in traits:
        path = arguments.out / f"layer_sweep_{trait.name}.json"
        start = time.perf_counter()
        content = json.loads(path.read_text()) if model is None else run(model, trait, arguments)
        draw(content, arguments.out)
        print(f"{trait.name}: {path.with_suffix('.html')} ({time.perf_counter() - start:.0f} s)")


def read_trait(name: str) -> pl.Trait:
    """Load a bundled trait, or one from a file."""
    return pl.Trait.from_json(name) if name.endswith(".json") else pl.load_trait(name)


def run(model: Any, trait: pl.Trait, arguments: Arguments) -> dict[str, Any]:
    """Calibrate, extract, sweep, confirm; return everything as JSON-able values."""
    profile = TINY if arguments.tiny else PROFILES[arguments.profile]
    trait = replace(
        trait,
        instruction_pairs=trait.instruction_pairs[: profile.max_pairs],
        extraction_questions=trait.extraction_questions[: profile.max_questions],
        evaluation_questions=trait.evaluation_questions[: profile.max_questions],
    )
    config = {"model": asdict(pl.describe_model(model)), "trait": asdict(trait), "profile": asdict(profile),
              "seed": arguments.seed}  # fmt: skip
    store = pl.ShardStore(arguments.runs, config)
    print(f"{trait.name}: unfinished work is kept in {store.folder}")
    # Chosen on every other question, confirmed on the rest: nothing is judged by what it was chosen on.
    selection, fresh = trait.evaluation_questions[0::2], trait.evaluation_questions[1::2]
    judge = pl.calibrate_likelihood_judge(
        model, trait, n_pairs=min(2, profile.max_pairs), max_new_tokens=profile.extraction_tokens, seed=arguments.seed
    )
    separation = pl.measure_separation(judge, max_new_tokens=profile.extraction_tokens, seed=arguments.seed)
    vector = pl.extract_persona_vector(
        model, trait, judge=judge, rollouts=profile.extraction_rollouts, max_new_tokens=profile.extraction_tokens,
        seed=arguments.seed, store=store, progress=pl.show_progress,
    )  # fmt: skip
    sweep = pl.sweep_layers(
        model, trait, vector, coefficients=profile.coefficients,
        layers=range(0, model.cfg.n_layers, profile.layer_step),
        questions=selection, judge=judge, rollouts=profile.sweep_rollouts, max_new_tokens=profile.sweep_tokens,
        random_directions=profile.random_directions, seed=arguments.seed, store=store, progress=pl.show_progress,
    )  # fmt: skip
    choice = sweep.choose_coherent() or sweep.choose_by_score()
    confirmation = pl.confirm_choice(
        model, vector, choice, questions=fresh, judge=judge, rollouts=profile.confirmation_rollouts,
        max_new_tokens=profile.sweep_tokens, seed=arguments.seed, store=store, progress=pl.show_progress,
    )  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    vector.save(arguments.out / f"vector_{trait.name}.safetensors")
    return {
        "config": config,
        "judge": {"name": judge.name, "calibration": asdict(judge.calibration), "separation": asdict(separation)},
        "vector": {
            "counts": asdict(vector.counts),
            "norms": vector.norms.tolist(),
            "split_half_cosine": {k: v.tolist() for k, v in vector.split_half_cosine.items()},
            "provenance": vector.provenance,
        },
        "sweep": sweep.to_json(),
        "confirmation": confirmation.to_json(),
    }


def draw(content: dict[str, Any], out: Path) -> None:
    """Write the figure and some steered responses as text."""
    sweep = pl.SweepResult.from_json(content["sweep"])
    confirmation = pl.Confirmation.from_json(content["confirmation"])
    name = f"layer_sweep_{sweep.trait}"
    write_figure(plot_sweep(sweep, confirmation), content, out, name)
    lines = [f"{sweep.trait}: layer {confirmation.layer} × {confirmation.coefficient:g} on {sweep.model.name}", ""]
    for question, plain, steered in confirmation.examples[:5]:
        lines += [f"Question:  {question}", f"Unsteered: {plain.strip()}", f"Steered:   {steered.strip()}", ""]
    write_bytes_atomically(out / f"{name}_responses.txt", "\n".join(lines).encode())


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
