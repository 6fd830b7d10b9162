"""Contrasting rollouts of a trait: sampled under both sides of its instructions, judged and sorted out, in shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.default import default_judge
from persona_lens.judges.judgement import Judge, identify_judge
from persona_lens.models.engine.requests import ResidualMeans, Sampling
from persona_lens.models.engine.rollouts import Rollout, RolloutRequest, sample_recorded_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import describe_model
from persona_lens.models.text.thoughts import find_markers
from persona_lens.run import Run
from persona_lens.storage import Shard, collect_versions
from persona_lens.streams import Stream
from persona_lens.traits.trait import Trait
from persona_lens.vectors.persona_vector import ExtractionCounts

# Rollouts are judged and reduced in shards of this many contrasting pairs; then they are forgotten.
_PAIRS_AT_ONCE = 64


@dataclass(frozen=True)
class _PairUnit:
    """One contrasting pair to be sampled: a question under both sides of an instruction pair."""

    pair: int
    question: int
    rollout: int


@dataclass(frozen=True, eq=False)
class KeptPair:
    """The pooled activations of a pair of responses that the judge let pass.

    Args:
        question: The extraction question's number.
        sides: Of the response with the trait, and of that without.
    """

    question: int
    sides: tuple[ResidualMeans, ResidualMeans]


@dataclass(frozen=True, eq=False)
class Contrasts:
    """How a trait's contrasting rollouts are made: every question under both sides of every instruction pair.

    Args:
        model: Unsteered.
        trait: Whose questions and instructions.
        judge: Scores the responses; ``"none"`` keeps every one that has text.
        sampling: How they are drawn.
        min_coherence: Least coherence of both responses.
    """

    model: HookedModel
    trait: Trait
    judge: Judge | Literal["none"]
    sampling: Sampling
    min_coherence: float

    @classmethod
    def prepare(
        cls,
        model: HookedModel,
        trait: Trait,
        judge: Judge | Literal["none"] | None,
        sampling: Sampling,
        min_coherence: float,
        run: Run,
        *,
        rollouts: int | None,
        max_new_tokens: int | None,
        seed: int | None,
    ) -> Contrasts:
        """Check the settings before the model runs; take the default judge where none is given.

        Raises:
            InvalidArgumentError: A value out of range.
            HooksPresentError: The model carries hooks.
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
        return cls(model, trait, default_judge(model, trait, run) if judge is None else judge, sampling, min_coherence)

    def reduce(
        self, work: str, reduce: Callable[[Sequence[KeptPair]], Shard], run: Run
    ) -> Iterator[tuple[Shard, ExtractionCounts]]:
        """Sample, judge and sort out all pairs, and yield what ``reduce`` makes of each shard's kept ones.

        Args:
            work: What is made of them; shards of one work do not serve another.
            reduce: Called with some kept pairs, or none; returns tensors.
            run: Keeps the finished shards, shows progress and says who makes them.
        """
        units = [
            _PairUnit(p, q, r)
            for q in range(len(self.trait.extraction_questions))  # outermost: judging a question is then shared
            for p in range(len(self.trait.instruction_pairs))
            for r in range(self.sampling.rollouts)
        ]
        part = run.part(self._describe(work))
        chunks = {at: units[at : at + _PAIRS_AT_ONCE] for at in range(0, len(units), _PAIRS_AT_ONCE)}
        pieces = [
            partial(part.load_or_compute, f"{work}-{at:06d}", partial(self._reduce_chunk, chunk, reduce))
            for at, chunk in chunks.items()
        ]
        with run.progress("extracting", len(units)) as advance:
            for chunk, shard in zip(chunks.values(), run.compute_each(pieces), strict=True):
                yield shard, ExtractionCounts(**shard.records["counts"])
                advance(len(chunk))

    def _describe(self, work: str) -> dict[str, Any]:
        """Return what the shards depend on, so that one store serves several traits."""
        return {
            "work": work,
            "model": describe_model(self.model).to_json(),
            "trait": self.trait.fingerprint,
            "judge": "none" if self.judge == "none" else identify_judge(self.judge),
            "sampling": self.sampling.to_json(),
            "min_coherence": self.min_coherence,
            # Of models that think, answers alone are read; before, thoughts were part of them.
            **({} if find_markers(self.model.tokenizer) is None else {"thoughts": "apart"}),
        }

    def provenance(self) -> dict[str, Any]:
        """Return what a vector says of the rollouts that it rests on."""
        return {
            "trait": self.trait.fingerprint,
            "seed": self.sampling.seed,
            "rollouts": self.sampling.rollouts,
            "max_new_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            **self.sampling.describe_thoughts(),
            "min_coherence": self.min_coherence,
            "judge": "none" if self.judge == "none" else self.judge.name,
            "versions": collect_versions(),
        }

    def check_kept(self, counts: ExtractionCounts, at_least: int) -> None:
        """Refuse to go on where the judge let too few pairs pass.

        Raises:
            InvalidArgumentError: Fewer than ``at_least``.
        """
        if counts.kept < at_least:
            raise InvalidArgumentError.of(
                "judge",
                f"keep at least {at_least} {'pair' if at_least == 1 else 'pairs'} of rollouts",
                asdict(counts),
                f"The model does not show {self.trait.name!r} under these instructions; reword them, raise "
                '`rollouts`, or pass judge="none" to see the unfiltered direction.',
            )

    def _reduce_chunk(self, units: Sequence[_PairUnit], reduce: Callable[[Sequence[KeptPair]], Shard]) -> Shard:
        trait, systems = self.trait, (self.trait.positive_system_prompts, self.trait.negative_system_prompts)
        # Side by side, so that rows of one prompt are neighbours and share its computation.
        requests = [
            RolloutRequest(
                trait.extraction_questions[unit.question],
                (self.sampling.seed, Stream.EXTRACTION, side, unit.pair, unit.question, unit.rollout),
                systems[side][unit.pair],
            )
            for unit in units
            for side in (0, 1)
        ]
        sampled = sample_recorded_rollouts(self.model, requests, self.sampling)
        positive, negative = sampled[0::2], sampled[1::2]
        needs_answer = "answer" in (self.sampling.pooled, self.sampling.judged)
        reasons = _sort_out(positive, negative, self.judge, self.min_coherence, needs_answer=needs_answer)
        kept = []
        for unit, reason, plus, minus in zip(units, reasons, positive, negative, strict=True):
            if reason == "kept":
                assert plus.residuals is not None  # as both have text
                assert minus.residuals is not None
                kept.append(KeptPair(unit.question, (plus.residuals, minus.residuals)))
        counts = {"pairs": len(units)} | {reason: reasons.count(reason) for reason in sorted(set(reasons))}
        return replace(reduce(kept), records={"counts": counts})


def _sort_out(
    positive: Sequence[Rollout],
    negative: Sequence[Rollout],
    judge: Judge | Literal["none"],
    min_coherence: float,
    *,
    needs_answer: bool,
) -> list[str]:
    """Return for each pair ``kept`` or the first reason why it is dropped, as named in ExtractionCounts."""
    both = [*positive, *negative]
    empty = [not rollout.response.strip() or rollout.residuals is None for rollout in both]
    unfinished = [needs_answer and rollout.is_unfinished for rollout in both]
    n = len(positive)
    if judge == "none":
        return [
            "dropped_unfinished"
            if unfinished[i] or unfinished[n + i]
            else "dropped_empty"
            if empty[i] or empty[n + i]
            else "kept"
            for i in range(n)
        ]
    judged = judge.score([r.request.question for r in both], [r.response for r in both])
    reasons = []
    for i in range(n):
        plus, minus = judged[i], judged[n + i]
        if unfinished[i] or unfinished[n + i]:
            reasons.append("dropped_unfinished")
        elif empty[i] or empty[n + i]:
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
