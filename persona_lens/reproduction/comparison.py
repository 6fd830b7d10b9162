"""Steered responses beside everything simpler, read by several judges: what steering results rest on."""

from __future__ import annotations

import html
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.evaluation.conditions import ConditionScores
from persona_lens.judges.validation import JudgeValidation
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.verdicts import NOT_VALIDATED
from persona_lens.statistics import Interval, bootstrap_auroc_by_group
from persona_lens.statistics.crossed import mean_over_directions_interval
from persona_lens.statistics.missing import difference_interval, mean_interval

SHUFFLED_LABELS = "shuffled labels"
EQUAL_COHERENCE = "random, equal coherence"
OTHER_TRAITS = "other traits"


@dataclass(frozen=True)
class Setting(Record):
    """A layer and step size of one source, as they were chosen on other questions.

    ``step`` is the length of what is added, as a share of the typical length of an ordinary response's mean.
    """

    source: str
    layer: int
    step: float
    coefficient: float
    score: float
    coherence: float
    split_half_cosine: float
    n_pairs: int
    pairs_kept_by: str = ""


@dataclass(frozen=True, eq=False)
class Compared(Record):
    """Responses to questions that chose nothing, under steering and everything simpler.

    Args:
        responses: Under every condition, with the likelihood judge's scores and coherence.
        scores: By judge's name, those of the same responses.
        nulls: Under random directions of each kind, one rollout each.
        null_scores: By kind and judge's name.
        null_step: Length of the random directions of equal coherence, as a share like a :class:`Setting`'s.
    """

    responses: ConditionScores
    scores: dict[str, Float[Tensor, "condition question rollout"]]
    nulls: dict[str, ConditionScores]
    null_scores: dict[str, dict[str, Float[Tensor, "direction asked rollout"]]]
    null_step: float


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result, ABC):
    """A result that rests on such responses.

    ``validations`` are those of the judges that were measured; the other fields those of :class:`Compared`.
    """

    trait: str
    validations: tuple[JudgeValidation, ...]
    responses: ConditionScores
    scores: dict[str, Float[Tensor, "condition question rollout"]]
    nulls: dict[str, ConditionScores]
    null_scores: dict[str, dict[str, Float[Tensor, "direction asked rollout"]]]
    null_step: float

    @property
    def verdicts(self) -> dict[str, str]:
        """Whether each judge is valid for the trait, by its name."""
        found = {f"{one.judge}, {one.verdict} for {one.trait}": one.verdict for one in self.validations}
        return {name: found.get(name, NOT_VALIDATED) for name in self.scores}

    @property
    def confirming(self) -> str:
        """The judge that confirms: the first that is valid for the trait, other than the one that chose the setting."""
        first, *others = self.scores
        return next((one for one in others if self.verdicts[one] == "valid"), (others or [first])[0])

    @property
    def readers(self) -> tuple[str, ...]:
        """The judge that chose and the one that confirms; one where the trait has no other."""
        return tuple(dict.fromkeys((next(iter(self.scores)), self.confirming)))

    def shorten(self, judge: str) -> str:
        """Return a judge's name without its verdict, escaped."""
        return html.escape(judge.removesuffix(f", {self.verdicts[judge]} for {self.trait}"))

    def auroc(self, judge: str, condition: str, other: str) -> Interval:
        """Return how surely a judge tells a condition's responses from another's, over questions."""
        first, second = self._pool(judge, condition), self._pool(judge, other)
        groups = [[q for q, row in enumerate(side) for one in row if not one.isnan()] for side in (first, second)]
        values = [side[~side.isnan()] for side in (first, second)]
        if min(map(len, values)) < 2:
            return Interval.missing()
        return bootstrap_auroc_by_group(values[0], values[1], groups[0], groups[1])

    def mean(self, judge: str, condition: str) -> Interval:
        """Return a condition's mean score over questions; of a null, over its directions too."""
        if condition in self.nulls:
            return mean_over_directions_interval(self.null_scores[condition][judge].nanmean(dim=-1))
        return mean_interval(self._pool(judge, condition).nanmean(dim=-1))

    def rise(self, judge: str, condition: str) -> Interval:
        """Return how many points a condition scores above the unsteered model, paired by question."""
        steered, plain = (self._pool(judge, one).nanmean(dim=-1) for one in (condition, "unsteered"))
        return difference_interval(steered, plain)

    def above(self, judge: str, condition: str, null: str) -> Interval:
        """Return by how many points steering outscores a null's directions; directions and questions are both units."""
        against = self.null_scores[null][judge].nanmean(dim=-1)
        steered = self.scores[judge][self.responses.conditions.index(condition)].nanmean(dim=-1)
        return mean_over_directions_interval(steered[: against.shape[1]] - against)

    def coherence(self, condition: str) -> float:
        """Return a condition's mean coherence."""
        if condition in self.nulls:
            return float(self.nulls[condition].coherences.nanmean())
        return float(self.responses.coherences[self.responses.conditions.index(condition)].nanmean())

    def show_pairs(self, condition: str = "written vector", n: int = 5) -> list[tuple[str, str, str]]:
        """Return the questions, with both responses, in which the confirming judge sees steering raise the trait most.

        Each is a question, the unsteered response and the steered one.
        """
        both = [self.responses.conditions.index(one) for one in ("unsteered", condition)]
        plain, steered = (self.scores[self.confirming][one, :, 0] for one in both)
        order = (steered - plain).nan_to_num(-1e9).argsort(descending=True).tolist()[:n]
        texts = [self.responses.responses[one] for one in both]
        return [(self.responses.questions[q], texts[0][q][0], texts[1][q][0]) for q in order]

    def pairs_to_markdown(self) -> str:
        """Write the pairs of :meth:`show_pairs` as a table."""
        return self.write_pairs(self.show_pairs())

    @staticmethod
    def write_pairs(pairs: Sequence[Sequence[str]]) -> str:
        """Write questions with both responses as a table, in which nothing of them is markup."""
        lines = [f"| {' | '.join(map(_in_cell, pair))} |" for pair in pairs]
        return "\n".join(["| question | unsteered | steered |", "|---|---|---|", *lines])

    def _pool(self, judge: str, condition: str) -> Float[Tensor, "question response"]:
        """Return a condition's scores, question by question; those of a null and of ``other traits`` are pooled."""
        names = self.responses.conditions
        if condition in self.nulls:
            found = self.null_scores[condition][judge]
        elif condition == OTHER_TRAITS:
            found = self.scores[judge][[i for i, name in enumerate(names) if name.startswith("vector of ")]]
        else:
            found = self.scores[judge][[names.index(condition)]]
        return torch.cat(list(found), dim=-1)


def _in_cell(text: str) -> str:
    """Return a text as one cell of a Markdown table, in which nothing of it is markup."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "\\`").replace("*", "\\*")
