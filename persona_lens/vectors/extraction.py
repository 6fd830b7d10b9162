"""A persona vector from contrasting rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.judges.judgement import Judge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import describe_model
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.tensors.directions import cosine
from persona_lens.traits.trait import Trait
from persona_lens.vectors.contrasts import Contrasts, KeptPair
from persona_lens.vectors.halves import warn_if_unstable
from persona_lens.vectors.persona_vector import TOKEN_POSITIONS, ExtractionCounts, PersonaVector


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
        run: Keeps finished shards, shows progress and says who computes them.

    Returns:
        The vector, with directions for response mean, prompt mean and last prompt token.

    Raises:
        InvalidArgumentError: A value out of range, or no pair survived the judge.
        HooksPresentError: The model carries hooks.

    Warns:
        UnstableVectorWarning: Halves of the questions give other directions, at every layer.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2 and appendix A.

    Example:
        >>> import persona_lens as pl
        >>> vector = pl.extract_persona_vector(pl.load_model(), pl.load_trait("evil"))  # doctest: +SKIP
    """
    contrasts = Contrasts.prepare(
        model, trait, judge, sampling, min_coherence, run, rollouts=rollouts, max_new_tokens=max_new_tokens, seed=seed
    )
    width = (3, model.cfg.n_layers, model.cfg.d_model)
    # [half of the questions, class, position, layer, d_model]; in float64, so that many shards add up exactly enough
    sums = torch.zeros(2, 2, *width, dtype=torch.float64)
    n_kept = torch.zeros(2, dtype=torch.float64)  # pairs kept in each half
    counts = ExtractionCounts()
    for shard, its_counts in contrasts.reduce("extraction", partial(_add_up, width), run):
        sums = sums + shard.tensors["sums"]
        n_kept = n_kept + shard.tensors["n_kept"]
        counts = counts + its_counts
    contrasts.check_kept(counts, 1)
    total = (sums.sum(dim=0) / counts.kept).float()
    difference = total[0] - total[1]  # [position, layer, d_model]
    split_half: dict[str, Tensor] = {}
    if bool((n_kept > 0).all()):
        halves = ((sums[:, 0] - sums[:, 1]) / n_kept[:, None, None, None]).float()
        split_half |= dict(zip(TOKEN_POSITIONS, cosine(halves[0], halves[1]).unbind(), strict=True))
    vector = PersonaVector(
        trait=trait.name,
        model=describe_model(model),
        by_position=dict(zip(TOKEN_POSITIONS, difference.unbind(), strict=True)),
        counts=counts,
        split_half_cosine=split_half,
        provenance=contrasts.provenance(),
    )
    warn_if_unstable(vector)
    return vector


def _add_up(width: tuple[int, int, int], kept: Sequence[KeptPair]) -> Shard:
    """Add up some pairs' activations, by half of the questions and side."""
    sums, n_kept = torch.zeros(2, 2, *width), torch.zeros(2)
    for pair in kept:
        half = pair.question % 2
        n_kept[half] += 1
        for side, means in enumerate(pair.sides):
            together = torch.stack([means.response_mean, means.prompt_mean, means.last_prompt])
            sums[half, side] += together.cpu()
    return Shard({"sums": sums, "n_kept": n_kept})
