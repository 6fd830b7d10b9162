"""A persona vector from contrasting rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.default import default_judge
from persona_lens.judges.judgement import Judge, identify_judge
from persona_lens.models.engine.rollouts import Rollout, RolloutRequest, sample_recorded_rollouts
from persona_lens.models.engine.sampling import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import describe_model
from persona_lens.run import Run
from persona_lens.storage import Shard, collect_versions
from persona_lens.streams import Stream
from persona_lens.tensors.directions import cosine
from persona_lens.traits.trait import Trait
from persona_lens.vectors.persona_vector import TOKEN_POSITIONS, ExtractionCounts, PersonaVector

# Rollouts are judged and added up in shards of this many contrasting pairs; then they are forgotten, so memory
# does not grow with their number.
_PAIRS_AT_ONCE = 64


@dataclass(frozen=True)
class _PairUnit:
    """One contrasting pair to be sampled: a question under both sides of an instruction pair."""

    pair: int
    question: int
    rollout: int


@checked
def extract_persona_vector(
    model: HookedModel,
    trait: Trait,
    *,
    judge: Judge | Literal["none"] | None = None,
    rollouts: int | None = None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    sampling: Sampling = Sampling(),
    min_coherence: float = 0.0,
    run: Run = Run(),
) -> PersonaVector:
    r"""Find a trait's direction at every layer from contrasting rollouts.

    .. math:: v_l = \operatorname{mean}_{i \in +} \bar a_l(y_i) - \operatorname{mean}_{i \in -} \bar a_l(y_i)

    Every extraction question is asked under the positive and the negative side of every instruction pair. The
    residual stream is pooled while the responses are sampled; no second pass is made, and memory does not grow with
    their number. A pair stays if its positive response scores above 50 and its negative one below 50.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait.
        judge: Scores the responses; None takes the :func:`persona_lens.judges.default_judge`; ``"none"`` keeps every
            response.
        rollouts: Short for ``sampling``'s: responses per question and instruction; the paper's is 10.
        max_new_tokens: Short for ``sampling``'s: length limit in tokens; the paper's is 1,000.
        seed: Short for ``sampling``'s.
        sampling: How the responses are drawn.
        min_coherence: Least coherence (0 to 100) of both responses. The paper's code asks 50 of its judge; the
            LikelihoodJudge's coherence is a likelihood under the neutral prompt, which a strong trait lowers by
            itself, so the default asks nothing.
        run: Keeps finished shards and shows progress.

    Returns:
        The vector, with directions for response mean, prompt mean and last prompt token.

    Raises:
        InvalidArgumentError: A value out of range, or no pair survived the judge.
        HooksPresentError: The model carries hooks.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2 and appendix A.

    Example:
        >>> import persona_lens as pl
        >>> vector = pl.extract_persona_vector(pl.load_model(), pl.load_trait("evil"))  # doctest: +SKIP
    """
    if not 0 <= min_coherence <= 100:
        raise InvalidArgumentError.of("min_coherence", "be in [0, 100]", min_coherence)
    sampling = replace(
        sampling,
        rollouts=sampling.rollouts if rollouts is None else rollouts,
        max_new_tokens=sampling.max_new_tokens if max_new_tokens is None else max_new_tokens,
        seed=sampling.seed if seed is None else seed,
    )
    check_unsteered(model)
    if judge is None:
        judge = default_judge(model, trait, run)
    units = [
        _PairUnit(p, q, r)
        for q in range(len(trait.extraction_questions))  # outermost: a judge's work on a question is then shared
        for p in range(len(trait.instruction_pairs))
        for r in range(sampling.rollouts)
    ]
    # What the shards depend on, so that one store serves several traits.
    work = {
        "work": "extraction",
        "model": asdict(describe_model(model)),
        "trait": trait.fingerprint,
        "judge": "none" if judge == "none" else identify_judge(judge),
        "sampling": sampling.to_json(),
        "min_coherence": min_coherence,
    }
    part = run.part(work)
    # [half of the questions, class, position, layer, d_model]; in float64, so that many shards add up exactly enough
    sums = torch.zeros(2, 2, 3, model.cfg.n_layers, model.cfg.d_model, dtype=torch.float64)
    n_kept = torch.zeros(2, dtype=torch.float64)  # pairs kept in each half
    counts = ExtractionCounts()
    with run.progress("extracting", len(units)) as advance:
        for at in range(0, len(units), _PAIRS_AT_ONCE):
            chunk = units[at : at + _PAIRS_AT_ONCE]
            compute = partial(_extract_chunk, model, trait, chunk, judge, sampling, min_coherence)
            shard = part.load_or_compute(f"extraction-{at:06d}", compute)
            sums = sums + shard.tensors["sums"]
            n_kept = n_kept + shard.tensors["n_kept"]
            counts = counts + ExtractionCounts(**shard.records["counts"])
            advance(len(chunk))
    if counts.kept == 0:
        raise InvalidArgumentError.of(
            "judge",
            "keep at least one pair of rollouts",
            asdict(counts),
            f"The model does not show {trait.name!r} under these instructions; reword them, raise `rollouts`, or "
            'pass judge="none" to see the unfiltered direction.',
        )
    total = (sums.sum(dim=0) / counts.kept).float()
    difference = total[0] - total[1]  # [position, layer, d_model]
    split_half: dict[str, Tensor] = {}
    if bool((n_kept > 0).all()):
        halves = ((sums[:, 0] - sums[:, 1]) / n_kept[:, None, None, None]).float()
        split_half |= dict(zip(TOKEN_POSITIONS, cosine(halves[0], halves[1]).unbind(), strict=True))
    return PersonaVector(
        trait=trait.name,
        model=describe_model(model),
        by_position=dict(zip(TOKEN_POSITIONS, difference.unbind(), strict=True)),
        counts=counts,
        split_half_cosine=split_half,
        provenance={
            "trait": trait.fingerprint,
            "seed": sampling.seed,
            "rollouts": sampling.rollouts,
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "min_coherence": min_coherence,
            "judge": "none" if judge == "none" else judge.name,
            "versions": collect_versions(),
        },
    )


def _extract_chunk(
    model: HookedModel,
    trait: Trait,
    units: Sequence[_PairUnit],
    judge: Judge | Literal["none"],
    sampling: Sampling,
    min_coherence: float,
) -> Shard:
    """Sample, judge and add up some contrasting pairs."""
    systems = (trait.positive_system_prompts, trait.negative_system_prompts)
    # Side by side, so that rows of one prompt are neighbours and share its computation.
    requests = [
        RolloutRequest(
            trait.extraction_questions[unit.question],
            (sampling.seed, Stream.EXTRACTION, side, unit.pair, unit.question, unit.rollout),
            systems[side][unit.pair],
        )
        for unit in units
        for side in (0, 1)
    ]
    sampled = sample_recorded_rollouts(model, requests, sampling)
    reasons = _sort_out(sampled[0::2], sampled[1::2], judge, min_coherence)
    width = (3, model.cfg.n_layers, model.cfg.d_model)
    sums = torch.zeros(2, 2, *width)
    n_kept = torch.zeros(2)
    for i, (unit, reason) in enumerate(zip(units, reasons, strict=True)):
        if reason == "kept":
            half = unit.question % 2
            n_kept[half] += 1
            for side in (0, 1):
                means = sampled[2 * i + side].residuals
                assert means is not None  # a kept pair has two responses that are not empty
                sums[half, side] += torch.stack([means.response_mean, means.prompt_mean, means.last_prompt]).cpu()
    counts = {"pairs": len(units)} | {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    return Shard({"sums": sums, "n_kept": n_kept}, {"counts": counts})


def _sort_out(
    positive: Sequence[Rollout], negative: Sequence[Rollout], judge: Judge | Literal["none"], min_coherence: float
) -> list[str]:
    """Return for each pair ``kept`` or the first reason why it is dropped, as named in ExtractionCounts."""
    both = [*positive, *negative]
    empty = [not rollout.response.strip() or rollout.residuals is None for rollout in both]
    n = len(positive)
    if judge == "none":
        return ["dropped_empty" if empty[i] or empty[n + i] else "kept" for i in range(n)]
    judged = judge.score([r.request.question for r in both], [r.response for r in both])
    reasons = []
    for i in range(n):
        plus, minus = judged[i], judged[n + i]
        if empty[i] or empty[n + i]:
            reasons.append("dropped_empty")
        elif plus.score is None or minus.score is None or not math.isfinite(plus.score + minus.score):
            reasons.append("dropped_unscored")
        elif plus.score <= 50:
            reasons.append("dropped_positive_score")
        elif minus.score >= 50:
            reasons.append("dropped_negative_score")
        elif any(j.coherence is not None and not j.coherence >= min_coherence for j in (plus, minus)):
            reasons.append("dropped_incoherent")
        else:
            reasons.append("kept")
    return reasons
