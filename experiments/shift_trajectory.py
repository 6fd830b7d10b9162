"""How do persona projections move while a model is being fine-tuned, with and without prevention?

    python experiments/shift_trajectory.py --trait evil              # minutes on two cores

Trains on the trait's overt data (level II) twice, plainly and with preventative steering at the layer of
layer_sweep.py, and measures the shift along this trait's vector and two others' after every few optimiser steps, the
steering being off for the measurement. Section 5.2 of "Persona Vectors" (arXiv 2507.21509).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from results.shift_trajectory import ShiftTrajectory, TrainingRun

import persona_lens as pl
from persona_lens.finetuning import Tracker
from persona_lens.interventions import NOTHING
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import PAPER_TRAITS, CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.kits import find_sources, prepare_kit
from persona_lens.reproduction.trained_models import describe_kit
from persona_lens.reproduction.training import TrainingProfile, make_trait_rows, pick_training
from persona_lens.statistics.missing import mean_interval


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Watch one training for each trait named."""

    other: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Trait whose projection is measured too; evil, sycophancy and hallucination if left out."""
    coefficient: float = 3.0
    """Of preventative steering, multiplying the raw vector."""
    every: int = 2
    """Optimiser steps between two measurements."""


def main(arguments: Arguments) -> None:
    """Run or redraw each trait."""
    profile = pick_training(arguments)
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    run_each_trait(ShiftTrajectory, "shift_trajectory", traits, profile, arguments, run)


def run(model: HookedModel, trait: pl.Trait, profile: TrainingProfile, arguments: Arguments) -> ShiftTrajectory:
    """Train twice and track."""
    others = read_traits(arguments.other or PAPER_TRAITS, profile.n_pairs, profile.n_questions)
    traits = [trait, *(other for other in others if other.name != trait.name)]
    sources = [find_sources(model, one.name, arguments.out) for one in traits]
    parts = {
        "experiment": "shift_trajectory",
        "trait": trait.to_dict(),
        "others": [one.to_dict() for one in traits[1:]],
        "coefficient": arguments.coefficient,
        "every": arguments.every,
        "sources": [one.describe() for one in sources],
    }
    config, run = arguments.begin(model, profile, parts)
    kits = [
        prepare_kit(model, one, its_own, profile, run, arguments) for one, its_own in zip(traits, sources, strict=True)
    ]
    rows = make_trait_rows(model, kits[0], "II", profile.n_rows, profile.sample_rows(arguments.seed), run)
    tracker = Tracker(
        vectors={kit.trait.name: kit.vector for kit in kits},
        layers={kit.trait.name: kit.layer for kit in kits},
        questions={kit.trait.name: kit.trait.evaluation_questions for kit in kits},
        every=arguments.every,
    )
    steered = pl.steer(kits[0].vector, layer=kits[0].layer, coefficient=arguments.coefficient)
    runs = {}
    for index, (name, done) in enumerate(
        {"no prevention": NOTHING, f"preventative × {arguments.coefficient:+g}": steered}.items()
    ):
        trained = pl.finetune(
            arguments.model, rows, run.folder / "adapters" / str(index), settings=profile.settings, intervention=done,
            track=tracker, run=run,
        )  # fmt: skip
        first = trained.tracked[0]["projections"]
        runs[name] = TrainingRun(
            losses=trained.losses,
            steps=tuple(entry["step"] for entry in trained.tracked),
            shifts={
                one.name: tuple(
                    mean_interval(torch.tensor(entry["projections"][one.name]) - torch.tensor(first[one.name]))
                    for entry in trained.tracked
                )
                for one in traits
            },
        )
    return ShiftTrajectory(
        config=config,
        trait=trait.name,
        kits={kit.trait.name: describe_kit(kit) for kit in kits},
        runs=runs,
        n_questions=len(trait.evaluation_questions),
    )


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
