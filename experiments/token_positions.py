"""Which tokens should a persona vector be read from? Response mean, prompt mean, last prompt token, at equal norm.

    python experiments/token_positions.py --trait evil              # minutes on two cores

Reproduces Figure 11 of "Persona Vectors" (arXiv 2507.21509). Every direction is scaled to the norm of the
response-mean vector at its layer, so that only where it points differs; a random direction of that norm is the null.
Layers are fixed fractions of the model's depth and all coefficients are shown: nothing is tuned. Two judges that were
measured first read the same responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from results.token_positions import PositionSetting, TokenPositions

import persona_lens as pl
from persona_lens.evaluation import Condition, rescore
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.kits import Profile, find_sources, prepare_kit
from persona_lens.reproduction.layer_sweep import JudgeNote, ScoreAndCoherence, VectorNote
from persona_lens.statistics.missing import mean_interval
from persona_lens.streams import Stream
from persona_lens.tensors import Add, normalize, sample_random_directions
from persona_lens.vectors import TOKEN_POSITIONS

DIRECTIONS = (*TOKEN_POSITIONS, "random")


@dataclass(frozen=True)
class PositionsProfile(Profile):
    """How much is sampled; depths are fractions of the number of layers."""

    depths: tuple[float, ...]
    coefficients: tuple[float, ...]


PROFILES = {
    "quick": PositionsProfile(0.7, 48, 1, 1, (0.4, 0.5, 0.6), (1.0, 2.0, 3.0)),
    "paper": PositionsProfile(1.0, 1000, 10, 10, (0.4, 0.5, 0.6, 0.7), (0.5, 1.0, 1.5, 2.0, 2.5)),
    "tiny": PositionsProfile(0.7, 6, 1, 1, (0.4, 0.7), (1.0, 2.0), n_pairs=1, n_questions=4, n_examples=10),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw each trait."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    run_each_trait(TokenPositions, "token_positions", traits, profile, arguments, run)


def run(model: HookedModel, trait: pl.Trait, profile: PositionsProfile, arguments: CommonArguments) -> TokenPositions:
    """Extract, steer with every direction at every layer, score."""
    sources = find_sources(model, trait.name, arguments.out)
    config, run = arguments.begin(model, profile, {"experiment": "token_positions", "trait": trait.to_dict()})
    kit = prepare_kit(model, trait, sources, profile, run, arguments)
    # A vector read from written answers has no direction at the prompt, which is the same for both sides.
    sampling = profile.sample_extraction(arguments.seed)
    vector = pl.extract_persona_vector(model, trait, judge=kit.judge, sampling=sampling, run=run)
    n_layers = model.cfg.n_layers
    layers = sorted({min(round(depth * n_layers), n_layers - 1) for depth in profile.depths})
    norms = vector.norms
    directions: dict[str, torch.Tensor] = {
        name: normalize(vector.at(name).directions) * norms[:, None] for name in TOKEN_POSITIONS
    }
    seed = arguments.seed + Stream.TOKEN_POSITIONS
    directions["random"] = sample_random_directions(norms, model.cfg.d_model, 1, seed)[0]
    settings = [(name, at, c) for name in DIRECTIONS for at in layers for c in profile.coefficients]
    steered = [Condition(pl.Intervention.of(at, Add(directions[name][at], c))) for name, at, c in settings]
    scores = pl.score_conditions(
        model, kit.judge, [Condition(), *steered], trait.evaluation_questions,
        sampling=profile.sample(arguments.seed), stream=(Stream.TOKEN_POSITIONS,), run=run,
    )  # fmt: skip
    again = None if kit.second is None else rescore(scores, kit.second)

    def average(table: torch.Tensor) -> torch.Tensor:
        """Return [direction, question]: what the title says is averaged over every setting, chosen by nobody."""
        return table[1:].reshape(len(DIRECTIONS), -1, len(trait.evaluation_questions)).nanmean(dim=1)

    score, coherence = average(scores.by_question), average(scores.coherence_by_question)
    second = None if again is None else average(again.by_question)
    return TokenPositions(
        config=config,
        trait=trait.name,
        judge=kit.judge_note,
        vector=VectorNote(vector.counts, vector.provenance),
        layers=tuple(layers),
        coefficients=profile.coefficients,
        norms={name: tuple(vector.at(name).norms[layers].tolist()) for name in TOKEN_POSITIONS},
        cosine_with_response_mean={
            name: tuple(pl.cosine(directions[name], vector.directions)[layers].tolist()) for name in DIRECTIONS[1:]
        },
        unsteered=ScoreAndCoherence(scores.score(0), scores.coherence(0)),
        settings=tuple(
            PositionSetting(
                scores.score(i),
                scores.coherence(i),
                name,
                at,
                c,
                scores.responses[i][0][0],
                None if again is None else again.score(i),
            )
            for i, (name, at, c) in enumerate(settings, start=1)
        ),
        response_mean_less={
            name: ScoreAndCoherence(mean_interval(score[0] - score[i]), mean_interval(coherence[0] - coherence[i]))
            for i, name in enumerate(DIRECTIONS[1:], start=1)
        },
        second=None if kit.second is None else JudgeNote(kit.second.name),
        unsteered_second=None if again is None else again.score(0),
        response_mean_less_second={}
        if second is None
        else {name: mean_interval(second[0] - second[i]) for i, name in enumerate(DIRECTIONS[1:], start=1)},
        n_questions=len(trait.evaluation_questions),
        n_responses=scores.scores.numel(),
        n_unscored=scores.n_unscored,
    )


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
