"""Pairs of activations from contrasting rollouts: what the model itself says, kept answer by answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Literal

import torch

from persona_lens.checking import checked
from persona_lens.judges.judgement import Judge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import describe_model
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.traits.trait import Trait
from persona_lens.vectors.contrasts import Contrasts, KeptPair
from persona_lens.vectors.pairs import ActivationPairs
from persona_lens.vectors.persona_vector import ExtractionCounts


@checked
def sample_pairs(
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
) -> ActivationPairs:
    """Sample contrasting rollouts, and keep the mean activations of each response at every layer.

    The same responses, judge and filter as :func:`persona_lens.extract_persona_vector`, which adds them up instead:
    :func:`persona_lens.vectors.find_vector` with the mean difference gives its response mean. Take this one for every
    other estimator.

    In memory: ``2 * pair * layer * d_model`` float32 of the kept pairs, 28 MB for 200 pairs of the embedded model and
    4.2 GB for 1,000 of one with 64 layers and width 8,192; for the mean difference alone, the other needs one vector.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait.
        judge: Scores the responses; None takes the :func:`persona_lens.judges.default_judge`; ``"none"`` keeps every
            response.
        rollouts: Short for ``sampling``'s: responses per question and instruction; the paper's is 10.
        max_new_tokens: Short for ``sampling``'s: length limit in tokens; the paper's is 1,000.
        seed: Short for ``sampling``'s.
        sampling: How the responses are drawn.
        min_coherence: Least coherence (0 to 100) of both responses.
        run: Keeps finished shards, shows progress and says who computes them.

    Returns:
        The kept pairs, in the order of the questions; ``provenance["counts"]`` says why others were dropped.

    Raises:
        InvalidArgumentError: A value out of range, or fewer than two pairs survived the judge.
        HooksPresentError: The model carries hooks.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2 and appendix A.

    Example:
        >>> import persona_lens as pl
        >>> pairs = pl.vectors.sample_pairs(pl.load_model(), pl.load_trait("evil"))  # doctest: +SKIP
        >>> probe = pl.vectors.find_vector(pairs, pl.vectors.LogisticProbe())  # doctest: +SKIP
    """
    contrasts = Contrasts.prepare(
        model, trait, judge, sampling, min_coherence, run, rollouts=rollouts, max_new_tokens=max_new_tokens, seed=seed
    )
    counts, means, questions = ExtractionCounts(), [], []
    for shard, its_counts in contrasts.reduce("pairs", partial(_keep, model.cfg.n_layers, model.cfg.d_model), run):
        counts = counts + its_counts
        means.append(shard.tensors["means"])
        questions.append(shard.tensors["questions"])
    contrasts.check_kept(counts, 2)
    positive, negative = torch.cat(means).unbind(dim=1)
    provenance = contrasts.provenance() | {"source": "sampled under contrasting prompts", "counts": asdict(counts)}
    return ActivationPairs(
        trait.name, describe_model(model), positive, negative, tuple(torch.cat(questions).tolist()), provenance
    )


def _keep(n_layers: int, d_model: int, kept: Sequence[KeptPair]) -> Shard:
    """Put some pairs' activations together."""
    means = torch.zeros(len(kept), 2, n_layers, d_model)
    for row, pair in enumerate(kept):
        for side, one in enumerate(pair.sides):
            means[row, side] = one.response_mean.cpu()
    return Shard({"means": means, "questions": torch.tensor([pair.question for pair in kept], dtype=torch.long)})
