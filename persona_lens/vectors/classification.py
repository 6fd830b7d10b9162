"""A direction as a classifier, with a threshold between the classes that it was found on; and held-out scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooks.sites import check_layer
from persona_lens.tensors.directions import mean_difference, normalize
from persona_lens.vectors.estimators import Estimator
from persona_lens.vectors.pairs import ActivationPairs


@checked
@dataclass(frozen=True, eq=False)
class LinearClassifier:
    r"""A unit direction :math:`u` with a threshold midway between the means of two classes, and their distance.

    .. math:: s(a) = \frac{(a - (\bar a_+ + \bar a_-) / 2) \cdot u}{(\bar a_+ - \bar a_-) \cdot u}

    so that the classes that it was found on have mean scores of one half and minus one half.

    Args:
        unit: The direction, of length 1.
        threshold: Midpoint of the class means along it, in residual-stream units.
        gap: Distance of the class means along it.

    Raises:
        InvalidArgumentError: A gap that is not positive.

    Reference:
        The Geometry of Truth (arXiv 2310.06824), section 5.
    """

    unit: Float[Tensor, " d_model"]
    threshold: float
    gap: float

    def __post_init__(self) -> None:
        if not self.gap > 0:
            raise InvalidArgumentError.of("gap", "be positive", self.gap)

    def score(self, activations: Float[Tensor, "unit d_model"]) -> Float[Tensor, " unit"]:
        """Return each activation's score: above zero is the positive class."""
        return (activations.float() @ self.unit - self.threshold) / self.gap


@checked
def fit_classifier(
    positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"], estimator: Estimator, layer: int
) -> LinearClassifier:
    """Find a direction between two classes of activations, whatever the estimator, and the threshold midway.

    Args:
        positive: Activations of one layer.
        negative: Those of the other class, paired with them.
        estimator: The way.
        layer: Zero-based block index, for estimators that ask for it.

    Raises:
        InvalidArgumentError: The estimator found no direction, or one that the classes do not differ along.

    Example:
        >>> from persona_lens.vectors import MeanDifference
        >>> found = fit_classifier(torch.tensor([[4.0, 1.0], [2.0, 1.0]]), torch.zeros(2, 2), MeanDifference(), 0)
        >>> [round(score, 2) for score in found.score(torch.tensor([[3.0, 1.0], [0.0, 0.0]])).tolist()]
        [0.5, -0.5]
    """
    found = estimator.estimate(positive, negative, layer)
    if not bool(torch.isfinite(found).all()) or not bool(found.any()):
        raise InvalidArgumentError.of("estimator", "find a direction with a length above zero", found.tolist())
    unit = normalize(found.float())
    gap = float(mean_difference(positive, negative) @ unit)
    if gap == 0:
        rule = "find a direction along which the means of the two classes differ"
        raise InvalidArgumentError.of("estimator", rule, type(estimator).__name__)
    if gap < 0:
        unit, gap = -unit, -gap
    middle = float((positive.float().mean(dim=0) + negative.float().mean(dim=0)) @ unit) / 2
    return LinearClassifier(unit, middle, gap)


@checked
def score_held_out(
    pairs: ActivationPairs, estimator: Estimator, layer: int, folds: Sequence[int]
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Score each pair by a classifier that was found on the pairs of all other folds.

    Args:
        pairs: The pairs.
        estimator: The way.
        layer: Zero-based block index.
        folds: Number of each pair's fold. Pairs that are not independent, such as those of one question, belong in one.

    Returns:
        Scores of the positive side and of the negative one, in the unit of :class:`LinearClassifier`.

    Raises:
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: Folds that do not fit the pairs, or fewer than two of them; or the estimator found no
            direction.

    Example:
        >>> import persona_lens as pl
        >>> folds = [question % 5 for question in pairs.questions]  # doctest: +SKIP
        >>> positive, negative = score_held_out(pairs, pl.vectors.MeanDifference(), 14, folds)  # doctest: +SKIP
        >>> pl.statistics.auroc(positive, negative)  # doctest: +SKIP
    """
    check_layer(layer, pairs.model.n_layers)
    if len(folds) != len(pairs):
        raise InvalidArgumentError.of("folds", f"number each of the {len(pairs)} pairs", len(folds))
    if len(set(folds)) < 2:
        raise InvalidArgumentError.of("folds", "be at least two", sorted(set(folds)))
    labels = torch.tensor(list(folds))
    sides = pairs.positive[:, layer], pairs.negative[:, layer]
    scores = torch.zeros(2, len(pairs))
    for fold in sorted(set(folds)):
        held_out = labels == fold
        found = fit_classifier(sides[0][~held_out], sides[1][~held_out], estimator, layer)
        for side, activations in enumerate(sides):
            scores[side, held_out] = found.score(activations[held_out])
    return scores[0], scores[1]
