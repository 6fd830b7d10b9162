"""Activations of paired answers: what every estimator of a direction starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.activations import pool_residual_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.models.text.chat import Message, encode_conversation, warn_of_controls
from persona_lens.models.text.spans import Part
from persona_lens.traits.written import Kind, WrittenExample
from persona_lens.vectors.written_contrast import list_answers


@checked
@dataclass(frozen=True, eq=False)
class ActivationPairs:
    """Mean activations of pairs of answers to one question, one with a trait and one without.

    In memory: ``2 * pair * layer * d_model`` float32, 28 MB for 200 pairs of the embedded model.

    Args:
        trait: The trait's name.
        model: The model that read or said them.
        positive: Response means of the answers with the trait.
        negative: Of those without, in the same order.
        questions: A number for each pair's question; pairs of one question are not independent.
        provenance: Where the answers come from.

    Raises:
        InvalidArgumentError: Fewer than two pairs, shapes that do not fit the model, or a number that is not finite.
    """

    trait: str
    model: ModelInfo
    positive: Float[Tensor, "pair layer d_model"]
    negative: Float[Tensor, "pair layer d_model"]
    questions: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_pairs(
            self.positive, self.negative, self.questions, (self.model.n_layers, self.model.d_model), "layer, d_model"
        )

    def take(self, chosen: Sequence[int]) -> ActivationPairs:
        """Return some of the pairs, such as a half or a bootstrap draw; one may be taken more than once."""
        rows = torch.tensor(list(chosen), dtype=torch.long)
        if len(rows) == 0 or not bool(((rows >= 0) & (rows < len(self))).all()):
            raise InvalidArgumentError.of("chosen", f"hold numbers of pairs, in [0, {len(self)})", list(chosen))
        questions = tuple(self.questions[row] for row in rows.tolist())
        return replace(self, positive=self.positive[rows], negative=self.negative[rows], questions=questions)

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        n = len(set(self.questions))
        return f"ActivationPairs({self.trait!r}, {len(self)} pairs of {n} questions, model={self.model.name!r})"


def check_pairs(
    positive: Tensor, negative: Tensor, questions: Sequence[int], shape: tuple[int, ...], axes: str
) -> None:
    """Check that both sides hold two finite values or more, each of a shape whose axes have these names.

    Raises:
        InvalidArgumentError: Fewer than two pairs, shapes that do not fit, or a number that is not finite.
    """
    if len(questions) < 2:
        raise InvalidArgumentError.of("questions", "number at least 2 pairs", questions)
    expected = (len(questions), *shape)
    for name, values in (("positive", positive), ("negative", negative)):
        if tuple(values.shape) != expected or values.numel() == 0:
            raise InvalidArgumentError.of(
                name, f"have shape (pair, {axes}) = {expected}, none of them 0", tuple(values.shape)
            )
        if not bool(torch.isfinite(values).all()):
            raise InvalidArgumentError.of(name, "be finite", "NaN or infinity")


@checked
def read_pairs(
    model: HookedModel, trait: str, examples: Sequence[WrittenExample], *, against: Kind = "opposite"
) -> ActivationPairs:
    """Read written answers to the same questions, and keep each one's mean activations at every layer.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait's name.
        examples: At least two: ``load_written_examples(trait, "training")``.
        against: What the overt answers are compared with.

    Raises:
        InvalidArgumentError: Fewer than two examples, one without such an answer, or overt answers against
            themselves.
        ContextLengthError: An answer that is longer than the model's context.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> examples = pl.traits.load_written_examples("evil", "training")
        >>> pairs = pl.vectors.read_pairs(pl.load_model(), "evil", examples)  # doctest: +SKIP
    """
    means = read_response_means(model, list_answers(examples, against))
    provenance = {
        "source": f"written answers, overt against {against}",
        "examples": hash_json([asdict(one) for one in examples]),
    }
    return ActivationPairs(
        trait, describe_model(model), means[0::2].clone(), means[1::2].clone(), tuple(range(len(examples))), provenance
    )


@checked
def read_response_means(
    model: HookedModel, conversations: Sequence[Sequence[Message]], *, part: Part = "answer"
) -> Float[Tensor, "text layer d_model"]:
    """Read conversations, and keep the mean activations of each one's last answer at every layer.

    What :class:`persona_lens.vectors.CleanedDifference` needs of ordinary text. In memory:
    ``text * layer * d_model`` float32, 7 MB for 100 texts of the embedded model; no token's activations are kept.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        conversations: Each ends with an answer of the assistant's.
        part: Which part of an answer with a thought is read.

    Raises:
        InvalidArgumentError: No conversation, one that is not a question with its answer, or one without that part.
        ContextLengthError: A conversation that is longer than the model's context.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> conversations = [
        ...     [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.ordinary}]
        ...     for trait in ("empathy", "formality", "humorous")
        ...     for one in pl.traits.load_written_examples(trait, "training")
        ... ]
        >>> ordinary = pl.vectors.read_response_means(pl.load_model(), conversations)  # doctest: +SKIP
    """
    if not conversations:
        raise InvalidArgumentError.of("conversations", "hold at least one", 0)
    check_unsteered(model)
    encoded = [encode_conversation(model.tokenizer, one, n_ctx=model.cfg.n_ctx) for one in conversations]
    warn_of_controls(encoded)
    means = torch.zeros(len(encoded), model.cfg.n_layers, model.cfg.d_model)
    for index, pooled in pool_residual_stream(model, encoded, part=part):
        means[index] = pooled.response_mean.cpu()
    return means


def check_sides(positive: Float[Tensor, "n_pos d_model"], negative: Float[Tensor, "n_neg d_model"]) -> None:
    """Refuse what no direction can be found from: an empty side, another width, a number that is not finite.

    Raises:
        InvalidArgumentError: Names the side.
    """
    for name, side in (("positive", positive), ("negative", negative)):
        if len(side) == 0 or side.shape[1] != positive.shape[1]:
            rule = f"hold at least one row of d_model={positive.shape[1]}, the width of `positive`"
            raise InvalidArgumentError.of(name, rule, tuple(side.shape))
        if not bool(torch.isfinite(side).all()):
            raise InvalidArgumentError.of(name, "be finite", "NaN or infinity")
