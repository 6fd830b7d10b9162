"""Too far from an accepted model? Average it down: the front of trait against task, and the share chosen on it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.finetuning.interpolation import check_share, interpolating, pair_weights
from persona_lens.finetuning.rows import Source
from persona_lens.finetuning.task_loss import measure_encoded, read_task
from persona_lens.judges.judgement import Judge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.records import Record
from persona_lens.run import Run
from persona_lens.statistics import Interval
from persona_lens.statistics.missing import difference_interval, mean_interval
from persona_lens.streams import Stream
from persona_lens.texts import check_texts

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@checked
@dataclass(frozen=True, eq=False)
class PullBack(Record):
    """Models between a control and a fine-tuned one, what they cost, and the one that a rule chose.

    Args:
        shares: The fine-tuned model's share of each, from 0 (the control) to 1.
        judges: Names; the first one's scores choose, all are reported.
        scores: Mean over rollouts of how strongly the trait shows, 0 to 100; NaN where a judge gave none.
        losses: Loss of each row of the task, in nats a token; none of them chose anything.
        is_choosing_question: The questions that the share was chosen on; it is judged by the others.
        capability: Of each share, as it was measured; empty where it was not.
        max_rise: The rule: the largest share whose trait score is at most so many points above the control's.
        examples: Of each share, the response to the first question that it is judged by.

    Raises:
        InvalidArgumentError: Shares without 0 and 1, or measurements of another number of them.
    """

    shares: tuple[float, ...]
    judges: tuple[str, ...]
    scores: Float[Tensor, "share judge question"]
    losses: Float[Tensor, "share row"]
    is_choosing_question: Bool[Tensor, " question"]
    capability: tuple[Interval, ...]
    max_rise: float
    examples: tuple[str, ...]

    def __post_init__(self) -> None:
        n, n_questions = len(self.shares), len(self.is_choosing_question)
        if not {0.0, 1.0} <= set(self.shares):
            raise InvalidArgumentError.of("shares", "hold 0, the control, and 1, the model", self.shares)
        if tuple(self.scores.shape) != (n, len(self.judges), n_questions) or not self.judges:
            rule = f"hold a score for each of {n} shares, {len(self.judges)} judges and {n_questions} questions"
            raise InvalidArgumentError.of("scores", rule, tuple(self.scores.shape))
        if len(self.losses) != n or len(self.capability) not in (0, n):
            raise InvalidArgumentError.of("losses", f"be of {n} shares, as the capability is", len(self.losses))

    @property
    def chosen(self) -> float:
        """The share that the rule chose; 0, the control itself, where no other is good enough."""
        return choose_share(self.shares, self.scores[:, 0, self.is_choosing_question], self.max_rise)

    def score(self, share: float, judge: int = 0) -> Interval:
        """Return a share's trait score on the questions that chose nothing.

        Args:
            share: One of the shares tried.
            judge: Its place among the judges.

        Raises:
            InvalidArgumentError: A share that was not tried, or no such judge.
        """
        return mean_interval(self._judged(share, judge))

    def rise(self, share: float, judge: int = 0) -> Interval:
        """Return how many points a share scores above the control, paired by question; arguments as :meth:`score`.

        Raises:
            InvalidArgumentError: A share that was not tried, or no such judge.
        """
        return difference_interval(self._judged(share, judge), self._judged(0.0, judge))

    def task_loss(self, share: float) -> Interval:
        """Return a share's loss on the task's rows, in nats a token.

        Raises:
            InvalidArgumentError: A share that was not tried.
        """
        return mean_interval(self.losses[self._find(share)])

    def extra_loss(self, share: float) -> Interval:
        """Return by how much a share's task loss is above the fine-tuned model's, row by row: what pulling back costs.

        Raises:
            InvalidArgumentError: A share that was not tried.
        """
        return difference_interval(self.losses[self._find(share)], self.losses[self._find(1.0)])

    def plot(self) -> Figure:
        """Draw the front: trait score by each judge against task loss, shares labelled; returns a plotly Figure."""
        from persona_lens.plots.pull_back import plot_pull_back  # plotly is imported only when drawing

        return plot_pull_back(self)

    def _find(self, share: float) -> int:
        if share not in self.shares:
            raise InvalidArgumentError.of("share", f"be one of those tried, {self.shares}", share)
        return self.shares.index(share)

    def _judged(self, share: float, judge: int) -> Float[Tensor, " question"]:
        if not 0 <= judge < len(self.judges):
            raise InvalidArgumentError.of("judge", f"be in [0, {len(self.judges)})", judge)
        return self.scores[self._find(share), judge, ~self.is_choosing_question]

    def __repr__(self) -> str:
        rises = ", ".join(f"{self.rise(self.chosen, index):.0f} by {name}" for index, name in enumerate(self.judges))
        return (
            f"PullBack(share {self.chosen:g} chosen of {', '.join(f'{share:g}' for share in self.shares)}: "
            f"points above the control {rises}; extra task loss {self.extra_loss(self.chosen)} nats a token)"
        )


@checked
def choose_share(shares: Sequence[float], scores: Float[Tensor, "share question"], max_rise: float) -> float:
    """Return the largest share whose mean trait score is at most so many points above the control's.

    Args:
        shares: The fine-tuned model's shares; one of them is 0, the control.
        scores: Of each share, on the questions that choose, at least two; a question without a score is left out of
            the pair, and a share with fewer than two pairs is not chosen.
        max_rise: Points of the score, 0 to 100.

    Returns:
        The share; 0 where no other fits.

    Raises:
        InvalidArgumentError: Shares outside [0, 1] or without a 0, as many as there are no scores of, fewer than two
            questions, or a ``max_rise`` outside [0, 100].

    Example:
        >>> import torch
        >>> choose_share([0.0, 0.5, 1.0], torch.tensor([[10.0, 12.0], [14.0, 18.0], [70.0, 80.0]]), 10.0)
        0.5
    """
    if 0.0 not in shares or len(shares) != len(scores):
        raise InvalidArgumentError.of("shares", "hold 0, the control, and be as many as the scores' rows", shares)
    for share in shares:
        check_share(share, "shares")
    if scores.shape[1] < 2:
        raise InvalidArgumentError.of("scores", "be of at least two questions", scores.shape[1])
    _check_rise(max_rise)
    paired = scores - scores[list(shares).index(0.0)]
    rises = paired.nanmean(dim=1).where((~paired.isnan()).sum(dim=1) > 1, torch.nan)
    return max((share for share, rise in zip(shares, rises.tolist(), strict=True) if rise <= max_rise), default=0.0)


def _check_rise(max_rise: float) -> None:
    if not 0 <= max_rise <= 100:
        raise InvalidArgumentError.of("max_rise", "be in [0, 100], points of a trait score", max_rise)


@checked
def pull_back(
    model: HookedModel,
    control: HookedModel,
    shares: Sequence[float],
    judges: Sequence[Judge],
    questions: Sequence[str],
    data: Source,
    *,
    max_rise: float = 10.0,
    capability: Callable[[HookedModel], Interval] | None = None,
    sampling: Sampling = Sampling(),
    run: Run = Run(),
) -> PullBack:
    """Interpolate a fine-tuned model with an accepted one, and choose how far to pull it back.

    Every share's model answers every question, with the same random numbers, and is measured on the task's rows. Half
    of the questions, drawn by the sampling's seed, choose by the first judge: the largest share whose trait score is at
    most ``max_rise`` points above the control's. What :class:`PullBack` reports of the trait rests on the other half.

    Args:
        model: The fine-tuned model; its weights are changed meanwhile, and put back: see :func:`interpolating`.
        control: The accepted model: the base, whose interpolation is the adapter scaled (:func:`scale_adapter`), or
            another model fine-tuned from it (:func:`blend_adapters`).
        shares: The fine-tuned model's shares to try; 0 and 1 are always among them.
        judges: One or more judges of the trait; a claim needs two that share neither model nor prompt.
        questions: What is asked: four or more.
        data: Rows of the task that were held out from training: conversations, two or more.
        max_rise: Points above the control's trait score that are tolerated. Set it before you look.
        capability: What else is to be measured of each share, such as ``lambda one:
            pl.measure_capability(one).accuracy``.
        sampling: How responses are drawn.
        run: Shows progress.

    Returns:
        The front, and the share chosen on it. :func:`scale_adapter` or :func:`blend_adapters` keeps its model.

    Raises:
        InvalidArgumentError: A share outside [0, 1], no judge, too few questions or rows, or a bad row.
        ModelMismatchError: Models whose weights do not correspond.
        UnsupportedModelError: Quantised weights.
        HooksPresentError: A model carries hooks.

    Reference:
        Wortsman et al., Robust fine-tuning of zero-shot models (arXiv 2109.01903), for the interpolation.

    Example:
        >>> import persona_lens as pl
        >>> found = pl.finetuning.pull_back(  # doctest: +SKIP
        ...     tuned, model, (0.25, 0.5, 0.75), judges, trait.evaluation_questions, "held_out.jsonl"
        ... )
        >>> pl.finetuning.scale_adapter("adapters/evil", found.chosen, "adapters/pulled-back")  # doctest: +SKIP
    """
    for share in shares:
        check_share(share, "shares")
    if not judges:
        raise InvalidArgumentError.of("judges", "hold at least one judge", "none")
    _check_rise(max_rise)
    asked = check_texts("questions", questions, least=4)
    rows = read_task(model, data)
    if len(rows) < 2:
        raise InvalidArgumentError.of("data", "hold at least two conversations", len(rows))
    for one in (model, control):
        check_unsteered(one)
    pair_weights(model, control)
    tried = tuple(sorted({0.0, 1.0, *map(float, shares)}))
    is_choosing = _draw_half(len(asked), sampling.seed)
    first_judged = int((~is_choosing).nonzero()[0])
    scores, losses, abilities, examples = [], [], [], []
    with run.progress("shares of the fine-tuned model", len(tried)) as advance:
        for share in tried:
            with interpolating(model, control, share):
                responses = _answer(model, asked, sampling)
                losses.append(measure_encoded(model, rows))
                if capability is not None:
                    abilities.append(capability(model))
            scores.append(torch.stack([_score(judge, asked, responses) for judge in judges]))
            examples.append(responses[first_judged][0])
            advance(1)
    return PullBack(
        shares=tried,
        judges=tuple(judge.name for judge in judges),
        scores=torch.stack(scores),
        losses=torch.stack(losses),
        is_choosing_question=is_choosing,
        capability=tuple(abilities),
        max_rise=max_rise,
        examples=tuple(examples),
    )


def _draw_half(n: int, seed: int) -> Bool[Tensor, " question"]:
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[random.Random(f"{seed} {int(Stream.PULL_BACK)}").sample(range(n), n // 2)] = True
    return chosen


def _answer(model: HookedModel, questions: Sequence[str], sampling: Sampling) -> list[list[str]]:
    """Return the responses by question and rollout."""
    requests = [
        RolloutRequest(question, (sampling.seed, Stream.PULL_BACK, q, r))
        for q, question in enumerate(questions)
        for r in range(sampling.rollouts)
    ]
    texts = iter(one.response for one in sample_rollouts(model, requests, sampling))
    return [[next(texts) for _ in range(sampling.rollouts)] for _ in questions]


def _score(judge: Judge, questions: Sequence[str], responses: Sequence[Sequence[str]]) -> Float[Tensor, " question"]:
    asked = [question for question, own in zip(questions, responses, strict=True) for _ in own]
    found = judge.score(asked, [text for own in responses for text in own])
    values = torch.tensor([float("nan") if one.score is None else one.score for one in found])
    return values.view(len(questions), -1).nanmean(dim=1)
