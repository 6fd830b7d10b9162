"""Does steering bring a trait out? Two sources of the vector, several judges, and nulls of equal coherence.

    python experiments/steering_evidence.py --trait evil --trait humorous

Layer and step are chosen on half of the evaluation questions by one judge, the model's own reading of the text. The
other half, and the questions of the written examples that nothing was fitted on, are read by the other judges too, of
which that by sentence vectors shares neither model nor prompt with it. Beside the vectors stand: the unsteered model,
the trait's first positive system prompt, steering away, other traits' vectors at the same layer and length, vectors of
shuffled labels of equal length, and random directions of equal coherence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from results.steering_evidence import SteeringEvidence

import persona_lens as pl
from persona_lens.evaluation import Condition, rescore
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.bench import Bench, NullSize, extract_or_keep_all, measure_lengths, note_setting
from persona_lens.reproduction.comparison import Setting
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.streams import Stream
from persona_lens.traits import list_written_traits, load_written_examples

NAME = "steering_evidence"
# A setting is chosen only if its mean coherence is at least this.
MIN_COHERENCE = 60.0


@dataclass(frozen=True)
class EvidenceProfile:
    """How much is sampled; steps are shares of the typical length of a response's mean activation."""

    depths: tuple[float, ...] = (0.4, 0.5, 0.65, 0.8)
    steps: tuple[float, ...] = (0.05, 0.1, 0.15, 0.25)
    max_new_tokens: int = 48
    temperature: float = 0.7
    rollouts: int = 1
    extraction_rollouts: int = 1
    n_directions: int = 16
    n_null_questions: int = 12
    n_pairs: int = 5
    n_questions: int = 20
    n_examples: int | None = None


PROFILES = {
    "quick": EvidenceProfile(),
    "paper": EvidenceProfile(max_new_tokens=256, temperature=1.0, rollouts=10, extraction_rollouts=10),
    "tiny": EvidenceProfile((0.4,), (0.2,), 6, 0.7, 1, 1, 2, 2, 1, 4, 10),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw each trait."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait or list_written_traits(), profile.n_pairs, profile.n_questions)
    run_each_trait(SteeringEvidence, NAME, traits, profile, arguments, run)


def run(model: HookedModel, trait: pl.Trait, profile: EvidenceProfile, arguments: CommonArguments) -> SteeringEvidence:
    """Make judges and vectors, choose, and read what the choice does."""
    config, run = arguments.begin(model, profile, {"experiment": NAME, "trait": trait.to_dict()})
    sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    judges = prepare_judges(model, trait, sampling, arguments.share(model), n_examples=profile.n_examples)
    training, judging = (load_written_examples(trait.name, half)[: profile.n_examples]
                         for half in ("training", "judging"))  # fmt: skip
    vectors = {
        "written": pl.read_persona_vector(model, trait.name, training),
        "sampled": extract_or_keep_all(
            model, trait, judges.reader, replace(sampling, rollouts=profile.extraction_rollouts), run
        ),
    }  # fmt: skip
    lengths = measure_lengths(model, training)
    bench = Bench(model, trait, judges, training, lengths, sampling, Stream.EVIDENCE, run, arguments.share(model))
    tuning = trait.evaluation_questions[0::2]
    held_out = (*trait.evaluation_questions[1::2], *(one.question for one in judging))
    chosen = {
        f"{source} vector": (vector, choose(bench, vector, source, tuning, profile))
        for source, vector in vectors.items()
    }
    null = NullSize(profile.n_directions, profile.n_null_questions)
    compared = bench.compare(chosen, held_out, tuning, null, profile.rollouts, profile.n_examples)
    return SteeringEvidence(
        config=config,
        trait=trait.name,
        validations=judges.validations,
        **vars(compared),
        settings=tuple(setting for _, setting in chosen.values()),
    )


def choose(
    bench: Bench, vector: pl.PersonaVector, source: str, questions: Sequence[str], profile: EvidenceProfile
) -> Setting:
    """Return the layer and step with the highest score among those that stay coherent; else the most coherent one."""
    layers = sorted({round(depth * bench.model.cfg.n_layers) for depth in profile.depths})
    grid = [(layer, step, bench.scale(vector, layer, step)) for layer in layers for step in profile.steps]
    conditions = [Condition(pl.steer(vector, layer=at, coefficient=c), name=f"{at} × {s:g}") for at, s, c in grid]
    found = bench.score(conditions, questions, 1)
    scores = rescore(found, bench.judges.reader).by_question.nanmean(dim=1)
    coherence = found.coherence_by_question.nanmean(dim=1)
    good = [index for index in range(len(grid)) if float(coherence[index]) >= MIN_COHERENCE]
    best = max(good, key=lambda i: float(scores[i])) if good else int(coherence.argmax())
    layer, step, coefficient = grid[best]
    return note_setting(vector, source, layer, step, coefficient, float(scores[best]), float(coherence[best]))


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
