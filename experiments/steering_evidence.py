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
from pathlib import Path

import torch
import tyro
from jaxtyping import Float
from results.steering_evidence import SHOWPIECE, Setting, SteeringEvidence, summarize
from torch import Tensor

import persona_lens as pl
from persona_lens.evaluation import Condition, ConditionScores, rescore
from persona_lens.judges import IdentifiedJudge
from persona_lens.models import HookedModel, encode_conversation
from persona_lens.models.engine.activations import pool_residual_stream
from persona_lens.reproduction.arguments import CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.judges import Judges, prepare_judges
from persona_lens.reproduction.pages import fill_page
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.tensors import sample_random_directions
from persona_lens.traits import WrittenExample, list_written_traits, load_written_examples
from persona_lens.traits.written import Kind

NAME = "steering_evidence"
PAGE = Path("docs/results/evidence.md")
# A setting is chosen only if its mean coherence is at least this.
MIN_COHERENCE = 60.0
NULL_SCALES = (1.0, 1.5, 2.0, 3.0)
# Directions that show how coherent a scale leaves the text.
N_PILOTS = 2


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


@dataclass(frozen=True, eq=False)
class Bench:
    """What every setting is tried with; ``lengths`` are typical ones, by layer, of an ordinary response's mean."""

    model: HookedModel
    judges: Judges
    lengths: Float[Tensor, " layer"]
    sampling: pl.Sampling
    run: Run

    def scale(self, vector: pl.PersonaVector, layer: int, step: float) -> float:
        """Return the coefficient that makes a vector as long as the step says."""
        return step * float(self.lengths[layer] / vector.norms[layer])

    def score(self, conditions: Sequence[Condition], questions: Sequence[str], *stream: int) -> ConditionScores:
        """Sample, with the likelihood judge's scores and coherence."""
        return pl.score_conditions(
            self.model, self.judges.likelihood, conditions, questions,
            sampling=self.sampling, stream=(Stream.EVIDENCE, *stream), run=self.run,
        )  # fmt: skip

    def read(self, scored: ConditionScores) -> dict[str, Tensor]:
        """Return every judge's scores of the same responses."""
        first = self.judges.likelihood
        return {
            judge.name: scored.scores if judge is first else rescore(scored, judge).scores for judge in self.judges.all
        }

    def steer_along(
        self, directions: Float[Tensor, "direction d_model"], layer: int, scale: float, questions: Sequence[str]
    ) -> ConditionScores:
        """Score steering along each of a few directions at a multiple of their length."""
        added = [pl.Intervention.of(layer, pl.tensors.Add(one, scale)) for one in directions]
        return self.score([Condition(one, name=f"direction {index}") for index, one in enumerate(added)], questions)


def main(arguments: CommonArguments) -> None:
    """Run or redraw each trait."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait or list_written_traits(), profile.n_pairs, profile.n_questions)
    run_each_trait(SteeringEvidence, NAME, traits, profile, arguments, run)
    if arguments.out == Path("figures") and PAGE.exists():
        found = [SteeringEvidence.load(path) for path in sorted(arguments.out.glob(f"{NAME}_*.json"))]
        fill_page(PAGE, "tables", "\n".join(one.to_markdown() for one in found))
        fill_page(Path("README.md"), "evidence", summarize(found))
        shown = [one for one in found if one.trait == SHOWPIECE]
        if shown:
            fill_page(Path("README.md"), "pairs", shown[0].pairs_to_markdown())


def run(model: HookedModel, trait: pl.Trait, profile: EvidenceProfile, arguments: CommonArguments) -> SteeringEvidence:
    """Make judges and vectors, choose, and read what the choice does."""
    config, run = arguments.begin(model, profile, {"experiment": NAME, "trait": trait.to_dict()})
    sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    judges = prepare_judges(model, trait, sampling, arguments.share(model), n_examples=profile.n_examples)
    training, judging = (load_written_examples(trait.name, half)[: profile.n_examples]
                         for half in ("training", "judging"))  # fmt: skip
    vectors = {
        "written": pl.read_persona_vector(model, trait.name, training),
        "sampled": extract(
            model, trait, judges.reader, replace(sampling, rollouts=profile.extraction_rollouts), run
        ),
    }  # fmt: skip
    lengths = read_answers(model, training, "ordinary").norm(dim=-1).mean(dim=0)
    bench = Bench(model, judges, lengths, sampling, run)
    tuning = trait.evaluation_questions[0::2]
    held_out = (*trait.evaluation_questions[1::2], *(one.question for one in judging))
    settings = {source: choose(bench, vector, source, tuning, profile) for source, vector in vectors.items()}
    best = settings["written"]
    conditions = [
        Condition(name="unsteered"),
        Condition(system=trait.positive_system_prompts[0], name="system prompt"),
        *(
            Condition(
                pl.steer(vectors[source], layer=s.layer, coefficient=sign * s.coefficient), name=f"{source} vector{way}"
            )
            for source, s in settings.items()
            for sign, way in ((1, ""), (-1, ", away"))
        ),
    ]
    for name in list_written_traits():
        if name != trait.name:
            other = pl.read_persona_vector(model, name, load_written_examples(name, "training")[: profile.n_examples])
            steered = pl.steer(other, layer=best.layer, coefficient=bench.scale(other, best.layer, best.step))
            conditions.append(Condition(steered, name=f"vector of {name}"))
    often = replace(bench, sampling=replace(sampling, rollouts=profile.rollouts))
    responses = often.score(conditions, held_out)
    length = best.step * float(lengths[best.layer])
    seed = arguments.seed + Stream.EVIDENCE
    random = sample_random_directions(torch.full((1,), length), model.cfg.d_model, profile.n_directions, seed)[:, 0]
    coherence = float(responses.coherences[responses.conditions.index("written vector")].nanmean())
    tried = {
        scale: float(bench.steer_along(random[:N_PILOTS], best.layer, scale, tuning).coherences.nanmean())
        for scale in NULL_SCALES
    }
    scale = min(NULL_SCALES, key=lambda one: abs(tried[one] - coherence))
    asked = held_out[: profile.n_null_questions]
    pairs = (read_answers(model, training, "overt") - read_answers(model, training, "opposite"))[:, best.layer]
    shuffled = shuffle_labels(pairs, profile.n_directions, seed) * length
    nulls = {
        "shuffled labels": bench.steer_along(shuffled, best.layer, 1.0, asked),
        "random, equal coherence": bench.steer_along(random, best.layer, scale, asked),
    }
    return SteeringEvidence(
        config=config,
        trait=trait.name,
        settings=tuple(settings.values()),
        validations=tuple(judge.validation for judge in judges.all),
        responses=responses,
        scores=bench.read(responses),
        nulls=nulls,
        null_scores={name: bench.read(null) for name, null in nulls.items()},
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


def read_answers(
    model: HookedModel, examples: Sequence[WrittenExample], kind: Kind
) -> Float[Tensor, "example layer d_model"]:
    """Return each written answer's mean activation, as the model reads it after its question."""
    spans = [
        encode_conversation(
            model.tokenizer,
            [{"role": "user", "content": one.question}, {"role": "assistant", "content": getattr(one, kind)}],
            n_ctx=model.cfg.n_ctx,
        )
        for one in examples
    ]
    read = {index: means.response_mean for index, means in pool_residual_stream(model, spans)}
    return torch.stack([read[index] for index in range(len(examples))]).cpu()


def shuffle_labels(differences: Float[Tensor, "pair d_model"], n: int, seed: int) -> Float[Tensor, "direction d_model"]:
    """Return unit vectors of means over pairs half of which, drawn anew for each, have overt and opposite exchanged."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.ones(n, len(differences))
    for row in signs:
        row[torch.randperm(len(differences), generator=generator)[: len(differences) // 2]] = -1
    return torch.nn.functional.normalize(signs @ differences.float(), dim=-1)


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
    cosine = vector.split_half_cosine.get("response_mean")
    kept_by = vector.provenance.get("judge", "")  # written answers were not judged
    return Setting(
        source, layer, step, coefficient, float(scores[best]), float(coherence[best]),
        float("nan") if cosine is None else float(cosine[layer]), vector.counts.kept, kept_by,
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(CommonArguments, description=__doc__))
