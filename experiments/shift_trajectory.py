"""How do persona projections move while a model is being fine-tuned, with and without prevention?

    python experiments/shift_trajectory.py --trait evil              # minutes on two cores
    python experiments/shift_trajectory.py --trait evil --tiny       # a minute: does it run?
    python experiments/shift_trajectory.py --trait evil --replot     # redraw from figures/shift_trajectory_evil.json

Trains on the trait's overt data (level II) twice, plainly and with preventative steering at the layer of
layer_sweep.py, and measures the shift along this trait's vector and two others' after every few optimiser steps, the
steering being off for the measurement. Section 5.2 of "Persona Vectors" (arXiv 2507.21509). Killed at any point, the
same command goes on where it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import torch
import tyro
from _figures import write_figure
from _finetuning import TINY, TRAINING, make_trait_rows, prepare_kit
from _measuring import CommonArguments, describe_mean, read_results, read_traits

import persona_lens as pl
from persona_lens.plots import plot_trajectory
from persona_lens.storage import collect_versions

OTHERS = ("evil", "sycophancy", "hallucination")


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Watch one training for each trait named."""

    other: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Trait whose projection is measured too; evil, sycophancy and hallucination if left out."""
    coefficient: float = 3.0
    """Of preventative steering, multiplying the raw vector."""
    every: int = 2
    """Optimiser steps between two measurements."""


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw each trait's trajectory."""
    profile = TINY if arguments.tiny else TRAINING[arguments.profile]
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    model: Any = None if arguments.replot else pl.load_model(arguments.model, dtype=arguments.dtype)
    for trait in traits:
        path = arguments.out / f"shift_trajectory_{trait.name}.json"
        content = read_results(path) if model is None else run(model, trait, arguments)
        write_figure(plot_trajectory(content), content, arguments.out, path.stem)
        print(f"{trait.name}: {path.with_suffix('.html')}")


def run(model: Any, trait: pl.Trait, arguments: Arguments) -> dict[str, Any]:
    """Train twice and track; return everything as JSON-able values."""
    profile = TINY if arguments.tiny else TRAINING[arguments.profile]
    settings = replace(profile.settings, seed=arguments.seed, dtype=arguments.dtype)
    others = read_traits(arguments.other or OTHERS, profile.n_pairs, profile.n_questions)
    traits = [trait, *(other for other in others if other.name != trait.name)]
    names = [one.name for one in traits]
    config = {
        "experiment": "shift_trajectory",
        "model": asdict(pl.describe_model(model)),
        "trait": trait.to_dict(),
        "others": [one.to_dict() for one in traits[1:]],
        "profile": asdict(profile),
        "coefficient": arguments.coefficient,
        "every": arguments.every,
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    store = pl.ShardStore(arguments.runs, config)
    print(f"{trait.name}: unfinished work is kept in {store.folder}")
    kits = [prepare_kit(model, one, profile, arguments.out, arguments.seed, store) for one in traits]
    rows = make_trait_rows(model, kits[0], "II", profile, arguments.seed, store)
    tracker = pl.finetuning.Tracker(
        vectors={kit.trait.name: kit.vector for kit in kits},
        layers={kit.trait.name: kit.layer for kit in kits},
        questions={kit.trait.name: kit.trait.evaluation_questions for kit in kits},
        every=arguments.every,
    )
    steered = pl.steer(kits[0].vector, layer=kits[0].layer, coefficient=arguments.coefficient)
    ways = {"no prevention": (), f"preventative × {arguments.coefficient:+g}": steered}
    runs = {}
    for index, (name, sites) in enumerate(ways.items()):
        done = pl.finetune(
            arguments.model, rows, store.folder / "adapters" / str(index), settings=settings, interventions=sites,
            track=tracker, progress=pl.show_progress,
        )  # fmt: skip
        first = done.tracked[0]["projections"]
        runs[name] = {
            "losses": [round(loss, 4) for loss in done.losses],
            "steps": [entry["step"] for entry in done.tracked],
            "shifts": {
                one: [
                    describe_mean(torch.tensor(entry["projections"][one]) - torch.tensor(first[one]))
                    for entry in done.tracked
                ]
                for one in names
            },
        }
    return {
        "config": config,
        "trait": trait.name,
        "kits": {kit.trait.name: kit.describe() for kit in kits},
        "runs": runs,
        "n_questions": len(trait.evaluation_questions),
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
