"""How well a vector tells apart answers that it was not made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.records import Record
from persona_lens.statistics import Interval, bootstrap_auroc_by_group
from persona_lens.statistics.bootstrap import bootstrap, t_interval
from persona_lens.tensors.directions import project_layers
from persona_lens.vectors.pairs import ActivationPairs
from persona_lens.vectors.quality.stability import estimate_layers, number_questions

if TYPE_CHECKING:  # a vector's type leads here when its quality is asked for
    from persona_lens.vectors.estimators import Estimator

N_RESAMPLES = 1000


@checked
@dataclass(frozen=True, eq=False)
class Separation(Record):
    """How well projections tell two classes of answers apart, at each layer.

    Args:
        n_pairs: Pairs of answers.
        n_questions: Questions that they answer: the units of the intervals.
        auroc: Probability that an answer with the trait lies further along than one without.
        d_prime: Difference of the means in standard deviations within a class.
    """

    n_pairs: int
    n_questions: int
    auroc: tuple[Interval, ...]
    d_prime: tuple[Interval, ...]


@checked
def measure_separation(directions: Float[Tensor, "layer d_model"], pairs: ActivationPairs) -> Separation:
    r"""Project pairs that had no part in a vector, and say how far apart the two classes lie along it.

    .. math:: d' = \frac{m_+ - m_-}{\sqrt{(s_+^2 + s_-^2) / 2}}

    Args:
        directions: The vector's, one a layer.
        pairs: Answers with and without the trait, to questions that the vector was not made from.

    Raises:
        InvalidArgumentError: Directions that do not fit, or fewer than two questions.

    Reference:
        That separation does not predict how well a vector steers: arXiv 2511.18284.

    Example:
        >>> separation = measure_separation(vector.directions, held_out)  # doctest: +SKIP
    """
    return separate_pairs(*project_pairs(directions, pairs), pairs)


@checked
def cross_validate_separation(
    pairs: ActivationPairs, estimator: Estimator | None = None, *, n_folds: int = 5
) -> Separation:
    """Say how well a way separates pairs, each along the direction of the other questions' pairs.

    Args:
        pairs: All that there are.
        estimator: The way; None is the mean difference.
        n_folds: Parts of the questions; every fifth is in the first, and so on.

    Raises:
        InvalidArgumentError: Fewer than two folds, fewer questions than folds, or fewer than two pairs beside one.
    """
    numbers = number_questions(pairs)
    if not 2 <= n_folds <= max(numbers) + 1:
        raise InvalidArgumentError.of("n_folds", f"be in [2, {max(numbers) + 1}], the pairs' questions", n_folds)
    projected = torch.zeros(2, pairs.model.n_layers, len(pairs))
    for fold in range(n_folds):
        held = [row for row, number in enumerate(numbers) if number % n_folds == fold]
        rest = [row for row, number in enumerate(numbers) if number % n_folds != fold]
        if len(rest) < 2:
            raise InvalidArgumentError.of("pairs", "leave at least 2 of them beside any fold", len(rest))
        directions = estimate_layers(pairs.take(rest), estimator)
        projected[:, :, held] = torch.stack(project_pairs(directions, pairs))[:, :, held]
    return separate_pairs(projected[0], projected[1], pairs)


def project_pairs(
    directions: Float[Tensor, "layer d_model"], pairs: ActivationPairs
) -> tuple[Float[Tensor, "layer pair"], Float[Tensor, "layer pair"]]:
    """Return the coordinates of both answers of each pair along each layer's unit direction."""
    expected = (pairs.model.n_layers, pairs.model.d_model)
    if tuple(directions.shape) != expected:
        raise InvalidArgumentError.of("directions", f"have shape (layer, d_model) = {expected}", directions.shape)
    return (
        project_layers(pairs.positive.transpose(0, 1), directions),
        project_layers(pairs.negative.transpose(0, 1), directions),
    )


def separate_pairs(
    positive: Float[Tensor, "layer pair"], negative: Float[Tensor, "layer pair"], pairs: ActivationPairs
) -> Separation:
    """Say how far apart two sides of pairs lie at each layer, by their coordinates."""
    layers = list(zip(positive, negative, strict=True))
    return Separation(
        n_pairs=len(pairs),
        n_questions=len(set(pairs.questions)),
        auroc=separate_layers(positive, negative, pairs),
        d_prime=tuple(_measure_d_prime(plus, minus, number_questions(pairs)) for plus, minus in layers),
    )


def separate_layers(
    positive: Float[Tensor, "layer pair"], negative: Float[Tensor, "layer pair"], pairs: ActivationPairs
) -> tuple[Interval, ...]:
    """Return each layer's AUROC, over the pairs' questions."""
    if len(set(pairs.questions)) < 2:
        raise InvalidArgumentError.of("pairs", "answer at least 2 questions", len(set(pairs.questions)))
    return tuple(
        bootstrap_auroc_by_group(plus, minus, pairs.questions, pairs.questions, n_resamples=N_RESAMPLES)
        for plus, minus in zip(positive, negative, strict=True)
    )


def _measure_d_prime(positive: Tensor, negative: Tensor, numbers: list[int]) -> Interval:
    at = np.array(numbers)
    n_groups = int(at.max()) + 1
    statistic = _weigh_d_prime(positive.double().numpy(), negative.double().numpy(), at)
    return t_interval(bootstrap(statistic, (n_groups,), N_RESAMPLES, 0.95, 0), n_groups)


def _weigh_d_prime(positive: ndarray, negative: ndarray, at: ndarray) -> Callable[[ndarray], ndarray]:
    """Make the function that maps counts ``"resample group"`` to d', NaN where neither class varies."""

    def compute(counts: ndarray) -> ndarray:
        share = counts[:, at] / counts[:, at].sum(axis=1, keepdims=True)
        means = [(share * side).sum(axis=1) for side in (positive, negative)]
        variances = [
            (share * (side - mean[:, None]) ** 2).sum(axis=1)
            for side, mean in zip((positive, negative), means, strict=True)
        ]
        spread = np.sqrt((variances[0] + variances[1]) / 2)
        varies = spread > 1e-9 * (np.abs(means[0]) + np.abs(means[1]))
        return np.where(varies, (means[0] - means[1]) / np.where(varies, spread, 1.0), np.nan)

    return compute
