"""Does steering bring a trait out? Two sources of the vector, several judges, and nulls of equal coherence.

    python experiments/steering_evidence.py --trait evil --trait humorous

Layer and step are chosen on half of the evaluation questions by one judge, the model's own reading of the text; the
other half is read by judges that share neither model nor prompt with it. Beside the vectors stand: the unsteered model,
the trait's first positive system prompt, steering away, other traits' vectors at the same layer and length, and random
directions of equal length and of equal coherence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from results.steering_evidence import Setting, SteeringEvidence

import persona_lens as pl
from persona_lens.evaluation import Condition, ConditionScores, rescore
from persona_lens.judges import (
    IdentifiedJudge,
    ResidualEncoder,
    calibrate_likelihood_judge,
    fit_embedding_judge,
    validate,
)
from persona_lens.models import HookedModel, encode_conversation
from persona_lens.models.engine.activations import pool_residual_stream
from persona_lens.reproduction.arguments import CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.kits import READING_DEPTH
from persona_lens.reproduction.pages import fill_page
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.tensors import sample_random_directions
from persona_lens.traits import list_written_traits, load_written_examples

NAME = "steering_evidence"
PAGE = Path("docs/results/evidence.md")
# A setting is chosen only if its mean coherence is at least this.
MIN_COHERENCE = 60.0
NULL_SCALES = (1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class EvidenceProfile:
    """How much is sampled; steps are shares of the typical length of a response's mean activation."""

    depths: tuple[float, ...] = (0.4, 0.5, 0.65, 0.8)
    steps: tuple[float, ...] = (0.2, 0.35, 0.5, 0.7)
    max_new_tokens: int = 48
    temperature: float = 0.7
    rollouts: int = 2
    extraction_rollouts: int = 1
    n_directions: int = 16
    n_pairs: int = 5
    n_questions: int = 20


PROFILES = {
    "quick": EvidenceProfile(),
    "paper": EvidenceProfile(max_new_tokens=256, temperature=1.0, rollouts=10, extraction_rollouts=10),
    "tiny": EvidenceProfile((0.4,), (0.2,), 6, 0.7, 1, 1, 2, 1, 4),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw each trait."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait or list_written_traits(), profile.n_pairs, profile.n_questions)
    run_each_trait(SteeringEvidence, NAME, traits, profile, arguments, run)
    if arguments.out == Path("figures") and PAGE.exists():
        found = [SteeringEvidence.load(path) for path in sorted(arguments.out.glob(f"{NAME}_*.json"))]
        fill_page(PAGE, "tables", "\n".join(one.to_markdown() for one in found))


def run(model: HookedModel, trait: pl.Trait, profile: EvidenceProfile, arguments: CommonArguments) -> SteeringEvidence:
    """Make judges and vectors, choose, and read what the choice does."""
    config, run = arguments.begin(model, profile, {"experiment": "steering_evidence", "trait": trait.to_dict()})
    sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, rollouts=profile.rollouts, seed=arguments.seed)
    once = replace(sampling, rollouts=1)
    training = load_written_examples(trait.name, "training")
    reader = ResidualEncoder(model, round(READING_DEPTH * model.cfg.n_layers))
    chooser = fit_embedding_judge(trait.name, training, encoder=reader)
    likelihood = calibrate_likelihood_judge(model, trait, n_pairs=1, sampling=once, run=run)
    judges: list[IdentifiedJudge] = [chooser, fit_embedding_judge(trait.name, training), likelihood]
    judging = load_written_examples(trait.name, "judging")
    validations = tuple(validate(judge, trait.name, judging) for judge in judges)
    vectors = {
        "written": pl.read_persona_vector(model, trait.name, training),
        "sampled": extract(model, trait, chooser, replace(once, rollouts=profile.extraction_rollouts), run),
    }
    lengths = measure_lengths(model, training)
    tuning, held_out = trait.evaluation_questions[0::2], trait.evaluation_questions[1::2]
    settings = {
        source: choose(model, vector, source, lengths, tuning, chooser, likelihood, profile, once, run)
        for source, vector in vectors.items()
    }
    written, sampled = ((settings[one], vectors[one]) for one in ("written", "sampled"))
    conditions = [
        Condition(name="unsteered"),
        Condition(system=trait.positive_system_prompts[0], name="system prompt"),
        *(
            Condition(pl.steer(vector, layer=s.layer, coefficient=sign * s.coefficient), name=f"{s.source} vector{way}")
            for s, vector in (written, sampled)
            for sign, way in ((1, ""), (-1, ", away"))
        ),
    ]
    best, _ = written
    for name in list_written_traits():
        if name != trait.name:
            other = pl.read_persona_vector(model, name, load_written_examples(name, "training"))
            coefficient = best.step * float(lengths[best.layer] / other.norms[best.layer])
            steered = pl.steer(other, layer=best.layer, coefficient=coefficient)
            conditions.append(Condition(steered, name=f"vector of {name}"))
    stream = (Stream.EVIDENCE,)
    responses = pl.score_conditions(model, likelihood, conditions, held_out, sampling=sampling, stream=stream, run=run)
    length = best.step * float(lengths[best.layer])
    directions = sample_random_directions(
        torch.full((1,), length), model.cfg.d_model, profile.n_directions, arguments.seed + Stream.EVIDENCE
    )[:, 0]

    def steer_at_random(scale: float, n: int, questions: tuple[str, ...]) -> ConditionScores:
        """Score a few random directions at a multiple of the vector's length."""
        added = [pl.Intervention.of(best.layer, pl.tensors.Add(one, scale)) for one in directions[:n]]
        named = [Condition(one, name=f"random {index}") for index, one in enumerate(added)]
        return pl.score_conditions(model, likelihood, named, questions, sampling=once, stream=stream, run=run)

    steered_coherence = float(responses.coherences[responses.conditions.index("written vector")].nanmean())
    tried = {
        scale: float(steer_at_random(scale, min(4, profile.n_directions), tuning).coherences.nanmean())
        for scale in NULL_SCALES
    }
    scale = min(NULL_SCALES, key=lambda one: abs(tried[one] - steered_coherence))
    nulls = {
        "random, equal norm": steer_at_random(1.0, profile.n_directions, held_out),
        "random, equal coherence": steer_at_random(scale, profile.n_directions, held_out),
    }
    return SteeringEvidence(
        config=config,
        trait=trait.name,
        settings=tuple(settings.values()),
        validations=validations,
        responses=responses,
        scores={judge.name: score_again(responses, judge, likelihood) for judge in judges},
        nulls=nulls,
        null_scores={
            name: {judge.name: score_again(null, judge, likelihood) for judge in judges} for name, null in nulls.items()
        },
        null_step=best.step * scale,
    )


def extract(
    model: HookedModel, trait: pl.Trait, judge: IdentifiedJudge, sampling: pl.Sampling, run: Run
) -> pl.PersonaVector:
    """Extract the vector from the model's own responses; from all of them where the judge would keep none."""
    try:
        return pl.extract_persona_vector(model, trait, judge=judge, sampling=sampling, run=run)
    except pl.errors.InvalidArgumentError as error:
        print(f"{trait.name}: {error} Every pair is kept.")
        return pl.extract_persona_vector(model, trait, judge="none", sampling=sampling, run=run)


def score_again(scores: ConditionScores, judge: IdentifiedJudge, first: IdentifiedJudge) -> torch.Tensor:
    """Return a judge's scores of responses that another judge was the first to score."""
    return scores.scores if judge is first else rescore(scores, judge).scores


def measure_lengths(model: HookedModel, examples: tuple[pl.traits.WrittenExample, ...]) -> torch.Tensor:
    """Return the typical length, by layer, of the mean activation of an ordinary response."""
    spans = [
        encode_conversation(
            model.tokenizer,
            [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.ordinary}],
            n_ctx=model.cfg.n_ctx,
        )
        for one in examples
    ]
    return torch.stack([means.response_mean.norm(dim=-1) for _, means in pool_residual_stream(model, spans)]).mean(
        dim=0
    )


def choose(
    model: HookedModel,
    vector: pl.PersonaVector,
    source: str,
    lengths: torch.Tensor,
    questions: tuple[str, ...],
    chooser: IdentifiedJudge,
    likelihood: IdentifiedJudge,
    profile: EvidenceProfile,
    sampling: pl.Sampling,
    run: Run,
) -> Setting:
    """Return the layer and step with the highest score among those that stay coherent; else the most coherent one."""
    layers = sorted({round(depth * model.cfg.n_layers) for depth in profile.depths})
    grid = [
        (layer, step, step * float(lengths[layer] / vector.norms[layer])) for layer in layers for step in profile.steps
    ]
    conditions = [Condition(pl.steer(vector, layer=at, coefficient=c), name=f"{at} × {s:g}") for at, s, c in grid]
    found = pl.score_conditions(
        model, likelihood, conditions, questions, sampling=sampling, stream=(Stream.EVIDENCE, 1), run=run
    )
    scores = rescore(found, chooser).by_question.nanmean(dim=1)
    coherence = found.coherence_by_question.nanmean(dim=1)
    good = [index for index in range(len(grid)) if float(coherence[index]) >= MIN_COHERENCE]
    best = max(good, key=lambda i: float(scores[i])) if good else int(coherence.argmax())
    layer, step, coefficient = grid[best]
    cosine = vector.split_half_cosine.get("response_mean")
    kept_by = vector.provenance.get("judge", "")  # written answers were not judged
    return Setting(
        source, layer, step, coefficient, float(scores[best]), float(coherence[best]),
        float("nan") if cosine is None else float(cosine[layer]), vector.counts.kept, kept_by,
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(CommonArguments, description=__doc__))
