"""How far a vector depends on which pairs it was found from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from persona_lens.statistics import Interval
from persona_lens.statistics.bootstrap import bootstrap
from persona_lens.statistics.correlation import fisher_interval
from persona_lens.streams import Stream, check_seed
from persona_lens.tensors.directions import cosine, mean_difference, normalize
from persona_lens.vectors.pairs import ActivationPairs

if TYPE_CHECKING:  # a vector's type leads here when its quality is asked for
    from persona_lens.vectors.estimators import Estimator

_N_RESAMPLES = 1000


@checked
@dataclass(frozen=True, eq=False)
class Stability(Record):
    """How far a direction depends on which pairs it was found from, at each layer.

    Args:
        n_pairs: Pairs of answers.
        n_questions: Questions that they answer: what is halved and drawn.
        agreement: Mean cosine of a pair's difference with the mean difference of the other questions' pairs.
        pairwise: Mean cosine of the differences of two pairs of different questions.
        split_half: Cosine of the directions of two halves: the median and the middle 95 % of random halvings, which is
            their spread and no interval of confidence.
        cone: Angle in degrees between the direction and that of endlessly many such pairs: the median and the middle
            95 % of bootstrap draws.
    """

    n_pairs: int
    n_questions: int
    agreement: tuple[Interval, ...]
    pairwise: tuple[Interval, ...]
    split_half: tuple[Interval, ...]
    cone: tuple[Interval, ...]

    @property
    def reliability(self) -> tuple[float, ...]:
        """Cosine that the whole would have with another whole of as many pairs, by Spearman and Brown: 2c / (1 + c)."""
        return tuple(2 * max(one.estimate, 0.0) / (1 + max(one.estimate, 0.0)) for one in self.split_half)


@checked
def measure_stability(
    pairs: ActivationPairs, estimator: Estimator | None = None, *, n_halvings: int = 50, n_draws: int = 100,
    seed: int = 0,
) -> Stability:  # fmt: skip
    r"""Measure how far the direction that a way finds depends on the pairs that there were.

    With :math:`\delta_i` the differences, and :math:`-q_i` all pairs but those of the i-th one's question,

    .. math:: \text{agreement} = \operatorname{mean}_i \cos(\delta_i, \textstyle\sum_{j \in -q_i} \delta_j)

    Leaving the question out keeps a difference from agreeing with itself: of pure noise the mean is near 0, not
    near :math:`1 / \sqrt n`.

    A bootstrap draw lies as far from the direction as the direction from that of endless pairs, but sideways of it:
    where the draws are at angle :math:`\varphi`, the direction is off by :math:`\theta` with :math:`\sin\theta =
    \sqrt{n / (n - 1)} \tan\varphi`. Pure noise of many dimensions has draws at 45 degrees, and a cone of 90. Where that
    holds, the cosine of the cone is the square root of :attr:`Stability.reliability`.

    Args:
        pairs: Of at least four questions.
        estimator: The way, asked anew for each half and draw; None is the mean difference.
        n_halvings: Random halvings of the questions.
        n_draws: Bootstrap draws of the questions.
        seed: Of halvings and draws.

    Raises:
        InvalidArgumentError: Fewer than four questions, a difference without length, or a count below 1.

    Reference:
        Agreement: arXiv 2505.22637, which counts each difference's own part in the mean.

    Example:
        >>> stability = measure_stability(pairs)  # doctest: +SKIP
        >>> stability.agreement[20], stability.cone[20].estimate  # doctest: +SKIP
    """
    numbers = number_questions(pairs)
    n_questions = max(numbers) + 1
    if n_questions < 4:
        raise InvalidArgumentError.of("pairs", "answer at least 4 questions", n_questions)
    for name, count in (("n_halvings", n_halvings), ("n_draws", n_draws)):
        if not 1 <= count <= 100_000:
            raise InvalidArgumentError.of(name, "be in [1, 100000]", count)
    check_seed(seed)
    differences = (pairs.positive - pairs.negative).transpose(0, 1)
    if not bool(differences.any(dim=-1).all()):
        raise InvalidArgumentError.of("pairs", "differ in each pair", "two answers with the same activations")
    grams = [_multiply(one) for one in differences]
    rng = np.random.default_rng((seed, Stream.VECTOR_QUALITY))
    by_question = _list_rows(numbers)
    whole = estimate_layers(pairs, estimator)
    halvings, draws = [], []
    for _ in range(n_halvings):
        order = rng.permutation(n_questions)
        parts = (order[: n_questions // 2], order[n_questions // 2 :])
        first, second = (estimate_layers(pairs.take(_gather(by_question, part)), estimator) for part in parts)
        halvings.append(cosine(first, second))
    for _ in range(n_draws):
        drawn = rng.integers(n_questions, size=n_questions)
        draws.append(_measure_angle(estimate_layers(pairs.take(_gather(by_question, drawn)), estimator), whole))
    sideways = torch.tan(torch.stack(draws).clamp(max=np.pi / 4)) * np.sqrt(n_questions / (n_questions - 1))
    return Stability(
        n_pairs=len(pairs),
        n_questions=n_questions,
        agreement=tuple(_bootstrap(_weigh_agreement(one, np.array(numbers)), n_questions) for one in grams),
        pairwise=tuple(_bootstrap(_weigh_pairwise(one, np.array(numbers)), n_questions) for one in grams),
        split_half=_spread(torch.stack(halvings)),
        cone=_spread(torch.rad2deg(torch.asin(sideways.clamp(max=1.0)))),
    )


def estimate_layers(pairs: ActivationPairs, estimator: Estimator | None) -> Float[Tensor, "layer d_model"]:
    """Return the direction at every layer; of the mean difference, which is None, all at once."""
    if estimator is None:
        return mean_difference(pairs.positive, pairs.negative)
    layers = range(pairs.model.n_layers)
    found = [estimator.estimate(pairs.positive[:, layer], pairs.negative[:, layer], layer) for layer in layers]
    directions = normalize(torch.stack(found).float())
    along = (mean_difference(pairs.positive, pairs.negative) * directions).sum(dim=-1, keepdim=True)
    return torch.where(along < 0, -directions, directions)  # an estimator's sign means nothing


def number_questions(pairs: ActivationPairs) -> list[int]:
    """Return each pair's question, numbered from 0 in order of appearance."""
    known = {question: number for number, question in enumerate(dict.fromkeys(pairs.questions))}
    return [known[question] for question in pairs.questions]


def _list_rows(numbers: Sequence[int]) -> list[list[int]]:
    return [[row for row, number in enumerate(numbers) if number == one] for one in range(max(numbers) + 1)]


def _gather(by_question: Sequence[Sequence[int]], questions: ndarray) -> list[int]:
    return [row for question in questions for row in by_question[question]]


def _measure_angle(a: Float[Tensor, "layer d_model"], b: Float[Tensor, "layer d_model"]) -> Float[Tensor, " layer"]:
    """Return angles in radians; from the chord, as the cosine of a small angle is rounded away."""
    chord: Tensor = torch.linalg.vector_norm(normalize(a.double()) - normalize(b.double()), dim=-1)
    return 2 * torch.asin((chord / 2).clamp(max=1.0))


def _spread(values: Float[Tensor, "draw layer"]) -> tuple[Interval, ...]:
    low, median, high = values.double().quantile(torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64), dim=0)
    return tuple(Interval(*ends) for ends in zip(median.tolist(), low.tolist(), high.tolist(), strict=True))


def _multiply(differences: Float[Tensor, "pair d_model"]) -> ndarray:
    """Return the products of all differences with each other."""
    wide = differences.double()
    product: ndarray = (wide @ wide.T).numpy()
    return product


def _bootstrap(statistic: Callable[[ndarray], ndarray], n_questions: int) -> Interval:
    return fisher_interval(bootstrap(statistic, (n_questions,), _N_RESAMPLES, 0.95, 0), n_questions)


def _weigh_agreement(gram: ndarray, at: ndarray) -> Callable[[ndarray], ndarray]:
    """Make the function that maps counts ``"resample question"`` to the agreement."""
    same = (at[:, None] == at[None, :]).astype(np.float64)
    lengths = np.sqrt(np.diag(gram))

    def compute(counts: ndarray) -> ndarray:
        weights = counts[:, at]
        with_all, with_own = weights @ gram, weights @ (gram * same)
        # |sum of the others|² = |all|² - 2 all · own + |own|²
        total = (weights * with_all).sum(axis=1, keepdims=True)
        rest = total - 2 * (weights * with_all) @ same + (weights * with_own) @ same
        has_rest = rest > 1e-12 * np.abs(total)
        cosines = (with_all - with_own) / (lengths * np.sqrt(np.where(has_rest, rest, 1.0)))
        weights = weights * has_rest
        n = weights.sum(axis=1)
        return np.where(n > 0, (weights * cosines).sum(axis=1) / np.maximum(n, 1), np.nan)

    return compute


def _weigh_pairwise(gram: ndarray, at: ndarray) -> Callable[[ndarray], ndarray]:
    """Make the function that maps counts ``"resample question"`` to the mean cosine of two questions' differences."""
    lengths = np.sqrt(np.diag(gram))
    different = (at[:, None] != at[None, :]).astype(np.float64)
    cosines = gram / np.outer(lengths, lengths) * different

    def compute(counts: ndarray) -> ndarray:
        weights = counts[:, at]
        n = ((weights @ different) * weights).sum(axis=1)
        return np.where(n > 0, ((weights @ cosines) * weights).sum(axis=1) / np.maximum(n, 1), np.nan)

    return compute
