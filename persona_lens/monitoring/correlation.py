"""How well projections predict scores: Pearson's r overall and inside conditions, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.records import Record
from persona_lens.statistics import Interval
from persona_lens.statistics.bootstrap import bootstrap, draw_multinomial
from persona_lens.statistics.correlation import fisher_interval, standardize, weighted_pearson_r
from persona_lens.texts import check_texts

# A correlation of two or three questions is near ±1 whatever they say, and so are its resamples.
_MIN_QUESTIONS = 5
_MIN_POINTS = 3


@checked
@dataclass(frozen=True)
class MonitoringCorrelation(Record):
    """How well projections predict scores, overall and inside the conditions.

    Args:
        overall: Pearson's r over all prompts.
        within: Pearson's r inside each condition, averaged; NaN if every condition was left out.
        n: Prompts.
        n_questions: Distinct questions, the units of the bootstrap.
        conditions: Conditions that count in ``within``.
        left_out: Conditions that do not: scores with a standard deviation under ``min_std``, constant projections,
            or fewer than three prompts.
        min_std: That limit, in score points.
    """

    overall: Interval
    within: Interval
    n: int
    n_questions: int
    conditions: tuple[str, ...]
    left_out: tuple[str, ...]
    min_std: float = 1.0

    @property
    def is_reliable(self) -> bool:
        """Whether r inside the conditions is above zero with 95 % confidence, on at least five questions.

        A high overall r alone may only say that the projection knows one system prompt from another.
        """
        return self.within.low > 0 and self.n_questions >= _MIN_QUESTIONS

    def __str__(self) -> str:
        out = f", left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"r {self.overall}, within conditions {self.within}, n = {self.n}{out}"


@checked
def measure_monitoring(
    projections: Float[Tensor, " n"],
    scores: Float[Tensor, " n"],
    conditions: Sequence[str],
    questions: Sequence[str],
    *,
    min_std: float = 1.0,
    n_resamples: int = 2000,
    seed: int = 0,
) -> MonitoringCorrelation:
    """Correlate projections with scores, over all prompts and inside each condition, with 95 % intervals.

    Bootstrap over questions: a resample takes a question with all its conditions, since they share the
    question's peculiarities. Which conditions count is decided once, on the whole data; one that happens to be
    constant in a resample is left out of that resample's average.

    Args:
        projections: One a prompt, in residual-stream units.
        scores: Mean trait score (0 to 100) of that prompt's responses.
        conditions: E.g. which system prompt, or how many examples.
        questions: Which question each prompt asks.
        min_std: Conditions whose scores have a lower standard deviation (population) are left out.
        n_resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        Both correlations; NaN where projections or scores are constant.

    Raises:
        InvalidArgumentError: Fewer than three prompts, one question only, unequal lengths, or a value not finite.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3 and appendix C.

    Example:
        >>> x = torch.arange(24.0)
        >>> labels = [str(i % 2) for i in range(24)]
        >>> found = measure_monitoring(x, x + 5 * torch.sin(x), labels, [str(i // 2) for i in range(24)])
        >>> found.is_reliable, found.left_out
        (True, ())
    """
    check_graded(projections, scores, conditions, questions)
    x, y = (values.detach().to("cpu", torch.float64).numpy() for values in (projections, scores))
    units = list(dict.fromkeys(questions))
    unit_of = np.array([units.index(question) for question in questions])
    rows_of = {label: np.flatnonzero(np.array(conditions) == label) for label in dict.fromkeys(conditions)}
    kept = {
        label: (rows, standardize(x[rows]), standardize(y[rows]))
        for label, rows in rows_of.items()
        if len(rows) >= _MIN_POINTS and y[rows].std() >= min_std and np.ptp(x[rows]) > 0
    }
    whole_x, whole_y = standardize(x), standardize(y)

    def overall(counts: ndarray) -> ndarray:
        """Correlate all prompts."""
        return weighted_pearson_r(whole_x, whole_y, counts[:, unit_of])

    def within(counts: ndarray) -> ndarray:
        """Average the conditions' correlations."""
        weights = counts[:, unit_of]
        return _mean_of_present(np.stack([weighted_pearson_r(a, b, weights[:, rows]) for rows, a, b in kept.values()]))

    def measure(statistic: Callable[[ndarray], ndarray]) -> Interval:
        found = bootstrap(statistic, (len(units),), n_resamples, 0.95, seed, draw_multinomial)
        return fisher_interval(found, len(units))

    return MonitoringCorrelation(
        overall=measure(overall),
        within=measure(within) if kept else Interval.missing(),
        n=len(x),
        n_questions=len(units),
        conditions=tuple(kept),
        left_out=tuple(label for label in rows_of if label not in kept),
        min_std=min_std,
    )


def check_graded(projections: Tensor, scores: Tensor, conditions: Sequence[str], questions: Sequence[str]) -> None:
    """Refuse graded data that nothing can be measured on."""
    n = len(projections)
    if n < _MIN_POINTS:
        raise InvalidArgumentError.of(
            "projections", f"hold at least {_MIN_POINTS} graded prompts", n, "Grade more prompts."
        )
    for name, texts in (("conditions", conditions), ("questions", questions)):
        check_texts(name, texts, least=0)
    for name, values in (("scores", scores), ("conditions", conditions), ("questions", questions)):
        if len(values) != n:
            raise InvalidArgumentError.of(name, f"be as many as `projections`, {n}", len(values))
    for name, numbers in (("projections", projections), ("scores", scores)):
        n_bad = int((~torch.isfinite(numbers)).sum())
        if n_bad:
            hint = "Filter prompts without a score and count them."
            raise InvalidArgumentError.of(name, "be finite", f"{n_bad} of {n} are not", hint)
    if len(set(questions)) < 2:
        raise InvalidArgumentError.of("questions", "be at least two different ones", list(dict.fromkeys(questions)))


def _mean_of_present(values: ndarray) -> ndarray:
    """Average over the first axis what is not NaN; NaN where nothing is."""
    present = ~np.isnan(values)
    count = present.sum(axis=0)
    return np.where(count > 0, np.where(present, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
