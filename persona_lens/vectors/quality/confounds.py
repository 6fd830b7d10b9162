"""Whether a vector reads length or style in place of the trait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.records import Record
from persona_lens.statistics import Interval, bootstrap_pearson_r_by_group
from persona_lens.vectors.pairs import ActivationPairs
from persona_lens.vectors.quality.separation import N_RESAMPLES, project_pairs, separate_layers
from persona_lens.vectors.quality.specificity import bootstrap_cosine


@checked
@dataclass(frozen=True, eq=False)
class StyleConfound(Record):
    """How far a vector reads what a trait often looks like, at each layer.

    Args:
        auroc: Probability that an answer with the trait's style and without the trait lies further along than an
            ordinary one; 0.5 is a vector that does not hear style.
        cosine: Of the vector with the mean difference of style and ordinary.
    """

    auroc: tuple[Interval, ...]
    cosine: tuple[Interval, ...]


@checked
def correlate_length(
    directions: Float[Tensor, "layer d_model"], pairs: ActivationPairs, lengths: Sequence[tuple[int, int]]
) -> tuple[Interval, ...]:
    """Correlate projections with the lengths of the answers, within the class.

    From projections and lengths the mean of their class is taken first, so that a trait that makes answers longer is
    no confound by itself.

    Args:
        directions: The vector's, one a layer.
        pairs: Answers with and without the trait, of at least three questions.
        lengths: Of each pair's answers, in tokens.

    Returns:
        Pearson's r at each layer, bootstrapped over questions; missing where all lengths of each class are the same.

    Raises:
        InvalidArgumentError: Lengths of other pairs, or what does not fit.

    Example:
        >>> correlate_length(vector.directions, pairs, lengths)[20]  # doctest: +SKIP
    """
    if len(lengths) != len(pairs):
        raise InvalidArgumentError.of("lengths", f"be given for each of the {len(pairs)} pairs", len(lengths))
    if len(set(pairs.questions)) < 3:
        raise InvalidArgumentError.of("pairs", "answer at least 3 questions", len(set(pairs.questions)))
    both = torch.tensor(lengths, dtype=torch.float64)
    centred = (both - both.mean(dim=0)).T.flatten()  # the first class, then the second
    groups = [*pairs.questions, *pairs.questions]
    sides = [side.double() for side in project_pairs(directions, pairs)]
    projected = torch.cat([side - side.mean(dim=1, keepdim=True) for side in sides], dim=1)
    return tuple(bootstrap_pearson_r_by_group(centred, one, groups, n_resamples=N_RESAMPLES) for one in projected)


@checked
def measure_style(directions: Float[Tensor, "layer d_model"], pairs: ActivationPairs) -> StyleConfound:
    """Measure how far a vector tells a trait's style, without the trait, from ordinary answers.

    Args:
        directions: The vector's, one a layer.
        pairs: Written answers: as positive those in the trait's style, as negative ordinary ones.

    Raises:
        InvalidArgumentError: What does not fit, or fewer than two questions.

    Example:
        >>> measure_style(vector.directions, data.style).auroc[20]  # doctest: +SKIP
    """
    return StyleConfound(
        auroc=separate_layers(*project_pairs(directions, pairs), pairs), cosine=bootstrap_cosine(directions, pairs)
    )
