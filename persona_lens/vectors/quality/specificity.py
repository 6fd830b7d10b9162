"""Whether a vector is its trait's own, or any trait's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.records import Record
from persona_lens.statistics import Interval
from persona_lens.statistics.bootstrap import bootstrap
from persona_lens.statistics.correlation import fisher_interval
from persona_lens.tensors.directions import normalize
from persona_lens.vectors.pairs import ActivationPairs
from persona_lens.vectors.quality.separation import N_RESAMPLES, project_pairs, separate_layers
from persona_lens.vectors.quality.stability import number_questions


@checked
@dataclass(frozen=True, eq=False)
class Specificity(Record):
    """What a vector makes of one other trait, at each layer.

    Args:
        trait: The other trait.
        cosine: Of the vector with the mean difference of the other trait's pairs.
        auroc: Probability that an answer with the other trait lies further along than one without; 0.5 is a vector
            that does not hear it.
    """

    trait: str
    cosine: tuple[Interval, ...]
    auroc: tuple[Interval, ...]


@checked
def measure_specificity(
    directions: Float[Tensor, "layer d_model"], others: Sequence[ActivationPairs]
) -> tuple[Specificity, ...]:
    """Measure what a vector makes of other traits' pairs.

    Args:
        directions: The vector's, one a layer.
        others: Pairs of other traits, each of at least two questions.

    Returns:
        One for each of the others, in their order.

    Raises:
        InvalidArgumentError: What does not fit, or fewer than two questions.

    Example:
        >>> [one.cosine[20] for one in measure_specificity(vector.directions, data.others)]  # doctest: +SKIP
    """
    return tuple(
        Specificity(
            pairs.trait, bootstrap_cosine(directions, pairs), separate_layers(*project_pairs(directions, pairs), pairs)
        )
        for pairs in others
    )


def bootstrap_cosine(directions: Float[Tensor, "layer d_model"], pairs: ActivationPairs) -> tuple[Interval, ...]:
    """Return each layer's cosine of a direction with the pairs' mean difference, bootstrapped over their questions."""
    numbers = np.array(number_questions(pairs))
    n_questions = int(numbers.max()) + 1
    if n_questions < 2:
        raise InvalidArgumentError.of("pairs", "answer at least 2 questions", n_questions)
    differences = (pairs.positive - pairs.negative).double().numpy()
    found = []
    for layer, unit in enumerate(normalize(directions.double().cpu()).numpy()):
        statistic = _weigh_cosine(unit, differences[:, layer], numbers)
        found.append(fisher_interval(bootstrap(statistic, (n_questions,), N_RESAMPLES, 0.95, 0), n_questions))
    return tuple(found)


def _weigh_cosine(unit: ndarray, differences: ndarray, at: ndarray) -> Callable[[ndarray], ndarray]:
    """Make the function that maps counts ``"resample question"`` to the cosine."""
    gram, along = differences @ differences.T, differences @ unit

    def compute(counts: ndarray) -> ndarray:
        weights = counts[:, at]
        squared = ((weights @ gram) * weights).sum(axis=1)
        has_length = squared > 0
        return np.where(has_length, weights @ along / np.sqrt(np.where(has_length, squared, 1.0)), np.nan)

    return compute
