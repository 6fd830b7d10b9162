"""Do attention heads that a probe chooses carry a trait, and does shifting them move what the model finds likely?

    python experiments/heads.py --trait evil --trait hallucination      # six minutes on one core

Heads and directions come from the training half of the written answers. On the judging half the chosen heads are
shifted by multiples of their standard deviations, and the likelihoods of overt, opposite and ordinary answers are
compared, which needs no judge; beside them as many random heads along their own directions, and random directions at
the chosen heads with steps of equal length. Number of heads (the paper's share of all) and coefficients are set
beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from results.heads import CHOSEN, OTHER_DIRECTIONS, OTHER_HEADS, Heads, Shifted

import persona_lens as pl
from persona_lens.interventions import shift_heads
from persona_lens.models import HookedModel, TokenSpans, encode_conversation
from persona_lens.models.engine.likelihood import mean_log_likelihoods
from persona_lens.models.text.chat import build_messages
from persona_lens.reproduction.arguments import CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.entrance import enter
from persona_lens.streams import Stream
from persona_lens.tensors import normalize
from persona_lens.traits import WrittenExample, load_written_examples
from persona_lens.vectors import HeadChoice, choose_heads, read_head_pairs

KINDS = ("overt", "opposite", "ordinary")
# The paper shifts 48 of 1,024 heads.
SHARE = 48 / 1024


@dataclass(frozen=True)
class Profile:
    """How much is read, and by how many standard deviations heads are shifted."""

    coefficients: tuple[float, ...] = (-10.0, -5.0, 5.0, 10.0)
    random_coefficients: tuple[float, ...] = (10.0,)
    n_draws: int = 4
    n_examples: int | None = None


PROFILES = {
    "quick": Profile(),
    "paper": Profile((-20.0, -15.0, -10.0, -5.0, 5.0, 10.0, 15.0, 20.0), (5.0, 10.0, 15.0, 20.0), 16),
    "tiny": Profile((-2.0, 2.0), (2.0,), 2, 6),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw each trait."""
    run_each_trait(Heads, "heads", read_traits(arguments.trait, 5, 20), arguments.pick(PROFILES), arguments, run)


def run(model: HookedModel, trait: pl.Trait, profile: Profile, arguments: CommonArguments) -> Heads:
    """Choose heads on one half of the answers, and shift them on the other."""
    config, run = arguments.begin(model, profile, {"experiment": "heads", "trait": trait.name})
    training, judging = (
        load_written_examples(trait.name, half)[: profile.n_examples] for half in ("training", "judging")
    )
    pairs = read_head_pairs(model, trait.name, training)
    n_heads = max(1, round(SHARE * model.cfg.n_layers * model.cfg.n_heads))
    every = choose_heads(pairs, model.cfg.n_layers * model.cfg.n_heads, seed=arguments.seed)
    choice = take_heads(every, range(n_heads))
    texts = encode(model, judging)
    draws = range(profile.n_draws)
    ways = [(CHOSEN, one, [choice]) for one in profile.coefficients]
    for coefficient in profile.random_coefficients:
        generators = [np.random.default_rng((arguments.seed, Stream.HEADS, draw)) for draw in draws]
        ways.append((OTHER_HEADS, coefficient, [draw_heads(every, n_heads, one) for one in generators]))
        ways.append((OTHER_DIRECTIONS, coefficient, [draw_directions(choice, one) for one in generators]))

    def measure(way: str, coefficient: float, choices: Sequence[HeadChoice]) -> Shifted:
        found = torch.stack([score(model, texts, shift_heads(one, coefficient)) for one in choices])
        return Shifted(way, coefficient, found[:, 0] - found[:, 1], found[:, 2])

    with run.progress("shifting heads (settings)", 1 + len(ways)) as advance:
        plain = measure("nothing", 0.0, [choice])
        advance(1)
        shifted = []
        for way in ways:
            shifted.append(measure(*way))
            advance(1)
    return Heads(config=config, trait=trait.name, choice=choice, plain=plain, shifted=tuple(shifted))


def encode(model: HookedModel, examples: Sequence[WrittenExample]) -> list[TokenSpans]:
    """Return the answers of the three kinds, kind by kind."""
    return [
        encode_conversation(
            model.tokenizer,
            [*build_messages(one.question), {"role": "assistant", "content": getattr(one, kind)}],
            n_ctx=model.cfg.n_ctx,
        )
        for kind in KINDS
        for one in examples
    ]


def score(model: HookedModel, texts: Sequence[TokenSpans], intervention: pl.Intervention) -> torch.Tensor:
    """Return mean log-likelihoods a token, ``[kind, question]``, of the shifted model."""
    with pl.hooked(model, intervention):
        return torch.tensor(mean_log_likelihoods(model, texts)).view(len(KINDS), -1)


def take_heads(every: HeadChoice, taken: Sequence[int]) -> HeadChoice:
    """Return some of the heads, by their rank, with their directions and standard deviations."""
    rows = torch.tensor(list(taken))
    heads = tuple(every.heads[at] for at in taken)
    return replace(every, heads=heads, directions=every.directions[rows], sigmas=every.sigmas[rows])


def draw_heads(every: HeadChoice, n_heads: int, generator: np.random.Generator) -> HeadChoice:
    """Return as many of the heads that were not chosen, each with its own direction and standard deviation."""
    return take_heads(every, generator.choice(range(n_heads, len(every.heads)), size=n_heads, replace=False).tolist())


def draw_directions(choice: HeadChoice, generator: np.random.Generator) -> HeadChoice:
    """Return the chosen heads with random directions and the steps that they had."""
    drawn = torch.from_numpy(generator.standard_normal(tuple(choice.directions.shape))).float()
    return replace(choice, directions=normalize(drawn))


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
