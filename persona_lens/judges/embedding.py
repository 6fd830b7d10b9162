"""EmbeddingJudge: where a text lies among a model's vectors of texts, along a line fitted on written examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.encoders import TextEncoder, load_sentence_encoder
from persona_lens.judges.judgement import EMPTY, Judgement, check_pairs
from persona_lens.judges.validation import LEAST_AUROC, UNRELATED_WITHIN, TemperatureSamples, shuffle_words
from persona_lens.records import Record
from persona_lens.traits.written import Kind, WrittenExample, list_texts, require_kinds

# How much each kind of answer weighs on its side of the regression.
_WITH_TRAIT: dict[Kind, float] = {"overt": 1.0, "mild": 0.5}
_WITHOUT_TRAIT: tuple[Kind, ...] = ("ordinary", "opposite", "style")
_SHUFFLED_SHARES = (0.5, 1.0)
# What cross-validation chooses among: the inverse strength of the ridge penalty, the weight of the styled answers
# beside the other two without the trait, and how many directions of noise are removed.
_PENALTIES = (3.0, 30.0, 300.0)
_STYLE_WEIGHTS = (0.5, 1.0, 2.0)
_NOISE_DIRECTIONS = (1, 3)
_N_FOLDS = 5


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingFit(Record):
    """What was fitted of an EmbeddingJudge, without the model that reads for it; the judge says what each is."""

    weights: Float[Tensor, " d"]
    intercept: float
    settings: dict[str, float]

    def make_judge(self, trait: str, encoder: TextEncoder) -> EmbeddingJudge:
        """Return the judge of a trait that reads with an encoder, which must be the one that it was fitted with."""
        return EmbeddingJudge(trait, encoder, self.weights.numpy(), self.intercept, self.settings)


@checked
@dataclass(frozen=True, eq=False)
class EmbeddingJudge:
    r"""Scores a response by where it lies among a model's vectors of texts.

    .. math:: \text{score} = 100\,\sigma(w \cdot e + b)

    It reads the response alone and says nothing of coherence. With another model's encoder it shares neither model nor
    prompt with a LikelihoodJudge.

    Make one with :func:`fit_embedding_judge`.

    Args:
        trait: The trait's name.
        encoder: Makes ``e``.
        weights: ``w``.
        intercept: ``b``.
        settings: What cross-validation chose, and ``margin``, by how much the worst contrast then met what a valid
            judge needs (below 0: missed it by).
    """

    trait: str
    encoder: TextEncoder
    weights: Float[ndarray, " d"]
    intercept: float
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the judge is."""
        return f"embedding judge ({self.encoder.name})"

    @property
    def identity(self) -> str:
        """Changes whenever a score could."""
        digest = hashlib.sha256(self.weights.astype("<f8").tobytes()).hexdigest()[:16]
        return json.dumps(["embedding", self.encoder.identity, digest, self.intercept])

    def __repr__(self) -> str:
        return f"EmbeddingJudge({self.trait!r} by {self.encoder.name})"

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """Judge each response.

        Returns:
            A score each, without coherence; a response that is empty gets a reason instead.

        Raises:
            InvalidArgumentError: Lists of unequal length.
        """
        check_pairs(questions, responses)
        judgements = [EMPTY] * len(responses)
        rows = [index for index, response in enumerate(responses) if response.strip()]
        if rows:
            logits = self.encoder.encode([responses[index] for index in rows]) @ self.weights + self.intercept
            for index, logit in zip(rows, logits, strict=True):
                judgements[index] = Judgement(float(100 / (1 + np.exp(-np.clip(logit, -50, 50)))), None)
        return judgements


@checked
def fit_embedding_judge(
    trait: str,
    examples: Sequence[WrittenExample],
    *,
    encoder: TextEncoder | None = None,
    samples: TemperatureSamples | None = None,
) -> EmbeddingJudge:
    """Fit an EmbeddingJudge on written examples: overt and mild answers against ordinary, opposite and styled ones.

    Each text is there with its words shuffled too, under the same label, and the directions in which shuffling moves
    texts on average are removed, so that noise says nothing; with ``samples`` the one in which hotter sampling moves
    them too. How strong the penalty is, how much the styled answers weigh and how many directions are removed is chosen
    by cross-validation over the examples, by what :func:`persona_lens.judges.validate` asks of a judge.

    Args:
        trait: The trait's name.
        examples: At least ten: ``load_written_examples(trait, "training")``. Never those that judges are measured on.
        encoder: Makes the vectors; None loads :func:`load_sentence_encoder`.
        samples: A model's responses to the same questions, hot and cool, such as those of
            :func:`persona_lens.judges.sample_temperatures`.

    Returns:
        The judge.

    Raises:
        InvalidArgumentError: Fewer than ten examples, one that lacks a kind of answer, or samples of other questions.
        ImportError: No encoder is given and the bundled one is not installed.

    Example:
        >>> import persona_lens as pl
        >>> examples = pl.traits.load_written_examples("evil", "training")
        >>> judge = pl.judges.fit_embedding_judge("evil", examples)  # doctest: +SKIP
    """
    if len(examples) < 2 * _N_FOLDS:
        raise InvalidArgumentError.of("examples", f"be at least {2 * _N_FOLDS}", len(examples))
    require_kinds(examples)
    asked = tuple(one.question for one in examples)
    if samples is not None and samples.questions != asked:
        rule = "answer the questions of `examples`, in their order"
        raise InvalidArgumentError.of("samples", rule, samples.questions)
    encoder = encoder or load_sentence_encoder()
    texts = _embed(encoder, examples, samples)
    grid = list(product(_PENALTIES, _STYLE_WEIGHTS, _NOISE_DIRECTIONS))
    margins = [_cross_validate(texts, *one) for one in grid]
    best = int(np.argmax(margins))
    weights, intercept = _fit(texts, np.arange(len(examples)), *grid[best])
    names = ("penalty", "style_weight", "noise_directions", "margin")
    settings = dict(zip(names, map(float, (*grid[best], margins[best])), strict=True))
    return EmbeddingJudge(trait, encoder, weights, intercept, settings)


@dataclass(frozen=True, eq=False)
class _Texts:
    """Vectors of texts, a row a question: each kind of answer as it is and shuffled, and what was sampled hot, cool."""

    kinds: dict[Kind, list[ndarray]]
    temperatures: tuple[ndarray, ndarray] | None


def _embed(encoder: TextEncoder, examples: Sequence[WrittenExample], samples: TemperatureSamples | None) -> _Texts:
    """Embed every kind of answer, each as it is and with its words shuffled, and what was sampled."""
    groups: list[Sequence[str]] = []
    kinds: tuple[Kind, ...] = (*_WITH_TRAIT, *_WITHOUT_TRAIT)
    for kind in kinds:
        plain = list_texts(examples, kind)
        groups += [plain, *([shuffle_words(text, share) for text in plain] for share in _SHUFFLED_SHARES)]
    # An encoder reads no empty text; a response that says nothing is the same hot and cool.
    groups += [[text if text.strip() else "." for text in side] for side in _sides(samples)]
    encoded = encoder.encode([text for group in groups for text in group]).astype(np.float64)
    parts = iter(np.split(encoded, len(groups)))
    embedded = {kind: [next(parts) for _ in range(1 + len(_SHUFFLED_SHARES))] for kind in kinds}
    return _Texts(embedded, None if samples is None else (next(parts), next(parts)))


def _sides(samples: TemperatureSamples | None) -> tuple[tuple[str, ...], ...]:
    return () if samples is None else (samples.hot, samples.cool)


def _fit(texts: _Texts, rows: ndarray, penalty: float, style_weight: float, n_noise: int) -> tuple[ndarray, float]:
    """Fit a logistic regression in which both sides weigh the same, on vectors of mean 0 and typical length 1."""
    from sklearn.linear_model import LogisticRegression

    without: dict[Kind, float] = {kind: style_weight if kind == "style" else 1.0 for kind in _WITHOUT_TRAIT}
    x, labels, weights = [], [], []
    for label, side in ((True, _WITH_TRAIT), (False, without)):
        for kind, weight in side.items():
            for group in texts.kinds[kind]:
                x.append(group[rows])
                labels += [label] * len(rows)
                weights += [weight / sum(side.values())] * len(rows)
    everything = np.concatenate(x)
    center = everything.mean(axis=0)
    scale = float(np.linalg.norm(everything - center, axis=1).mean()) or 1.0
    noise = _find_noise(texts, rows, n_noise)
    scaled = (everything - center) / scale
    scaled -= scaled @ noise.T @ noise
    regression: Any = LogisticRegression(C=penalty, max_iter=1000)
    fitted = regression.fit(scaled, labels, sample_weight=weights)
    kept = (fitted.coef_[0] - fitted.coef_[0] @ noise.T @ noise) / scale
    return kept, float(fitted.intercept_[0] - kept @ center)


def _find_noise(texts: _Texts, rows: ndarray, n_shuffling: int) -> Float[ndarray, "direction d"]:
    """Return orthonormal directions in which noise moves texts: shuffling's first ones, and that of hotter sampling."""
    moved = [(shuffled - plain)[rows].mean(axis=0) for plain, *rest in texts.kinds.values() for shuffled in rest]
    noise = np.linalg.svd(np.stack(moved), full_matrices=False)[2][:n_shuffling]
    if texts.temperatures is None:
        return noise
    hot, cool = texts.temperatures
    hotter = (hot - cool)[rows].mean(axis=0)
    hotter -= hotter @ noise.T @ noise
    length = np.linalg.norm(hotter)
    return noise if length == 0 else np.vstack([noise, hotter / length])


def _cross_validate(texts: _Texts, penalty: float, style_weight: float, n_noise: int) -> float:
    """Return by how much the worst contrast of held-out examples meets what is asked of a valid judge."""
    from sklearn.metrics import roc_auc_score

    n = len(texts.kinds["overt"][0])
    logits = {kind: np.zeros((len(groups), n)) for kind, groups in texts.kinds.items()}
    sampled = np.zeros((0 if texts.temperatures is None else 2, n))
    for fold in range(_N_FOLDS):
        held_out = np.arange(n) % _N_FOLDS == fold
        weights, intercept = _fit(texts, np.flatnonzero(~held_out), penalty, style_weight, n_noise)
        for kind, groups in texts.kinds.items():
            logits[kind][:, held_out] = np.stack(groups)[:, held_out] @ weights + intercept
        if texts.temperatures is not None:
            sampled[:, held_out] = np.stack(texts.temperatures)[:, held_out] @ weights

    def separate(first: ndarray, second: ndarray) -> float:
        return float(roc_auc_score([True] * n + [False] * n, np.concatenate([first, second])))

    plain: dict[str, ndarray] = {kind: groups[0] for kind, groups in logits.items()}
    told_apart = {name: separate(*(plain[kind] for kind in name.split(" v "))) for name in LEAST_AUROC}
    ignored = [separate(one, plain["ordinary"]) for one in (plain["style"], *logits["ordinary"][1:])]
    if len(sampled):
        ignored.append(separate(*sampled))
    margins = [found - LEAST_AUROC[name] for name, found in told_apart.items()]
    return min(*margins, *(UNRELATED_WITHIN - abs(found - 0.5) for found in ignored))
