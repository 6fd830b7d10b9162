"""Attention heads that tell a trait's answers apart: their outputs read, and the best of them chosen by a probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.activations import pool_heads
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.records import Record
from persona_lens.streams import check_seed
from persona_lens.tensors.directions import mean_difference, normalize
from persona_lens.traits.written import Kind, WrittenExample
from persona_lens.vectors.estimators import Estimator, MeanDifference, describe_estimator
from persona_lens.vectors.pairs import check_pairs
from persona_lens.vectors.written_contrast import encode_answers

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@checked
@dataclass(frozen=True, eq=False)
class HeadPairs:
    """Attention heads' mean outputs in pairs of answers to one question, one with a trait and one without.

    In memory: ``2 * pair * layer * head * d_head`` float32, 5.5 MB for 40 pairs of the embedded model.

    Args:
        trait: The trait's name.
        model: The model that read them.
        positive: Response means of the answers with the trait, at ``hook_z``.
        negative: Of those without, in the same order.
        questions: A number for each pair's question; pairs of one question are not independent.
        provenance: Where the answers come from.

    Raises:
        InvalidArgumentError: Fewer than two pairs, shapes that do not fit, or a number that is not finite.
    """

    trait: str
    model: ModelInfo
    positive: Float[Tensor, "pair layer head d_head"]
    negative: Float[Tensor, "pair layer head d_head"]
    questions: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (self.model.n_layers, *self.positive.shape[2:])
        check_pairs(self.positive, self.negative, self.questions, shape, "layer, head, d_head")

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        n_heads = self.positive.shape[2]
        return f"HeadPairs({self.trait!r}, {len(self)} pairs, {n_heads} heads a layer, model={self.model.name!r})"


@checked
def read_head_pairs(
    model: HookedModel, trait: str, examples: Sequence[WrittenExample], *, against: Kind = "opposite"
) -> HeadPairs:
    """Read written answers to the same questions, and keep each one's mean output of every attention head.

    Means over the response's tokens, as everywhere in this package; the paper takes the last token alone. Pooled while
    the text streams by: beyond one batch only the means are in memory.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait's name.
        examples: At least two: ``load_written_examples(trait, "training")``.
        against: What the overt answers are compared with.

    Raises:
        InvalidArgumentError: Fewer than two examples, one without such an answer, or overt answers against
            themselves.
        ContextLengthError: An answer that is longer than the model's context.
        UnsupportedModelError: A layer without a hook point at its heads' outputs.
        HooksPresentError: The model carries hooks.

    Reference:
        Inference-Time Intervention (arXiv 2306.03341), section 3.1.

    Example:
        >>> import persona_lens as pl
        >>> examples = pl.traits.load_written_examples("evil", "training")
        >>> pairs = pl.vectors.read_head_pairs(pl.load_model(), "evil", examples)  # doctest: +SKIP
    """
    conversations = encode_answers(model, examples, against)
    means = torch.zeros(len(conversations), model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    for index, pooled in pool_heads(model, conversations):
        means[index] = pooled.cpu()
    provenance = {
        "source": f"written answers, overt against {against}",
        "examples": hash_json([asdict(one) for one in examples]),
    }
    return HeadPairs(
        trait, describe_model(model), means[0::2].clone(), means[1::2].clone(), tuple(range(len(examples))), provenance
    )


@checked
@dataclass(frozen=True, eq=False)
class HeadChoice(Record):
    """The heads that tell a trait's answers apart best, and a direction and a scale for each.

    Args:
        trait: The trait's name.
        model: The model that it was found in.
        heads: ``(layer, head)``, zero-based, the most accurate first.
        accuracies: Each head's share of held-out answers that its probe tells right; 0.5 is chance. Those of the
            chosen heads flatter them a little, since they are the highest of many.
        directions: Unit directions of the chosen heads, towards the trait.
        sigmas: Standard deviation of the pairs' activations along each, both kinds of answers together.
        n_pairs: Pairs that it was found from.
        n_questions: Their questions.
        folds: Parts that accuracies were held out in, each question in one.
        seed: Of the parts.
        estimator: How the directions were found.
        provenance: Where the answers come from.

    Raises:
        InvalidArgumentError: No heads, heads that are not on the map of accuracies, or numbers of directions or
            sigmas other than that of the heads.
    """

    trait: str
    model: ModelInfo
    heads: tuple[tuple[int, int], ...]
    accuracies: Float[Tensor, "layer head"]
    directions: Float[Tensor, "chosen d_head"]
    sigmas: Float[Tensor, " chosen"]
    n_pairs: int
    n_questions: int
    folds: int
    seed: int
    estimator: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_layers, n_heads = self.accuracies.shape
        fit = [0 <= layer < n_layers and 0 <= head < n_heads for layer, head in self.heads]
        if not fit or not all(fit) or len(set(self.heads)) != len(fit):
            rule = f"name heads of {n_layers} layers of {n_heads}, at least one and none twice"
            raise InvalidArgumentError.of("heads", rule, self.heads)
        for name in ("directions", "sigmas"):
            if len(getattr(self, name)) != len(self.heads):
                raise InvalidArgumentError.of(name, f"number {len(self.heads)}, one a head", len(getattr(self, name)))

    def plot(self) -> Figure:
        """Draw every head's accuracy over layers and heads, the chosen ones ringed; returns a plotly Figure."""
        from persona_lens.plots.heads import plot_heads  # plotly is imported only when drawing

        return plot_heads(self)


@checked
def choose_heads(
    pairs: HeadPairs, n_heads: int, *, estimator: Estimator = MeanDifference(), folds: int = 5, seed: int = 0
) -> HeadChoice:
    r"""Choose the heads whose outputs tell a trait's answers apart best, by a probe's accuracy on questions held out.

    A logistic probe on each head's standardised output is fitted on some questions and tried on the others, until each
    question has been held out once. For the chosen heads, the estimator then finds a direction from all pairs;
    :math:`\sigma` is the standard deviation of the activations' coordinates along it:

    .. math:: \sigma_l^h = \operatorname{std}\bigl(\{\bar z_l^h(y) \cdot \theta_l^h\}\bigr), \quad |\theta_l^h| = 1

    Takes a few milliseconds a head and fold; no model is run.

    Args:
        pairs: From :func:`read_head_pairs`; at least as many questions as folds.
        n_heads: How many to choose, of all layers together; the paper takes 48 of 1,024.
        estimator: Finds each direction: the mean difference, as the paper prefers, or another such as a probe's weight.
        folds: Parts to hold out, one after the other.
        seed: Of the parts.

    Returns:
        The choice, for :func:`persona_lens.interventions.shift_heads`.

    Raises:
        InvalidArgumentError: More heads than the model has, fewer than two folds or more than questions, a seed below
            0, or a chosen head for which no direction is found or along which nothing varies.

    Reference:
        Inference-Time Intervention (arXiv 2306.03341), sections 3.1 and 3.2.

    Example:
        >>> import persona_lens as pl
        >>> choice = pl.vectors.choose_heads(pairs, 24)  # doctest: +SKIP
        >>> choice.heads[0], choice.accuracies.max()  # doctest: +SKIP
    """
    check_seed(seed)
    n_questions = len(set(pairs.questions))
    _, n_layers, n_all = pairs.positive.shape[:3]
    if not 1 <= n_heads <= n_layers * n_all:
        raise InvalidArgumentError.of("n_heads", f"be in [1, {n_layers * n_all}]", n_heads, "The model has no more.")
    if not 2 <= folds <= n_questions:
        raise InvalidArgumentError.of("folds", f"be in [2, {n_questions}], the number of questions", folds)
    accuracies = measure_accuracies(pairs, folds, seed)
    # Stable: of equal heads the earlier one, whatever the sort.
    order = torch.sort(accuracies.flatten(), descending=True, stable=True).indices[:n_heads].tolist()
    heads = tuple(divmod(at, n_all) for at in order)
    directions, sigmas = zip(*(_find_direction(pairs, layer, head, estimator) for layer, head in heads), strict=True)
    return HeadChoice(
        trait=pairs.trait,
        model=pairs.model,
        heads=heads,
        accuracies=accuracies,
        directions=torch.stack(directions),
        sigmas=torch.stack(sigmas),
        n_pairs=len(pairs),
        n_questions=n_questions,
        folds=folds,
        seed=seed,
        estimator=describe_estimator(estimator),
        provenance=pairs.provenance,
    )


def measure_accuracies(pairs: HeadPairs, folds: int, seed: int) -> Float[Tensor, "layer head"]:
    """Return each head's share of answers that a logistic probe, fitted on other questions, tells right."""
    both = torch.cat([pairs.positive, pairs.negative]).double().numpy()
    labels = np.repeat([1, 0], len(pairs))
    questions = np.tile(np.array(pairs.questions), 2)
    splits = list(GroupKFold(folds, shuffle=True, random_state=seed).split(both, labels, questions))
    right = torch.zeros(both.shape[1:3])
    for layer, head in np.ndindex(*both.shape[1:3]):
        outputs = both[:, layer, head]
        for fitted, held_out in splits:
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            told = probe.fit(outputs[fitted], labels[fitted]).predict(outputs[held_out])
            right[layer, head] += int((told == labels[held_out]).sum())
    return right / len(labels)


def _find_direction(
    pairs: HeadPairs, layer: int, head: int, estimator: Estimator
) -> tuple[Float[Tensor, " d_head"], Float[Tensor, ""]]:
    """Return a head's unit direction, towards the trait, and the standard deviation of the activations along it."""
    positive, negative = pairs.positive[:, layer, head], pairs.negative[:, layer, head]
    found = estimator.estimate(positive, negative, layer)
    if not bool(torch.isfinite(found).all()) or not bool(found.any()):
        rule = f"find a finite direction with a length above zero at layer {layer}, head {head}"
        raise InvalidArgumentError.of("estimator", rule, type(estimator).__name__)
    unit = normalize(found.float())
    if float(mean_difference(positive, negative) @ unit) < 0:
        unit = -unit
    sigma = (torch.cat([positive, negative]) @ unit).std(correction=0)
    if float(sigma) == 0:
        rule = f"vary along the direction at layer {layer}, head {head}"
        raise InvalidArgumentError.of("pairs", rule, "the same activation in every answer")
    return unit, sigma
