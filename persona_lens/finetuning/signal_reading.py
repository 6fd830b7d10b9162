"""How well a trait can be read from a model's activations, and how far the model has moved along what reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.models.engine.activations import pool_ends
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.records import Record
from persona_lens.statistics import Interval, bootstrap_mean
from persona_lens.statistics.bootstrap import bootstrap
from persona_lens.statistics.correlation import fisher_interval
from persona_lens.tensors.directions import normalize
from persona_lens.traits.written import Kind, WrittenExample
from persona_lens.vectors.classification import fit_classifier
from persona_lens.vectors.estimators import Estimator, MeanDifference
from persona_lens.vectors.pairs import ActivationPairs
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.probes import LogisticProbe
from persona_lens.vectors.quality.separation import Separation, measure_separation, separate_pairs
from persona_lens.vectors.written_contrast import encode_answers

FIRST, FRESH, PROBE = "first vector", "fresh vector", "probe"
READERS = (FIRST, FRESH, PROBE)
ANSWER_POSITIONS = ("response_mean", "last_response")
POSITIONS = ("last_prompt", *ANSWER_POSITIONS)
_N_RESAMPLES = 1000


@checked
@dataclass(frozen=True, eq=False)
class SignalActivations:
    """What a model makes of written answers with a trait and without, at three positions.

    In memory: ``5 * question * layer * d_model`` float32, 14 MB for 40 questions of the embedded model.

    Args:
        prompts: At the last token of each question's prompt, which both answers share.
        answers: By position (``response_mean``, ``last_response``), the pairs of answers, one a question.

    Raises:
        InvalidArgumentError: Other positions, shapes that do not fit together, or a question that is there twice.
    """

    prompts: Float[Tensor, "question layer d_model"]
    answers: Mapping[str, ActivationPairs]

    def __post_init__(self) -> None:
        if tuple(self.answers) != ANSWER_POSITIONS:
            raise InvalidArgumentError.of("answers", f"be of {ANSWER_POSITIONS}, in this order", list(self.answers))
        for position, pairs in self.answers.items():
            name = f"answers[{position!r}]"
            if pairs.positive.shape != self.prompts.shape:
                rule = f"be one pair for each prompt, of shape {tuple(self.prompts.shape)}"
                raise InvalidArgumentError.of(name, rule, tuple(pairs.positive.shape))
            if repeated := sorted({one for one in pairs.questions if pairs.questions.count(one) > 1}):
                raise InvalidArgumentError.of(name, "hold each question once", f"repeated: {repeated}")

    @property
    def model(self) -> ModelInfo:
        """The model that read them."""
        return self.answers["response_mean"].model

    def list_unmoved(self) -> dict[str, Float[Tensor, "question layer d_model"]]:
        """Return by position the activations of texts that do not show the trait: prompts, and answers without it."""
        return {"last_prompt": self.prompts} | {at: pairs.negative for at, pairs in self.answers.items()}

    def __repr__(self) -> str:
        pairs = self.answers["response_mean"]
        return f"SignalActivations({pairs.trait!r}, {len(pairs)} questions, model={pairs.model.name!r})"


@checked
def read_signal(
    model: HookedModel, trait: str, examples: Sequence[WrittenExample], *, against: Kind = "ordinary"
) -> SignalActivations:
    """Read written answers with a trait and without, and keep what :func:`measure_signal` needs of them.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait's name.
        examples: At least two, to questions that nothing was trained on.
        against: What the overt answers are compared with.

    Raises:
        InvalidArgumentError: Fewer than two examples, one without such an answer, or overt answers against
            themselves.
        ContextLengthError: An answer that is longer than the model's context.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> examples = pl.traits.load_written_examples("evil", "judging")
        >>> read = pl.finetuning.read_signal(pl.load_model(), "evil", examples)  # doctest: +SKIP
    """
    encoded = encode_answers(model, examples, against)
    ends = torch.zeros(len(encoded), model.cfg.n_layers, 3, model.cfg.d_model)
    for index, one in pool_ends(model, encoded):
        ends[index] = one.cpu()
    info = describe_model(model)
    source = {
        "source": f"written answers, overt against {against}",
        "examples": hash_json([asdict(e) for e in examples]),
    }
    answers = {
        position: ActivationPairs(
            trait, info, ends[0::2, :, at].clone(), ends[1::2, :, at].clone(), tuple(range(len(examples))), source
        )
        for at, position in enumerate(ANSWER_POSITIONS, start=1)
    }
    return SignalActivations(ends[1::2, :, 0].clone(), answers)


@checked
@dataclass(frozen=True, eq=False)
class SignalReading(Record):
    """How well a trait is read from one model's activations, and how far that model has moved from its base.

    Args:
        trait: The trait's name.
        text: By position of an answer and by reader (``first vector``, ``fresh vector``, ``probe``), how well answers
            with the trait are told from those without, at each layer.
        cosine: By position, the fresh vector's cosine with the first one, at each layer.
        moved: By position (``last_prompt`` too) and reader, how far the model has moved from its base at each question,
            in lengths of the reader's own vector; empty for a model that was compared with none.
    """

    trait: str
    text: dict[str, dict[str, Separation]]
    cosine: dict[str, tuple[Interval, ...]]
    moved: dict[str, dict[str, Float[Tensor, "layer question"]]]

    def find_move(self, reader: str, layer: int, position: str = "last_prompt") -> Interval:
        """Return how far the model has moved along a reader's direction, with its interval over questions.

        Args:
            reader: ``first vector``, ``fresh vector`` or ``probe``.
            layer: Zero-based block index.
            position: ``last_prompt``, ``response_mean`` or ``last_response``.

        Raises:
            InvalidArgumentError: A model that was compared with none, or an unknown reader or position.
            LayerOutOfRangeError: The model has no such layer.
        """
        if not self.moved:
            raise InvalidArgumentError.of("base", "have been given to measure_signal", None)
        if position not in self.moved:
            raise InvalidArgumentError.of("position", f"be one of {list(self.moved)}", position)
        if reader not in self.moved[position]:
            raise InvalidArgumentError.of("reader", f"be one of {list(self.moved[position])}", reader)
        by_question = self.moved[position][reader]
        return bootstrap_mean(by_question[check_layer(layer, len(by_question))])


@checked
def measure_signal(
    read: SignalActivations, vector: PersonaVector, base: SignalActivations | None = None, *, n_folds: int = 5
) -> SignalReading:
    r"""Say at every layer and position how well a trait is read, and how far a model has moved along what reads it.

    Three readers: the vector that was there first; a fresh one, the mean difference of the answers as this model reads
    them; and a logistic probe, fitted on the same. The last two are found on four fifths of the questions and tried on
    the rest, in turn. With :math:`u` a reader's unit direction and :math:`g` its length, the vector's own or the
    distance of the two kinds of answers along it, the model has moved at question :math:`q` by

    .. math:: m(q) = \bigl(h(q) - h^\text{base}(q)\bigr) \cdot u / g

    at the last token of its prompt and over its ordinary answer: 1 is what a coefficient of 1 adds. Along whatever
    reads the trait from responses, as at a prompt's last token there is no answer to tell apart yet.

    Args:
        read: What the model makes of answers that nothing was trained on.
        vector: The vector that was there first, made from other answers.
        base: What the model before training makes of the same; None measures no movement.
        n_folds: Parts of the questions; every fifth is in the first, and so on.

    Raises:
        InvalidArgumentError: Fewer folds than two or more than questions, a vector of another trait or without a
            direction at some layer, or a base that read other answers.
        ModelMismatchError: A vector of another model, or a base that is none of this model's.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 5 and appendix J, for the loss that hides a signal.

    Example:
        >>> before = pl.finetuning.read_signal(base, "evil", examples)  # doctest: +SKIP
        >>> after = pl.finetuning.read_signal(tuned, "evil", examples)  # doctest: +SKIP
        >>> found = pl.finetuning.measure_signal(after, vector, before)  # doctest: +SKIP
        >>> found.find_move("fresh vector", 15)  # doctest: +SKIP
    """
    n = len(read.prompts)
    if not 2 <= n_folds <= n:
        raise InvalidArgumentError.of("n_folds", f"be in [2, {n}], the questions", n_folds)
    _check_fits(vector, read, base)
    moves = {} if base is None else _subtract(read, base)
    moved = {position: {FIRST: _divide(change, vector.directions)} for position, change in moves.items()}
    text: dict[str, dict[str, Separation]] = {}
    for position, pairs in read.answers.items():
        text[position] = {FIRST: measure_separation(vector.directions, pairs)}
        # What is read from responses is looked for at the prompt's end too, as a monitor does.
        own = [at for at in moves if at == position or (at, position) == ("last_prompt", "response_mean")]
        for reader, estimator in ((FRESH, MeanDifference()), (PROBE, LogisticProbe())):
            sides, along = _read_apart(pairs, estimator, {at: moves[at] for at in own}, n_folds)
            text[position][reader] = separate_pairs(sides[0], sides[1], pairs)
            for at, values in along.items():
                moved[at][reader] = values
    cosine = {position: _compare_fresh(pairs, vector.directions) for position, pairs in read.answers.items()}
    return SignalReading(vector.trait, text, cosine, moved)


def _check_fits(vector: PersonaVector, read: SignalActivations, base: SignalActivations | None) -> None:
    known = {one for one in (read.model.fingerprint, read.model.base_fingerprint) if one is not None}
    if vector.model.fingerprint not in known:
        raise ModelMismatchError.of(
            "vector", f"come from the model or its base, {sorted(known)}", vector.model.fingerprint
        )
    if vector.trait != (trait := read.answers["response_mean"].trait):
        raise InvalidArgumentError.of("vector", f"be of the trait that was read, {trait!r}", vector.trait)
    if not bool((vector.directions.isfinite() & vector.directions.any(dim=-1, keepdim=True)).all()):
        absent = [layer for layer, one in enumerate(vector.directions) if not (one.isfinite().all() and one.any())]
        raise InvalidArgumentError.of("vector", "have a direction at every layer", f"none at {absent}")
    if base is None:
        return
    if base.model.fingerprint not in known:
        raise ModelMismatchError.of("base", f"be the model or its base, {sorted(known)}", base.model.fingerprint)
    for position, pairs in read.answers.items():
        other = base.answers[position]
        if (other.questions, other.provenance) != (pairs.questions, pairs.provenance):
            raise InvalidArgumentError.of("base", "have read the same answers", other.provenance)


def _subtract(read: SignalActivations, base: SignalActivations) -> dict[str, Float[Tensor, "question layer d_model"]]:
    before = base.list_unmoved()
    return {position: after - before[position] for position, after in read.list_unmoved().items()}


def _divide(
    change: Float[Tensor, "question layer d_model"], directions: Float[Tensor, "layer d_model"]
) -> Float[Tensor, "layer question"]:
    """Return how many times each layer's direction is in a change."""
    along: Tensor = (change * normalize(directions)).sum(dim=-1) / directions.norm(dim=-1)
    return along.T


def _read_apart(
    pairs: ActivationPairs,
    estimator: Estimator,
    moves: Mapping[str, Float[Tensor, "question layer d_model"]],
    n_folds: int,
) -> tuple[Float[Tensor, "2 layer pair"], dict[str, Float[Tensor, "layer question"]]]:
    """Score both sides, and changes, of each question by a classifier that was found on the other folds' questions."""
    folds = torch.arange(len(pairs)) % n_folds
    sides = torch.zeros(2, pairs.model.n_layers, len(pairs))
    along = {at: torch.zeros(pairs.model.n_layers, len(pairs)) for at in moves}
    for layer in range(pairs.model.n_layers):
        positive, negative = pairs.positive[:, layer], pairs.negative[:, layer]
        for fold in range(n_folds):
            held = folds == fold
            found = fit_classifier(positive[~held], negative[~held], estimator, layer)
            sides[0, layer, held], sides[1, layer, held] = found.score(positive[held]), found.score(negative[held])
            for at, change in moves.items():
                along[at][layer, held] = change[held, layer] @ found.unit / found.gap
    return sides, along


def _compare_fresh(pairs: ActivationPairs, directions: Float[Tensor, "layer d_model"]) -> tuple[Interval, ...]:
    """Return each layer's cosine of the mean difference with a direction, questions being resampled."""
    n = len(pairs)
    differences = (pairs.positive - pairs.negative).double().transpose(0, 1)
    units = normalize(directions.double())
    layers = zip(differences, units, strict=True)
    return tuple(
        fisher_interval(bootstrap(_weigh_cosine(one.numpy(), unit.numpy()), (n,), _N_RESAMPLES, 0.95, 0), n)
        for one, unit in layers
    )


def _weigh_cosine(differences: ndarray, unit: ndarray) -> Callable[[ndarray], ndarray]:
    """Make the function that maps counts ``"resample question"`` to the cosine of their sum with a unit vector."""
    gram, along = differences @ differences.T, differences @ unit

    def compute(counts: ndarray) -> ndarray:
        lengths = np.sqrt(np.maximum(((counts @ gram) * counts).sum(axis=1), 0.0))
        return np.where(lengths > 0, counts @ along / np.where(lengths > 0, lengths, 1.0), np.nan)

    return compute
