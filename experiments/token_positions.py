"""Which tokens should a persona vector be read from? Response mean, prompt mean, last prompt token, at equal norm.

    python experiments/token_positions.py --trait evil              # minutes on two cores
    python experiments/token_positions.py --trait evil --tiny       # seconds: does it run?
    python experiments/token_positions.py --trait evil --replot     # redraw from figures/token_positions_evil.json

Reproduces Figure 11 of "Persona Vectors" (arXiv 2507.21509). Every direction is scaled to the norm of the
response-mean vector at its layer, so that only where it points differs; a random direction of that norm is the null.
Layers are fixed fractions of the model's depth and all coefficients are shown: nothing is tuned. figures/vector_evil.
safetensors is used if it fits. Killed at any point, the same command goes on where it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import tyro
from _figures import write_figure
from _measuring import (
    CommonArguments,
    Configuration,
    Sampling,
    describe_judge,
    describe_mean,
    extract_vector,
    find_vector,
    prepare_judge,
    read_results,
    read_traits,
    score_configurations,
)

import persona_lens as pl
from persona_lens.plots import plot_token_positions
from persona_lens.storage import collect_versions
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.vectors import TOKEN_POSITIONS

DIRECTIONS = (*TOKEN_POSITIONS, "random")


@dataclass(frozen=True)
class Profile:
    """How much is sampled; depths are fractions of the number of layers."""

    temperature: float
    max_new_tokens: int
    extraction_rollouts: int
    rollouts: int
    judge_pairs: int
    depths: tuple[float, ...]
    coefficients: tuple[float, ...]
    n_pairs: int = 5
    n_questions: int = 20


PROFILES = {
    "quick": Profile(0.7, 24, 1, 1, 1, (0.4, 0.5, 0.6), (1.0, 2.0, 3.0)),
    "paper": Profile(1.0, 1000, 10, 10, 5, (0.4, 0.5, 0.6, 0.7), (0.5, 1.0, 1.5, 2.0, 2.5)),
}
TINY = Profile(0.7, 6, 1, 1, 1, (0.4, 0.7), (1.0, 2.0), n_pairs=1, n_questions=4)


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Compare token positions for one or several traits."""


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw each trait's comparison."""
    profile = TINY if arguments.tiny else PROFILES[arguments.profile]
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    model = None if arguments.replot else pl.load_model(arguments.model, dtype=arguments.dtype)
    for trait in traits:
        name = f"token_positions_{trait.name}"
        path = arguments.out / f"{name}.json"
        content = read_results(path) if model is None else run(model, trait, profile, arguments)
        write_figure(plot_token_positions(content), content, arguments.out, name)
        print(f"{trait.name}: {path.with_suffix('.html')}")


def run(model: Any, trait: pl.Trait, profile: Profile, arguments: Arguments) -> dict[str, Any]:
    """Extract, steer with every direction at every layer, score; return everything as JSON-able values."""
    sampling = Sampling(profile.max_new_tokens, profile.temperature, arguments.seed)
    made = {"rollouts": profile.extraction_rollouts, **asdict(sampling)}
    vector, source = find_vector(model, trait.name, arguments.out, **made)
    config = {
        "experiment": "token_positions",
        "model": asdict(pl.describe_model(model)),
        "trait": trait.to_dict(),
        "profile": asdict(profile),
        "vector": source,
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    store = pl.ShardStore(arguments.runs, config)
    print(f"{trait.name}: vector {source}; unfinished work is kept in {store.folder}")
    judge = prepare_judge(model, trait, profile.judge_pairs, sampling, store)
    vector = vector or extract_vector(model, trait, judge, profile.extraction_rollouts, sampling, store)
    n_layers = model.cfg.n_layers
    layers = sorted({min(round(depth * n_layers), n_layers - 1) for depth in profile.depths})
    norms = vector.norms
    directions: dict[str, torch.Tensor] = {
        name: pl.tensors.normalize(vector.at(name).directions) * norms[:, None] for name in TOKEN_POSITIONS
    }
    directions["random"] = sample_random_directions(
        norms, model.cfg.d_model, 1, arguments.seed + Stream.TOKEN_POSITIONS
    )[0]
    settings = [(name, at, c) for name in DIRECTIONS for at in layers for c in profile.coefficients]
    steered = [
        Configuration((pl.SiteIntervention(at, pl.tensors.Add(directions[name][at], c)),)) for name, at, c in settings
    ]
    scores = score_configurations(
        model, judge, [Configuration(), *steered], trait.evaluation_questions, profile.rollouts,
        (arguments.seed, Stream.TOKEN_POSITIONS), sampling, store,
    )  # fmt: skip
    # [direction, layer × coefficient, question]: what the title says is averaged over every setting, chosen by nobody.
    shape = (len(DIRECTIONS), -1, len(trait.evaluation_questions))
    by_direction = [table[1:].reshape(shape).nanmean(dim=1) for table in (scores.score, scores.coherence)]
    return {
        "config": config,
        "trait": trait.name,
        "judge": describe_judge(judge),
        "vector": {"counts": asdict(vector.counts), "provenance": vector.provenance},
        "layers": layers,
        "coefficients": list(profile.coefficients),
        "norms": {name: _round(vector.at(name).norms[layers]) for name in TOKEN_POSITIONS},
        "cosine_with_response_mean": {
            name: _round(pl.cosine(directions[name], vector.directions)[layers]) for name in DIRECTIONS[1:]
        },
        "unsteered": {"score": describe_mean(scores.score[0]), "coherence": describe_mean(scores.coherence[0])},
        "settings": [
            {
                "direction": name,
                "layer": at,
                "coefficient": c,
                "score": describe_mean(scores.score[i]),
                "coherence": describe_mean(scores.coherence[i]),
                "example": scores.examples[i],
            }
            for i, (name, at, c) in enumerate(settings, start=1)
        ],
        "response_mean_less": {
            name: {
                key: describe_mean(table[0] - table[i])
                for key, table in zip(("score", "coherence"), by_direction, strict=True)
            }
            for i, name in enumerate(DIRECTIONS[1:], start=1)
        },
        "n_questions": len(trait.evaluation_questions),
        "n_responses": scores.n_responses,
        "n_unscored": scores.n_unscored,
    }


def _round(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
