"""What is in a vector: its words, the tokens and features that it is a sum of, and what those features do alone.

    python experiments/sae_features.py --trait evil --trait formality --trait hallucination

A small top-k autoencoder is trained with SAELens (the extra `sae`, TransformerLens 3) on the model's answers to bundled
questions, none of which a trait or a judge asks; it is judged on answers to the everyday questions. Each trait's
vector, read from its written answers, is read through the unembedding and the Jacobian lens, written as a sum of few
token directions and of few features, and put beside random directions and vectors of shuffled labels. Then the 50
features nearest to it are steered along, each by itself, beside random features, random directions and the vector: at
the length at which each kind's coherence, on other questions, falls to the same. Two judges read what comes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from results.sae_features import FEATURES, KINDS, RANDOM, RANDOM_FEATURES, UNSTEERED, VECTOR, SaeFeatures, TraitContents
from torch import Tensor

import persona_lens as pl
from persona_lens.evaluation import Condition, rescore
from persona_lens.evaluation.capability import load_ordinary_texts
from persona_lens.evaluation.null_margin import interpolate_strength
from persona_lens.models import HookedModel, unembed_directions
from persona_lens.reproduction.arguments import CommonArguments, read_traits
from persona_lens.reproduction.autoencoder import TrainedAutoencoder, prepare_autoencoder
from persona_lens.reproduction.bench import shuffle_labels
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import Judges, prepare_judges
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.traits import load_written_examples
from persona_lens.vectors import (
    AutoencoderSettings,
    Reconstruction,
    SparseAutoencoder,
    check_decomposition,
    measure_reconstruction,
    rank_features,
    read_jacobian_words,
    read_pairs,
    read_response_tokens,
    read_unembedding,
    sum_token_directions,
)
from persona_lens.vectors.quality.unembedding import name_tokens

NAME = "sae_features"


@dataclass(frozen=True)
class Profile:
    """How much is trained, read and sampled.

    Args:
        training: Of the autoencoder.
        depth: Of the layer, as a share of the model's.
        n_asked: Most questions whose answers it is trained on; None takes all.
        n_held_out: Answers that it is judged by.
        lens_depths: Where the Jacobian lens reads.
        n_texts: Ordinary texts that its Jacobian is an average over.
        n_terms: Of a sum of token directions.
        n_nulls: Random directions and vectors of shuffled labels that readings are compared with.
        n_features: Nearest features that are steered along.
        n_random: Random features and random directions that are, each.
        steps: Lengths that are tried, as shares of the mean length of an ordinary token's activation.
        n_pilots: Directions of a kind that they are tried with.
        coherence: At which kinds are compared.
        n_trial_questions: That set lengths.
        n_questions: That are read.
        answer_tokens: Most tokens of an answer that the autoencoder is trained on or judged by.
    """

    training: AutoencoderSettings
    depth: float = 0.5
    n_asked: int | None = None
    n_held_out: int = 20
    lens_depths: tuple[float, ...] = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
    n_texts: int = 3
    n_terms: int = 32
    n_nulls: int = 16
    n_features: int = 50
    n_random: int = 10
    steps: tuple[float, ...] = (0.12, 0.3, 0.7)
    n_pilots: int = 4
    coherence: float = 60.0
    n_trial_questions: int = 3
    n_questions: int = 6
    max_new_tokens: int = 48
    answer_tokens: int = 96
    temperature: float = 0.7
    n_examples: int | None = None


PROFILES = {
    "quick": Profile(AutoencoderSettings(n_steps=600, learning_rate=1e-3)),
    "paper": Profile(
        AutoencoderSettings(n_features=4096, k=32, n_steps=20000, batch_size=2048), n_held_out=40, n_texts=40,
        n_nulls=64, n_random=50, n_pilots=10, n_trial_questions=10, n_questions=40, max_new_tokens=128, temperature=1.0,
    ),
    "tiny": Profile(
        AutoencoderSettings(n_features=64, k=4, n_steps=5, batch_size=32), n_asked=8, n_held_out=3,
        lens_depths=(0.3, 0.9), n_texts=2, n_terms=4, n_nulls=2, n_features=3, n_random=2, steps=(0.1, 0.3), n_pilots=1,
        n_trial_questions=2, n_questions=2, max_new_tokens=4, answer_tokens=16, n_examples=10,
    ),
}  # fmt: skip


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    result = arguments.read(SaeFeatures, NAME) if arguments.replot else run(arguments.pick(PROFILES), arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html: {result.say_finding()}")


def run(profile: Profile, arguments: CommonArguments) -> SaeFeatures:
    """Train the autoencoder, and take every trait's vector apart."""
    model = arguments.load_model()
    traits = read_traits(arguments.trait or ("evil", "formality", "hallucination"), 5, 20)
    config, run = arguments.begin(model, profile, {"experiment": NAME})
    layer = round(profile.depth * model.cfg.n_layers)
    answers = pl.Sampling(profile.answer_tokens, 1.0, seed=arguments.seed)
    trained = prepare_autoencoder(model, layer, profile.training, answers, profile.n_asked, arguments.share(model))
    held_out = trained.held_out[: profile.n_held_out]
    reconstruction = run.load_or_measure(
        "reconstruction", Reconstruction, lambda: measure_reconstruction(model, trained.autoencoder, held_out)
    )
    ordinary = read_response_tokens(model, held_out, layer)
    found = []
    with run.progress("traits", len(traits)) as advance:
        for trait in traits:
            own = Run(run.part({"trait": trait.to_dict()}).store)
            bench = Bench(model, trait, trained.autoencoder, ordinary, profile, arguments, own)
            found.append(own.load_or_measure("contents", TraitContents, bench.take_apart))
            advance(1)
    return SaeFeatures(
        config | {"traits": [one.to_dict() for one in traits]},
        layer,
        reconstruction,
        *describe_training(trained),
        tuple(found),
    )


def describe_training(trained: TrainedAutoencoder) -> tuple[int, int, int]:
    """Return features, tokens and texts of the training."""
    return trained.autoencoder.n_features, trained.n_tokens, trained.n_texts


@dataclass(frozen=True, eq=False)
class Bench:
    """What one trait's vector is taken apart with."""

    model: HookedModel
    trait: pl.Trait
    autoencoder: SparseAutoencoder
    ordinary: Float[Tensor, "token d_model"]
    profile: Profile
    arguments: CommonArguments
    run: Run

    @property
    def layer(self) -> int:
        """Of the autoencoder."""
        assert self.autoencoder.layer is not None
        return self.autoencoder.layer

    @property
    def seed(self) -> int:
        """Of random directions and features: the same for every trait."""
        return self.arguments.seed * 1000 + Stream.CONTENTS

    def take_apart(self) -> TraitContents:
        """Read the vector in every way, and steer along its features."""
        profile, model = self.profile, self.model
        sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=self.arguments.seed)
        judges = prepare_judges(model, self.trait, sampling, self.arguments.share(model), n_examples=profile.n_examples)
        training = load_written_examples(self.trait.name, "training")[: profile.n_examples]
        pairs = read_pairs(model, self.trait.name, training)
        differences = pairs.positive - pairs.negative
        directions = differences.mean(dim=0)
        vector = directions[self.layer]
        nulls = {
            "shuffled labels": shuffle_labels(differences[:, self.layer], profile.n_nulls, self.seed),
            RANDOM: self.draw(profile.n_nulls),
        }
        last = model.cfg.n_layers - 1
        (lens,) = read_jacobian_words(
            model, [directions], load_ordinary_texts()[: profile.n_texts],
            layers=sorted({min(round(depth * model.cfg.n_layers), last) for depth in profile.lens_depths}),
            n_random=max(2, profile.n_nulls // 2), seed=self.arguments.seed,
        )  # fmt: skip
        tokens, *others = sum_token_directions(model, torch.cat([vector[None], *nulls.values()]), profile.n_terms)
        explained = torch.stack([one.explained for one in others]).split(profile.n_nulls)
        near = rank_features(vector, self.autoencoder, profile.n_features)
        groups = self.list_directions(vector, [(one.feature, one.cosine) for one in near])
        steps, tried = self.meet_coherence(groups, judges, sampling)
        conditions = [Condition(name=UNSTEERED)]
        for kind, members in groups.items():
            conditions += [self.steer(kind, index, one, steps[kind]) for index, one in enumerate(members)]
        asked = self.trait.evaluation_questions[1::2][: profile.n_questions]
        responses = pl.evaluation.score_conditions(
            model, judges.likelihood, conditions, asked, sampling=sampling, stream=(Stream.CONTENTS, 1), run=self.run
        )
        names = name_tokens(model, unembed_directions(model, self.autoencoder.directions[[f.feature for f in near]]), 5)
        return TraitContents(
            trait=self.trait.name,
            validations=judges.validations,
            unembedding=read_unembedding(model, directions),
            lens=lens,
            tokens=tuple(map(model.tokenizer.decode, ([one] for one in tokens.chosen))),
            token_sum=tokens,
            null_explained=dict(zip(nulls, explained, strict=True)),
            features=near,
            feature_words=tuple(tuple(word for word, _ in one.promoted) for one in names),
            null_cosines={name: self.find_nearest(one) for name, one in nulls.items()},
            check=check_decomposition(vector, self.autoencoder, self.ordinary),
            null_checks=tuple(
                check_decomposition(one * vector.norm(), self.autoencoder, self.ordinary) for one in nulls[RANDOM]
            ),
            tried=tried,
            steps=steps,
            responses=responses,
            scores={one.name: rescore(responses, one).scores for one in (judges.reader, judges.sentences)},
        )  # fmt: skip

    def draw(self, n: int) -> Float[Tensor, "direction d_model"]:
        """Draw random directions of length 1."""
        return sample_random_directions(torch.ones(1), self.model.cfg.d_model, n, self.seed)[:, 0]

    def find_nearest(self, directions: Float[Tensor, "direction d_model"]) -> Float[Tensor, " direction"]:
        """Return each direction's cosine with the feature nearest to it, whatever its sign."""
        return torch.tensor([abs(rank_features(one, self.autoencoder, 1)[0].cosine) for one in directions])

    def list_directions(
        self, vector: Float[Tensor, " d_model"], near: Sequence[tuple[int, float]]
    ) -> dict[str, Float[Tensor, "direction d_model"]]:
        """Return the unit directions of each kind, features with the sign of their cosine, random ones with any."""
        units, n = self.autoencoder.directions, self.profile.n_random
        generator = torch.Generator().manual_seed(self.seed)
        others = torch.randperm(self.autoencoder.n_features, generator=generator)
        taken = {index for index, _ in near}
        chosen = [index for index in others.tolist() if index not in taken][:n]
        signs = torch.randint(0, 2, (len(chosen), 1), generator=generator) * 2.0 - 1
        return {
            VECTOR: torch.nn.functional.normalize(vector[None], dim=1),
            FEATURES: torch.stack([units[index] * (1.0 if cosine > 0 else -1.0) for index, cosine in near]),
            RANDOM_FEATURES: units[chosen] * signs,
            RANDOM: self.draw(n),
        }

    def steer(self, kind: str, index: int, direction: Float[Tensor, " d_model"], step: float) -> Condition:
        """Return what adds a unit direction at a length."""
        length = step * float(self.ordinary.norm(dim=1).mean())
        return Condition(pl.Intervention.of(self.layer, pl.tensors.Add(direction, length)), name=f"{kind} {index}")

    def meet_coherence(
        self, groups: Mapping[str, Float[Tensor, "direction d_model"]], judges: Judges, sampling: pl.Sampling
    ) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
        """Return the step at which each kind's coherence falls to the target on other questions, and what was tried."""
        steps = self.profile.steps
        pilots = {kind: spread(members, self.profile.n_pilots) for kind, members in groups.items()}
        asked = self.trait.evaluation_questions[0::2][: self.profile.n_trial_questions]
        conditions = [
            self.steer(kind, index, one, step)
            for kind in KINDS
            for step in steps
            for index, one in enumerate(pilots[kind])
        ]
        trials = pl.evaluation.score_conditions(
            self.model, judges.likelihood, conditions, asked,
            sampling=sampling, stream=(Stream.CONTENTS, 0), run=self.run,
        )  # fmt: skip
        rest = list(trials.coherence_by_question.nanmean(dim=1))
        tried, met = {}, {}
        for kind in KINDS:
            n = len(pilots[kind])
            means = [float(torch.stack([rest.pop(0) for _ in range(n)]).nanmean()) for _ in steps]
            met[kind] = interpolate_strength(steps, means, self.profile.coherence)
            tried[kind] = tuple(means)
        return met, tried


def spread(members: Float[Tensor, "direction d_model"], n: int) -> Float[Tensor, "direction d_model"]:
    """Return some members that lie apart in their order."""
    places = sorted({round(i * (len(members) - 1) / max(1, n - 1)) for i in range(min(n, len(members)))})
    return members[places]


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
