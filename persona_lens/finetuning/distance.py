"""Distance in persona space: how far a model has moved from an accepted one, along many traits' vectors at once."""

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
from persona_lens.finetuning.shift import project_prompts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.records import Record
from persona_lens.statistics import Interval, bootstrap_mean
from persona_lens.statistics.bootstrap import Resampled, bootstrap, t_interval
from persona_lens.texts import check_texts
from persona_lens.traits.everyday import load_ordinary_questions
from persona_lens.vectors.persona_vector import PersonaVector

_N_RESAMPLES, _LEVEL = 2000, 0.95


@checked
@dataclass(frozen=True, eq=False)
class PersonaDistance(Record):
    """How far a model is from a control model in persona space.

    Args:
        traits: The vectors' traits: the axes.
        questions: What both were asked.
        by_question: Model less control, the projection of each question's last prompt token on each unit vector, in
            residual-stream units.

    Raises:
        InvalidArgumentError: Projections of another number of traits or questions.
    """

    traits: tuple[str, ...]
    questions: tuple[str, ...]
    by_question: Float[Tensor, "trait layer question"]

    def __post_init__(self) -> None:
        shape = (len(self.traits), self.by_question.shape[1], len(self.questions))
        if tuple(self.by_question.shape) != shape or 0 in shape:
            rule = "hold a projection for each trait, layer and question, at least one of each"
            raise InvalidArgumentError.of("by_question", rule, tuple(self.by_question.shape))

    def shift(self, layer: int) -> Float[Tensor, " trait"]:
        """Return the mean shift along each trait's vector at a layer.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
        """
        return self.by_question[:, self._check(layer)].mean(dim=-1)

    def intervals(self, layer: int) -> dict[str, Interval]:
        """Return the shift along each trait's vector at a layer, with its 95 % bootstrap interval over questions.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
        """
        own = self.by_question[:, self._check(layer)]
        return {trait: bootstrap_mean(own[index]) for index, trait in enumerate(self.traits)}

    def length(self, layer: int) -> float:
        r"""Return the length of the mean shift, :math:`\sqrt{\sum_t s_t^2}`, in residual-stream units.

        Vectors that point alike count what they share more than once; noise lengthens it.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
        """
        return float(self.shift(layer).norm())

    def cosine(self, reference: PersonaDistance, layer: int) -> Interval:
        r"""Return the cosine of the mean shift with that of another model, with its interval over questions.

        .. math:: \cos(s, s') = \frac{\sum_t s_t s'_t}{\lVert s \rVert \, \lVert s' \rVert}

        The same questions are drawn for both. With few traits a high cosine says little: of two random shifts along
        :math:`k` axes it spreads by :math:`1 / \sqrt{k}`.

        Args:
            reference: The shift of another model, such as one that is known to have gone wrong.
            layer: Zero-based block index.

        Returns:
            Missing where one of the two has not moved.

        Raises:
            InvalidArgumentError: It is of other traits or questions.
            LayerOutOfRangeError: The model has no such layer.
        """
        self._check_alike(reference, "reference")
        own, others = (one.by_question[:, one._check(layer)].double().numpy() for one in (self, reference))

        def compare(counts: ndarray) -> ndarray:
            a, b = counts @ own.T, counts @ others.T
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            return _divide((a * b).sum(axis=1), lengths)

        return _clip(_resample(compare, own.shape[1]))

    def in_units_of(self, ordinary: Sequence[PersonaDistance], layer: int) -> dict[str, Interval]:
        r"""Return the shift along each trait in units of what ordinary fine-tunings do.

        .. math:: z_t = \frac{s_t}{\sqrt{\operatorname{mean}_o s_{o,t}^2}}

        over the ordinary fine-tunings :math:`o`. Within about two, a shift is no further than theirs. The interval is
        over questions, the same ones for all; the ordinary fine-tunings are taken as they are, so that few of them
        make the unit itself uncertain.

        Args:
            ordinary: The same control model's distance to each of several models that were trained on something
                harmless: other seeds, data and styles.
            layer: Zero-based block index.

        Raises:
            InvalidArgumentError: Fewer than two, or of other traits or questions.
            LayerOutOfRangeError: The model has no such layer.
        """
        if len(ordinary) < 2:
            raise InvalidArgumentError.of("ordinary", "hold at least two fine-tunings", len(ordinary))
        for one in ordinary:
            self._check_alike(one, "ordinary")
        own = self.by_question[:, self._check(layer)].double().numpy()
        others = np.stack([one.by_question[:, one._check(layer)].double().numpy() for one in ordinary])

        def divide(trait: int) -> Interval:
            def scale(counts: ndarray) -> ndarray:
                units = np.sqrt(((counts @ others[:, trait].T) ** 2).mean(axis=1))
                return _divide(counts @ own[trait], units)

            return _resample(scale, own.shape[1])

        return {name: divide(index) for index, name in enumerate(self.traits)}

    def _check(self, layer: int) -> int:
        return check_layer(layer, self.by_question.shape[1])

    def _check_alike(self, other: PersonaDistance, parameter: str) -> None:
        mine = (self.traits, self.questions, self.by_question.shape)
        if mine != (other.traits, other.questions, other.by_question.shape):
            rule = f"be measured on the same questions along the same traits, {', '.join(self.traits)}"
            raise InvalidArgumentError.of(parameter, rule, ", ".join(other.traits))

    def __repr__(self) -> str:
        n_layers, n_questions = self.by_question.shape[1:]
        return f"PersonaDistance({', '.join(self.traits)}; {n_layers} layers, {n_questions} questions)"


def _divide(values: ndarray, lengths: ndarray) -> ndarray:
    """Divide; NaN where there is no length."""
    found: ndarray = np.divide(values, lengths, out=np.full(len(lengths), np.nan), where=lengths > 0)
    return found


def _resample(statistic: Callable[[ndarray], ndarray], n_questions: int) -> Interval:
    found: Resampled = bootstrap(statistic, (n_questions,), _N_RESAMPLES, _LEVEL, 0)
    return t_interval(found, n_questions)


def _clip(found: Interval) -> Interval:
    """Keep a cosine's interval within [-1, 1]."""
    if found.is_missing:
        return found
    low, high = (min(1.0, max(-1.0, end)) for end in (found.low, found.high))
    return Interval(found.estimate, low, high, found.level)


@checked
def measure_distance(
    control: HookedModel, model: HookedModel, vectors: Sequence[PersonaVector], questions: Sequence[str] | None = None
) -> PersonaDistance:
    r"""Measure how far a model is from an accepted one in persona space, at every layer.

    .. math:: s_{t,l} = \operatorname{mean}_q \left(h_l^\text{model}(q) - h_l^\text{control}(q)\right)
       \cdot v_{t,l} / \lVert v_{t,l} \rVert

    with :math:`h_l(q)` the residual stream at the last token of the prompt that asks question :math:`q`: one forward
    pass a question and model for all traits. Hooks on either model take effect.

    Args:
        control: The accepted model: the base, or one fine-tuned from it.
        model: The model in question, of the same base.
        vectors: Persona vectors of the base, one a trait.
        questions: What is asked, two or more; the bundled everyday questions if left out.

    Raises:
        ModelMismatchError: A vector of another base.
        InvalidArgumentError: No vectors, two of one trait, or fewer than two questions.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 4.2, for one trait.

    Example:
        >>> import persona_lens as pl
        >>> distance = pl.finetuning.measure_distance(model, tuned, vectors)  # doctest: +SKIP
        >>> distance.intervals(15)["evil"]  # doctest: +SKIP
    """
    names = tuple(vector.trait for vector in vectors)
    if not names or len(set(names)) < len(names):
        raise InvalidArgumentError.of("vectors", "hold one vector a trait, at least one", names)
    asked = check_texts("questions", load_ordinary_questions() if questions is None else questions, least=2)
    for vector in vectors:
        vector.check_model(control)
        vector.check_model(model)
    units = torch.stack([vector.units for vector in vectors], dim=1)
    before, after = (project_prompts(one, units, asked) for one in (control, model))
    return PersonaDistance(names, tuple(asked), after - before)
