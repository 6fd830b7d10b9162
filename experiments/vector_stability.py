"""How many pairs of responses does a sampled vector need before its two halves agree, and at which layers do they?

    python experiments/vector_stability.py --trait evil      # four minutes on two cores

A vector is extracted from one, two, four and eight responses to each question under each instruction. The halves are
every other extraction question, so that they share instructions and judge and no question. Beside them stand the halves
of the vector that is read from written answers, which needs no responses at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from results.vector_stability import Stability, VectorStability

import persona_lens as pl
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.reproduction.layer_sweep import JudgeNote
from persona_lens.traits import list_written_traits, load_written_examples


@dataclass(frozen=True)
class Profile:
    """How much is sampled."""

    temperature: float
    max_new_tokens: int
    rollouts: tuple[int, ...]
    n_pairs: int = 5
    n_questions: int = 20
    n_examples: int | None = None


PROFILES = {
    "quick": Profile(0.7, 48, (1, 2, 4, 8)),
    "paper": Profile(1.0, 1000, (1, 2, 5, 10)),
    "tiny": Profile(0.7, 6, (1, 2), 1, 4, 10),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw each trait."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    run_each_trait(VectorStability, "vector_stability", traits, profile, arguments, run)


def run(model: HookedModel, trait: pl.Trait, profile: Profile, arguments: CommonArguments) -> VectorStability:
    """Extract with more and more responses."""
    config, run = arguments.begin(model, profile, {"experiment": "vector_stability", "trait": trait.to_dict()})
    once = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    judge = prepare_judges(model, trait, once, arguments.share(model), n_examples=profile.n_examples).reader
    found = []
    for rollouts in profile.rollouts:
        source = f"sampled, {rollouts} response{'s' if rollouts > 1 else ''}"
        sampling = replace(once, rollouts=rollouts)
        try:
            vector = pl.extract_persona_vector(model, trait, judge=judge, sampling=sampling, run=run)
        except pl.errors.InvalidArgumentError:  # no pair was kept: a finding
            n_asked = len(trait.instruction_pairs) * len(trait.extraction_questions) * rollouts
            found.append(Stability(source, n_asked, 0, ()))
        else:
            found.append(note_stability(vector, source))
    if trait.name in list_written_traits():
        examples = load_written_examples(trait.name, "training")[: profile.n_examples]
        found.append(note_stability(pl.read_persona_vector(model, trait.name, examples), "written answers"))
    return VectorStability(config=config, trait=trait.name, judge=JudgeNote(judge.name), found=tuple(found))


def note_stability(vector: pl.PersonaVector, source: str) -> Stability:
    """Return a vector's split-half cosines with the pairs that it rests on; none where a half kept no pair."""
    cosines = vector.split_half_cosine.get("response_mean")
    return Stability(
        source, vector.counts.pairs, vector.counts.kept, () if cosines is None else tuple(cosines.tolist())
    )


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
