"""How much more steering with a vector does than random directions that leave the text as coherent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.evaluation.conditions import Condition, ConditionScores, score_conditions
from persona_lens.judges.default import default_judge
from persona_lens.judges.judgement import Judge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import Intervention
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.run import Run
from persona_lens.statistics import Interval
from persona_lens.statistics.crossed import mean_over_directions_interval
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.tensors.operations import Add
from persona_lens.texts import check_texts
from persona_lens.traits.trait import Trait
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.quality.card import NullMargin

# Lengths at which random directions are tried, in multiples of the vector's push, and how many of them at each.
_SCALES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
_N_PILOTS = 4


@checked
def measure_null_margin(
    model: HookedModel,
    trait: Trait,
    vector: PersonaVector,
    *,
    layer: int,
    coefficient: float,
    judge: Judge | None = None,
    questions: Sequence[str] | None = None,
    random_directions: int = 8,
    sampling: Sampling = Sampling(max_new_tokens=32, rollouts=2),
    run: Run = Run(),
) -> NullMargin:
    """Measure by how much a vector moves the score beyond random directions that leave the text as coherent.

    Directions of equal *length* are a weak null: a random one leaves text more coherent than a trait's does, and
    strange text alone moves some judges. So random directions are lengthened, or shortened, until text is as coherent
    under them as under the vector: coherence is measured at several lengths on every other question, and the length is
    interpolated. On the rest all is measured; questions and directions are both units of the interval. Both coherences
    stand in the result: where none of the lengths suffices they differ, and the card says so.

    For 20 questions it samples and judges 400 responses: three minutes on one core for the embedded model.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait, which names the questions and the default judge.
        vector: The vector.
        layer: Zero-based block index where it is added.
        coefficient: Multiplies the raw vector; negative steers away, and the margin is then that below the null.
        judge: Scores responses and says how coherent they are; None takes the
            :func:`persona_lens.judges.default_judge`. One that chose layer or coefficient flatters.
        questions: At least four that chose nothing; None takes the trait's evaluation questions.
        random_directions: How many, at least two.
        sampling: How responses are drawn: ``rollouts`` of each question with the vector, one under each random
            direction. Its seed is that of the random directions too.
        run: Keeps finished shards and shows progress.

    Returns:
        The margin in points of 100, for ``vector.quality(model, null=...)``.

    Raises:
        ModelMismatchError: A vector of another model.
        LayerOutOfRangeError: The model has no such layer, or the vector no direction there.
        InvalidArgumentError: Fewer than four questions or two directions, a coefficient that pushes nowhere, or a judge
            that says nothing of coherence, be it of what random directions leave.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> null = pl.evaluation.measure_null_margin(  # doctest: +SKIP
        ...     model, trait, vector, layer=20, coefficient=2.0, judge=judge
        ... )
        >>> vector.quality(model, null=null)  # doctest: +SKIP
    """
    vector.check_model(model)
    check_unsteered(model)
    asked = check_texts("questions", trait.evaluation_questions if questions is None else questions)
    if len(asked) < 4:
        rule = "be at least 4: every other one finds the length, the rest measure"
        raise InvalidArgumentError.of("questions", rule, len(asked))
    if random_directions < 2:
        raise InvalidArgumentError.of("random_directions", "be at least 2", random_directions)
    direction = vector.direction(layer)
    length = abs(coefficient) * float(direction.norm())
    if not 0 < length < math.inf:
        raise InvalidArgumentError.of("coefficient", "push by a finite length above 0", coefficient)
    judge = default_judge(model, trait, run) if judge is None else judge
    seed = sampling.seed + Stream.NULL_MARGIN
    randoms = sample_random_directions(torch.full((1,), length), model.cfg.d_model, random_directions, seed)[:, 0]
    steered = Condition(Intervention.of(layer, Add(direction, coefficient)), name="steered")

    def push(one: int, scale: float) -> Condition:
        return Condition(Intervention.of(layer, Add(randoms[one], scale)), name=f"direction {one} × {scale:g}")

    def score(conditions: Sequence[Condition], some: Sequence[str], rollouts: int) -> ConditionScores:
        drawn = replace(sampling, rollouts=rollouts)
        return score_conditions(model, judge, conditions, some, sampling=drawn, stream=(Stream.NULL_MARGIN,), run=run)

    finding, measuring = asked[::2], asked[1::2]
    pilots = range(min(_N_PILOTS, random_directions))
    target = float(score([steered], finding, sampling.rollouts).coherences.nanmean())
    if math.isnan(target):
        hint = "persona_lens.judges.CoherentJudge puts another's coherence beside it."
        raise InvalidArgumentError.of("judge", "say how coherent responses are", judge.name, hint)
    tried = score([push(one, scale) for scale in _SCALES for one in pilots], finding, 1).coherences
    by_scale = dict(zip(_SCALES, tried.reshape(len(_SCALES), -1).nanmean(dim=-1).tolist(), strict=True))
    known = {scale: coherence for scale, coherence in by_scale.items() if not math.isnan(coherence)}
    if not known:
        rule = "say how coherent responses under random directions are"
        raise InvalidArgumentError.of("judge", rule, judge.name, "It scored none of them: is each one empty?")
    scale = interpolate_strength(list(known), list(known.values()), target)
    found = score([steered], measuring, sampling.rollouts)
    null = score([push(one, scale) for one in range(random_directions)], measuring, 1)
    margin = mean_over_directions_interval(found.by_question - null.by_question)
    if coefficient < 0:
        margin = Interval(-margin.estimate, -margin.high, -margin.low, margin.level)
    return NullMargin(
        judge=judge.name,
        layer=layer,
        coefficient=coefficient,
        margin=margin,
        coherence=float(found.coherences.nanmean()),
        null_coherence=float(null.coherences.nanmean()),
        scale=scale,
    )


def interpolate_strength(strengths: Sequence[float], coherences: Sequence[float], target: float) -> float:
    """Return the strength at which coherence falls to a target, between the first two where it does.

    Coherence is noisy: what rises again at a higher strength does not count. The strongest stands where none falls so
    low, the weakest where all do.

    Args:
        strengths: Ascending, above 0; interpolated in their logarithms.
        coherences: Mean coherence at each.
        target: Coherence asked for.

    Raises:
        InvalidArgumentError: No strength, or not as many coherences.

    Example:
        >>> round(interpolate_strength([1.0, 4.0], [80.0, 40.0], 60.0), 6)
        2.0
    """
    if not strengths or len(coherences) != len(strengths):
        rule = "be one for each of `strengths`, and at least one"
        raise InvalidArgumentError.of("coherences", rule, f"{len(coherences)} for {len(strengths)}")
    if coherences[0] <= target:
        return strengths[0]
    for (weak, before), (strong, after) in pairwise(zip(strengths, coherences, strict=True)):
        if after <= target:
            return weak * math.pow(strong / weak, (before - target) / (before - after))
    return strengths[-1]
