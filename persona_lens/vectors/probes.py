"""Directions that tell two classes of activations apart: a logistic probe and a shrunk linear discriminant.

They see two classes, not pairs, so the classes may also differ in size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.tensors.directions import mean_difference
from persona_lens.vectors.pairs import check_sides

# The optimiser's own limit of 100 steps is too few where classes are almost separable.
_MOST_STEPS = 10_000
# As a share of the largest: what is less is rounding.
_LEAST_VARIANCE = 1e-12


@checked
@dataclass(frozen=True)
class LogisticProbe:
    r"""The weights of a logistic regression that tells answers with the trait from those without.

    .. math:: \min_{w, b} \sum_i \log\bigl(1 + e^{-y_i (w \cdot z_i + b)}\bigr) + \tfrac{\lambda}{2} |w|^2, \quad
        z_i = (a_i - \bar a) / s

    All dimensions are divided by one number :math:`s`, the root mean square of the centred activations' entries. So
    one strength means the same at every layer, however long its activations are, and the direction turns with the
    axes: standardising each dimension by itself would favour those of little variance, and depend on the basis. As
    :math:`s` is one number, the weights are the direction in the activations' own space.

    When to use it: to read whether a trait is there. It looks for what separates, not for what moves: where a small
    coordinate separates the classes best, adding the direction may do little. With a great strength it becomes the
    mean difference.

    Memory: ``4 * pair * d_model`` numbers of 8 bytes, one layer at a time.

    Args:
        strength: :math:`\lambda` above, scikit-learn's ``1 / C``; above 0.

    Raises:
        InvalidArgumentError: A strength that is not finite and above 0.

    Reference:
        Alain and Bengio, Understanding intermediate layers using linear classifier probes (arXiv 1610.01644); as a
        direction to steer by: Inference-Time Intervention (arXiv 2306.03341), section 3.

    Example:
        >>> positive = torch.tensor([[2.0, 1.0], [2.0, -1.0]])
        >>> found = LogisticProbe().estimate(positive, -positive, 0)
        >>> (found / found.norm()).round(decimals=3).abs()
        tensor([1., 0.])
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        """Check the field."""
        if not (math.isfinite(self.strength) and self.strength > 0):
            raise InvalidArgumentError.of("strength", "be finite and above 0", self.strength)

    def estimate(
        self, positive: Float[Tensor, "n_pos d_model"], negative: Float[Tensor, "n_neg d_model"], layer: int
    ) -> Float[Tensor, " d_model"]:
        """Return the weights; zero where all activations are the same."""
        from sklearn.linear_model import LogisticRegression  # slow to import

        check_sides(positive, negative)
        both = torch.cat([positive, negative]).double().cpu().numpy()
        centred = both - both.mean(axis=0)
        if not (scale := float(np.sqrt(np.mean(centred**2)))):
            return torch.zeros(positive.shape[1])
        is_positive = np.arange(len(both)) < len(positive)
        probe = LogisticRegression(C=1 / self.strength, max_iter=_MOST_STEPS, tol=1e-6)
        return torch.from_numpy(probe.fit(centred / scale, is_positive).coef_[0].copy()).float()


@checked
@dataclass(frozen=True)
class ShrunkLDA:
    r"""The linear discriminant: the mean difference, whitened by the covariance within the classes.

    .. math:: u = \hat\Sigma^{-1} (\bar a_+ - \bar a_-), \quad \hat\Sigma = (1 - \rho) S + \rho \, \bar s \, I

    :math:`S` is the covariance around each class's own mean, :math:`\bar s` its mean variance, and the shrinkage
    :math:`\rho` is Ledoit and Wolf's: without it, fewer answers than dimensions leave nothing to invert.

    When to use it: to read a trait where answers differ much in what has nothing to do with it (topic, length):
    directions of great ordinary variance are discounted. As a direction to move along it is less sure, for the same
    reason: it leaves out what varies. With no variance at all within the classes it is the mean difference.

    Memory: ``4 * pair * d_model`` numbers of 8 bytes, one layer at a time: the inverse is taken through the answers,
    so no matrix ``d_model × d_model`` is formed.

    Reference:
        Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices (2004); for truth:
        The Geometry of Truth (arXiv 2310.06824), section 5, "mass-mean probing" with its tilt by the covariance.

    Example:
        >>> positive = torch.tensor([[1.2, 3.0], [0.8, 3.0], [1.2, -3.0], [0.8, -3.0]])
        >>> found = ShrunkLDA().estimate(positive, -positive, 0)
        >>> (found / found.norm()).round(decimals=3).abs()
        tensor([1., 0.])
    """

    def estimate(
        self, positive: Float[Tensor, "n_pos d_model"], negative: Float[Tensor, "n_neg d_model"], layer: int
    ) -> Float[Tensor, " d_model"]:
        """Return the whitened difference of the means."""
        from sklearn.covariance import ledoit_wolf_shrinkage  # slow to import

        check_sides(positive, negative)
        difference = mean_difference(positive.double(), negative.double()).cpu().numpy()
        classes = [one.double().cpu().numpy() for one in (positive, negative)]
        within = np.concatenate([one - one.mean(axis=0) for one in classes])
        mean_variance = float(np.mean(within**2))
        if mean_variance == 0:
            return torch.from_numpy(difference).float()
        shrinkage = float(ledoit_wolf_shrinkage(within, assume_centered=True))
        # In the axes of the answers' own variance the covariance is a diagonal; outside them it is the shrinkage alone.
        _, singular, axes = np.linalg.svd(within, full_matrices=False)
        floor = shrinkage * mean_variance
        variances = (1 - shrinkage) * singular**2 / len(within) + floor
        if floor == 0:
            return torch.from_numpy(_whiten_unshrunk(difference, axes, variances)).float()
        whitened = difference / floor + axes.T @ (axes @ difference * (1 / variances - 1 / floor))
        return torch.from_numpy(whitened).float()


def _whiten_unshrunk(difference: ndarray, axes: ndarray, variances: ndarray) -> ndarray:
    """Whiten by a covariance that nothing is added to; what lies where nothing varies outweighs all the rest."""
    varies = variances > _LEAST_VARIANCE * variances.max()
    axes, variances = axes[varies], variances[varies]
    outside: ndarray = difference - axes.T @ (axes @ difference)
    if np.linalg.norm(outside) > 1e-9 * np.linalg.norm(difference):
        return outside
    whitened: ndarray = axes.T @ (axes @ difference / variances)
    return whitened
