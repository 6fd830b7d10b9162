"""A sampled vector, found anew under other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.default import default_judge
from persona_lens.judges.judgement import Judge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.run import Run
from persona_lens.streams import check_seed
from persona_lens.traits.trait import Trait
from persona_lens.vectors.estimators import Estimator, describe_estimator, find_vector
from persona_lens.vectors.extraction import extract_persona_vector
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.sampled import sample_pairs

_SETTINGS = ("rollouts", "max_new_tokens", "temperature", "top_p")
_ABOUT_THOUGHTS = ("pooled", "judged", "max_thought_tokens")


@checked
def extract_again(
    vector: PersonaVector,
    model: HookedModel,
    trait: Trait,
    *,
    seeds: Sequence[int] = (1, 2),
    judge: Judge | Literal["none"] | None = None,
    estimator: Estimator | None = None,
    run: Run = Run(),
) -> tuple[PersonaVector, ...]:
    """Find a sampled vector anew under other seeds: as it was found, but for the draws.

    Number, length and temperature of the responses are read from the vector's provenance; trait, judge and estimator
    must be those that it names. Give the result to ``vector.quality(again=...)``. Each seed costs what the vector cost.

    A vector that was read from written answers has no seed: its stability is that between halves and bootstrap draws of
    its pairs, :func:`persona_lens.vectors.measure_stability`; and other written answers give a second one.

    Args:
        vector: From :func:`persona_lens.extract_persona_vector`, or :func:`persona_lens.vectors.find_vector` on sampled
            pairs.
        model: The model that it was extracted from, unsteered.
        trait: The trait, with the questions and instructions that it was extracted with.
        seeds: Other seeds than the vector's.
        judge: The judge that kept its pairs; None takes the :func:`persona_lens.judges.default_judge`, or none where
            the vector had none.
        estimator: The way that it was found by, if not :func:`persona_lens.extract_persona_vector`.
        run: Keeps finished shards, shows progress and says who computes them.

    Returns:
        A vector for each seed, at the vector's token position.

    Raises:
        InvalidArgumentError: A vector that was not sampled, another trait, judge or estimator than its own, its own
            seed, or a seed twice.
        ModelMismatchError: A vector of another model.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> again = pl.vectors.extract_again(vector, model, trait, seeds=(1, 2))  # doctest: +SKIP
        >>> vector.quality(model, again=again)  # doctest: +SKIP
    """
    vector.check_model(model)
    check_unsteered(model)
    told = vector.provenance
    missing = [name for name in ("trait", "seed", "judge", *_SETTINGS) if name not in told]
    if missing:
        hint = "Of a vector read from written answers, measure_stability(pairs) draws the pairs anew."
        raise InvalidArgumentError.of("vector", "say how it was sampled", f"no {', '.join(missing)}", hint)
    if trait.fingerprint != told["trait"]:
        rule = f"be the one that the vector was extracted with, of fingerprint {told['trait']}"
        hint = "Cut its questions and instructions as they were then."
        raise InvalidArgumentError.of("trait", rule, f"{trait.name!r}, {trait.fingerprint}", hint)
    for seed in seeds:
        check_seed(seed)
    if not seeds or told["seed"] in seeds or len(set(seeds)) < len(seeds):
        rule = f"be at least one, each once, and not the vector's own, {told['seed']}"
        raise InvalidArgumentError.of("seeds", rule, list(seeds))
    _check_estimator(vector, estimator)
    if judge is None:
        judge = "none" if told["judge"] == "none" else default_judge(model, trait, run)
    name = judge if judge == "none" else judge.name
    if name != told["judge"]:
        raise InvalidArgumentError.of("judge", f"be the one that kept the vector's pairs, {told['judge']!r}", name)
    settings = {name: told[name] for name in (*_SETTINGS, *_ABOUT_THOUGHTS) if name in told}
    found = []
    for seed in seeds:
        sampling = replace(Sampling(**settings), seed=seed)
        floor = float(told.get("min_coherence", 0.0))
        if estimator is None:
            one = extract_persona_vector(model, trait, judge=judge, sampling=sampling, min_coherence=floor, run=run)
        else:
            pairs = sample_pairs(model, trait, judge=judge, sampling=sampling, min_coherence=floor, run=run)
            one = find_vector(pairs, estimator)
        found.append(one.at(vector.position))
    return tuple(found)


def _check_estimator(vector: PersonaVector, estimator: Estimator | None) -> None:
    """Refuse another estimator than the one that a vector names; one that names none was extracted."""
    named = vector.provenance.get("estimator")
    given = None if estimator is None else describe_estimator(estimator)
    if given != named:
        raise InvalidArgumentError.of("estimator", f"be the one that the vector was found by, {named}", given)
