"""How well a judge does its work, measured on texts whose nature is known before it is believed.

A judge must tell the written overt answers from opposite, ordinary and mild from ordinary ones. It must not tell what
has nothing to do with the trait: shuffled words, hotter sampling, and what the trait often looks like without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import torch

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.judgement import IdentifiedJudge, Judge, Judgement, identify_judge
from persona_lens.records import Record, format_table
from persona_lens.statistics import Interval, bootstrap_auroc_by_group
from persona_lens.streams import Stream, check_seed
from persona_lens.traits.written import Kind, WrittenExample, list_texts

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Verdict: TypeAlias = Literal["valid", "partly valid", "not valid"]

SHUFFLED_SHARES = (0.25, 0.5, 1.0)
"""Shares of an ordinary answer's words that are shuffled among themselves."""

LEAST_AUROC = {"overt v opposite": 0.9, "overt v ordinary": 0.9, "mild v ordinary": 0.7}
"""What a valid judge reaches where it must tell two kinds apart."""

UNRELATED_WITHIN = 0.1
"""How far from 0.5 its AUROC may be where it must not; a partly valid judge may miss either by as much again."""


@checked
@dataclass(frozen=True)
class Contrast(Record):
    """How a judge's scores of one kind of text compare with those of another.

    Args:
        name: Both kinds, as ``overt v ordinary``.
        auroc: Probability that a text of the first kind outscores one of the second, with its interval over questions.
        least: AUROC that a valid judge reaches; None for kinds that it must not tell apart.
        n_unscored: Texts of both kinds that got no score and are left out.
    """

    name: str
    auroc: Interval
    least: float | None
    n_unscored: int = 0

    def is_met(self, slack: float = 0.0) -> bool:
        """Whether the AUROC is where a valid judge's is, give or take ``slack``."""
        if self.auroc.is_missing:
            return False
        # Compared at the two decimals that are shown.
        found = round(self.auroc.estimate, 2)
        if self.least is not None:
            return found >= round(self.least - slack, 2)
        return abs(found - 0.5) <= round(UNRELATED_WITHIN + slack, 2)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class JudgeValidation(Record):
    """What :func:`validate` found of a judge, for one trait.

    Args:
        judge: The judge's name.
        identity: Changes whenever a score could.
        trait: The trait's name.
        contrasts: What it must tell apart, then what it must not.
        n_questions: Questions, over which intervals are bootstrapped.
    """

    judge: str
    identity: str
    trait: str
    contrasts: tuple[Contrast, ...]
    n_questions: int

    @property
    def verdict(self) -> Verdict:
        """Whether the judge's scores may be believed for this trait.

        ``valid``: an AUROC of at least 0.9 for overt against opposite and ordinary and of 0.7 for mild against
        ordinary, and one of 0.5 ± 0.1 for everything that has nothing to do with the trait. ``partly valid``: within
        another 0.1 of these. The estimates are compared, and the intervals shown.
        """
        if all(one.is_met() for one in self.contrasts):
            return "valid"
        return "partly valid" if all(one.is_met(UNRELATED_WITHIN) for one in self.contrasts) else "not valid"

    @property
    def failures(self) -> tuple[Contrast, ...]:
        """What keeps the judge from being valid."""
        return tuple(one for one in self.contrasts if not one.is_met())

    def __getitem__(self, name: str) -> Interval:
        """Return the AUROC of a contrast by its name."""
        return next(one.auroc for one in self.contrasts if one.name == name)

    def __repr__(self) -> str:
        failed = "; ".join(f"{one.name} {one.auroc}" for one in self.failures)
        return f"JudgeValidation({self.judge}: {self.verdict} for {self.trait}{failed and '; missed: ' + failed})"

    def _repr_html_(self) -> str:
        unrelated = f"{0.5 - UNRELATED_WITHIN:g} to {0.5 + UNRELATED_WITHIN:g}"
        rows = [
            (one.name, one.auroc, f"≥ {one.least:g}" if one.least else unrelated, "✓" if one.is_met() else "✗")
            for one in self.contrasts
        ]
        return format_table(
            f"{self.judge}: {self.verdict} for {self.trait}", rows, ("contrast", "AUROC", "must be", "")
        )

    def plot(self) -> Figure:
        """Draw each contrast's AUROC with its interval and where it must lie."""
        from persona_lens.plots.validation import plot_validations

        return plot_validations([self])


@checked
@dataclass(frozen=True)
class TemperatureSamples(Record):
    """A model's ordinary responses to the same questions, drawn cool and hot.

    Args:
        questions: What was asked; one each for every response.
        cool: Responses at the temperature that is used.
        hot: Responses at a temperature that makes text wander.
    """

    questions: tuple[str, ...]
    cool: tuple[str, ...]
    hot: tuple[str, ...]


@checked
def validate(
    judge: Judge,
    trait: str,
    examples: Sequence[WrittenExample],
    samples: TemperatureSamples | None = None,
    seed: int = 0,
) -> JudgeValidation:
    """Measure a judge on texts whose nature is known.

    Args:
        judge: Any judge of the trait.
        trait: The trait's name.
        examples: Written examples that the judge was not fitted on:
            ``load_written_examples(trait, "judging")``.
        samples: Ordinary responses, hot and cool, which the judge must not tell apart either.
        seed: Of the shuffling and the bootstrap.

    Returns:
        Every contrast's AUROC, with a verdict.

    Raises:
        InvalidArgumentError: Fewer than two examples, or one that lacks a kind of answer.

    Example:
        >>> import persona_lens as pl
        >>> examples = pl.traits.load_written_examples("evil", "judging")
        >>> pl.judges.validate(judge, "evil", examples)  # doctest: +SKIP
    """
    if len(examples) < 2:
        raise InvalidArgumentError.of("examples", "be at least 2", len(examples))
    kinds: tuple[Kind, ...] = get_args(Kind)
    texts: dict[str, list[str]] = {kind: list_texts(examples, kind) for kind in kinds}
    shuffled = {f"{share:.0%} shuffled": share for share in SHUFFLED_SHARES}
    texts |= {
        name: [shuffle_words(text, share, seed) for text in texts["ordinary"]] for name, share in shuffled.items()
    }
    asked = [one.question for one in examples]
    # All in one call: a judge may do its work in full batches.
    extra = [samples.hot, samples.cool] if samples else []
    questions = [*asked * len(texts), *(q for _ in extra for q in (samples.questions if samples else ()))]
    judged = judge.score(questions, [text for group in (*texts.values(), *extra) for text in group])
    sides: dict[str, list[tuple[str, Judgement]]] = {}
    at = 0
    for name, group in (*texts.items(), *zip(("hot", "cool"), extra, strict=False)):
        sides[name] = list(zip(questions[at : at + len(group)], judged[at : at + len(group)], strict=True))
        at += len(group)
    contrasts = [_contrast(sides, name, least, seed) for name, least in LEAST_AUROC.items()]
    unrelated = ["style v ordinary", *(f"{name} v ordinary" for name in shuffled), *(["hot v cool"] if samples else [])]
    contrasts += [_contrast(sides, name, None, seed) for name in unrelated]
    return JudgeValidation(judge.name, identify_judge(judge), trait, tuple(contrasts), len(examples))


@checked
def shuffle_words(text: str, share: float, seed: int = 0) -> str:
    """Shuffle a share of a text's words among their places; the same text is always shuffled alike.

    Args:
        text: Any text.
        share: Share of the words, in [0, 1]; at least two move.
        seed: Another seed shuffles otherwise.

    Example:
        >>> sorted(shuffle_words("one two three", 1.0).split())
        ['one', 'three', 'two']
    """
    if not 0 <= share <= 1:
        raise InvalidArgumentError.of("share", "be in [0, 1]", share)
    check_seed(seed)
    words = text.split()
    key = int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:4])
    rng = np.random.default_rng([seed, Stream.SHUFFLED_WORDS, key])
    places = rng.choice(len(words), size=min(len(words), max(2, round(share * len(words)))), replace=False)
    moved = dict(zip(places.tolist(), rng.permutation(places).tolist(), strict=True))
    return " ".join(words[moved.get(place, place)] for place in range(len(words)))


@checked
@dataclass(frozen=True, eq=False)
class ValidatedJudge:
    """A judge whose verdict stands in its name, and so in every score, record and caption.

    Args:
        judge: The judge.
        validation: What :func:`validate` found of it.

    Raises:
        InvalidArgumentError: The validation of another judge.
    """

    judge: IdentifiedJudge
    validation: JudgeValidation

    def __post_init__(self) -> None:
        if self.validation.identity != self.judge.identity:
            hint = "Validate it again: its model, rubric or calibration has changed."
            raise InvalidArgumentError.of("validation", f"be that of {self.judge.name!r}", self.validation, hint)

    @property
    def name(self) -> str:
        """What the judge is, and whether it is to be believed."""
        return f"{self.judge.name}, {self.validation.verdict} for {self.validation.trait}"

    @property
    def identity(self) -> str:
        """That of the judge: the verdict changes no score."""
        return self.judge.identity

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """Judge each response to its question."""
        return self.judge.score(questions, responses)


def _contrast(sides: dict[str, list[tuple[str, Judgement]]], name: str, least: float | None, seed: int) -> Contrast:
    pair = [sides[kind] for kind in name.split(" v ")]
    scored = [[(question, one.score) for question, one in side if one.score is not None] for side in pair]
    n_unscored = sum(map(len, pair)) - sum(map(len, scored))
    if min(map(len, scored)) < 2:
        return Contrast(name, Interval.missing(), least, n_unscored)
    values = [torch.tensor([score for _, score in side]) for side in scored]
    groups = [[question for question, _ in side] for side in scored]
    found = bootstrap_auroc_by_group(values[0], values[1], groups[0], groups[1], seed=seed)
    return Contrast(name, found, least, n_unscored)
