"""How far fine-tuning has moved a model along a persona vector, before it says a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.models.engine.activations import project_residual_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.text.chat import build_messages, encode_prompt
from persona_lens.models.text.padding import pad_right
from persona_lens.records import Record
from persona_lens.statistics import Interval, bootstrap_mean
from persona_lens.texts import check_texts
from persona_lens.vectors.persona_vector import PersonaVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_ROWS_AT_ONCE = 16


@checked
@dataclass(frozen=True, eq=False)
class FinetuningShift(Record):
    """The shift along a persona vector at every layer.

    Args:
        trait: The vector's trait.
        by_question: Fine-tuned less base projection of each question's last prompt token, in residual-stream units.
    """

    trait: str
    by_question: Float[Tensor, "layer question"]

    @property
    def mean(self) -> Float[Tensor, " layer"]:
        """The shift: its mean over questions, at each layer."""
        return self.by_question.mean(dim=-1)

    def interval(self, layer: int) -> Interval:
        """Return the shift at a layer with its 95 % bootstrap interval over questions.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
        """
        return bootstrap_mean(self.by_question[check_layer(layer, len(self.by_question))])

    @property
    def has_interval(self) -> bool:
        """Whether there are questions enough, and finite numbers, for an interval."""
        return self.by_question.shape[-1] > 1 and bool(self.by_question.isfinite().all())

    def plot(self) -> Figure:
        """Draw the shift over layers with its interval; returns a plotly Figure."""
        from persona_lens.plots.shift import plot_shift  # plotly is imported only when drawing

        return plot_shift(self)

    def _list_values(self, show_text: Callable[[str], str]) -> Iterator[tuple[str, str]]:
        yield from super()._list_values(show_text)
        middle = len(self.by_question) // 2  # no layer is chosen by how much is seen there
        values = self.by_question[middle]
        yield f"mean_at_layer_{middle}", str(self.interval(middle)) if self.has_interval else f"{values.mean():.2f}"
        yield "questions", str(len(values))


@checked
def measure_shift(
    base: HookedModel, finetuned: HookedModel, vector: PersonaVector, questions: Sequence[str]
) -> FinetuningShift:
    r"""Measure the fine-tuning shift along a persona vector, at every layer.

    .. math:: s_l = \operatorname{mean}_q \left(h_l^\text{fine-tuned}(q) - h_l^\text{base}(q)\right)
       \cdot v_l / \lVert v_l \rVert

    with :math:`h_l(q)` the residual stream at the last token of the prompt that asks question :math:`q`. Hooks on
    either model take effect.

    Args:
        base: The model that the vector was extracted from.
        finetuned: The same after fine-tuning, e.g. ``load_model(name, adapter=folder)``.
        vector: The vector.
        questions: What is asked: the trait's evaluation questions.

    Raises:
        ModelMismatchError: A vector of another base, or a model fine-tuned from another base.
        InvalidArgumentError: No questions.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 4.2.

    Example:
        >>> import persona_lens as pl
        >>> shift = pl.measure_shift(base, tuned, vector, trait.evaluation_questions)  # doctest: +SKIP
        >>> shift.interval(14)  # doctest: +SKIP
    """
    for model in (base, finetuned):
        _check_projectable(model, vector, questions)
    before, after = (project_prompts(model, vector.units[:, None], questions)[0] for model in (base, finetuned))
    return FinetuningShift(vector.trait, after - before)


def project_questions(
    model: HookedModel, vector: PersonaVector, questions: Sequence[str]
) -> Float[Tensor, "layer question"]:
    """Project the last token of each question's prompt onto a persona vector, at every layer.

    The shift is the difference of two models' projections: those of a base model that is compared with many need to be
    taken once only.

    Args:
        model: The model that the vector was extracted from, or one fine-tuned from it; hooks take effect.
        vector: The vector.
        questions: At least one.

    Returns:
        Projections in residual-stream units.

    Raises:
        ModelMismatchError: A vector of another base.
        InvalidArgumentError: No questions.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 4.2.

    Example:
        >>> from persona_lens.finetuning.shift import FinetuningShift, project_questions
        >>> before = project_questions(base, vector, questions)  # doctest: +SKIP
        >>> FinetuningShift("evil", project_questions(tuned, vector, questions) - before)  # doctest: +SKIP
    """
    _check_projectable(model, vector, questions)
    return project_prompts(model, vector.units[:, None], questions)[0]


def _check_projectable(model: HookedModel, vector: PersonaVector, questions: Sequence[str]) -> None:
    check_texts("questions", questions)
    vector.check_model(model)


def project_prompts(
    model: HookedModel, units: Float[Tensor, "layer trait d_model"], questions: Sequence[str]
) -> Float[Tensor, "trait layer question"]:
    """Return where each question's last prompt token lies along unit vectors."""
    prompts = [encode_prompt(model.tokenizer, build_messages(one), n_ctx=model.cfg.n_ctx).tokens for one in questions]
    found = []
    for at in range(0, len(prompts), _ROWS_AT_ONCE):
        rows = pad_right(prompts[at : at + _ROWS_AT_ONCE])
        projected = project_residual_stream(model, rows.tokens, units, is_padding=rows.is_padding).cpu()
        found.append(rows.take_last(rearrange(projected, "layer trait row pos -> row pos trait layer")))
    return rearrange(torch.cat(found), "question trait layer -> trait layer question")
