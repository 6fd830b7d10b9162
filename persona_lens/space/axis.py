"""The axis from other characters to the assistant, and how far along it answers lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.resources import as_file, files

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.models.hooks.sites import check_layer
from persona_lens.records import Record, format_table
from persona_lens.space.answers import RoleAnswers
from persona_lens.statistics import Interval, bootstrap_mean
from persona_lens.tensors.directions import cosine
from persona_lens.traits.roles import ASSISTANT
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.persona_vector import ExtractionCounts, PersonaVector


@checked
def find_assistant_axis(answers: RoleAnswers) -> PersonaVector:
    r"""Find the direction from other characters to the assistant, at every layer.

    .. math:: v_l = \bar a_l(\text{assistant}) - \operatorname{mean}_r \bar a_l(r)

    Each role counts the same. The split-half cosine is that between the axes of even and of odd questions.

    Args:
        answers: Of the assistant and of at least two other roles, to at least two questions.

    Returns:
        A vector of the trait ``assistant``, for the response mean: larger is more like the assistant. Its
            ``counts`` are of roles, one pair each.

    Raises:
        InvalidArgumentError: No assistant, or too few other roles.

    Reference:
        The Assistant Axis (arXiv 2601.10387), section 3: the mean of the default assistant less the mean of the roles.

    Example:
        >>> import persona_lens as pl
        >>> axis = pl.space.find_assistant_axis(answers)  # doctest: +SKIP
        >>> ordinary = pl.measure_ordinary_projections(model, axis)  # doctest: +SKIP
        >>> capped = pl.cap(axis, layers=range(20, 25), floor=ordinary.quantile(0.25))  # doctest: +SKIP
    """
    differences = find_differences(answers)
    halves = [differences[start::2].mean(dim=0) for start in (0, 1)]
    characters = answers.characters
    return PersonaVector(
        trait=ASSISTANT,
        model=answers.model,
        by_position={"response_mean": differences.mean(dim=0)},
        counts=ExtractionCounts(pairs=len(characters.roles), kept=len(characters.roles)),
        split_half_cosine={"response_mean": cosine(*halves)},
        provenance={
            "source": "answers of the assistant less the mean over roles",
            "roles": list(characters.roles),
            "questions": list(answers.questions),
            "answers": answers.provenance,
        },
    )


def find_differences(answers: RoleAnswers) -> Float[Tensor, "question layer d_model"]:
    """Return the assistant less the mean over the other roles, for each question."""
    characters = answers.characters
    if len(characters.roles) < 2:
        raise InvalidArgumentError.of("answers", "hold at least two roles beside the assistant", list(answers.roles))
    return answers.assistant - characters.means.mean(dim=0)


@checked
def note_thresholds(
    axis: PersonaVector,
    ordinary: OrdinaryProjections,
    layer: int,
    *,
    percentiles: tuple[float | int, ...] = (1, 5, 25, 50),
) -> PersonaVector:
    """Write on an axis where it is to be read, and how far ordinary answers go along it.

    Args:
        axis: The axis.
        ordinary: Of ``persona_lens.measure_ordinary_projections(model, axis)``.
        layer: Zero-based block index.
        percentiles: Of ordinary response tokens; each becomes a floor for :func:`persona_lens.cap`.

    Returns:
        The axis with ``provenance["layer"]`` and ``provenance["floors"]``: by percentile, a number a layer.

    Raises:
        LayerOutOfRangeError: The model has no such layer.
        InvalidArgumentError: Projections of another vector, or percentiles outside [0, 100].

    Example:
        >>> import persona_lens as pl
        >>> axis = pl.space.note_thresholds(axis, ordinary, layer=15)  # doctest: +SKIP
        >>> axis.provenance["floors"]["5"][15]  # doctest: +SKIP
    """
    ordinary.check_vector(axis)
    layer = axis.check_layer(layer)
    if not percentiles or not all(0 <= one <= 100 for one in percentiles):
        raise InvalidArgumentError.of("percentiles", "be in [0, 100]", percentiles)
    floors = {f"{one:g}": ordinary.quantile(one / 100).tolist() for one in percentiles}
    noted = {"layer": layer, "floors": floors, "ordinary_responses": ordinary.n_responses}
    return replace(axis, provenance=axis.provenance | noted)


@checked
def load_assistant_axis() -> PersonaVector:
    """Load the assistant axis of the embedded model, SmolLM2-135M-Instruct.

    ``experiments/persona_space.py`` found it; ``provenance`` names the layer at which it was read, the roles and
    questions, and, by percentile and layer, how far ordinary answers go along it.

    Example:
        >>> load_assistant_axis().trait
        'assistant'
    """
    with as_file(files("persona_lens") / "data" / "assistant_axis.safetensors") as path:
        return PersonaVector.load(path)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class AxisDistances(Record):
    """How far roles lie from the assistant along the axis: 0 is the assistant, 1 the mean of the axis' other roles.

    Args:
        layer: Zero-based block index.
        roles: Names.
        kinds: Their kinds, as authored.
        distances: With intervals over questions.
        by_question: The same, question by question.
    """

    layer: int
    roles: tuple[str, ...]
    kinds: tuple[str, ...]
    distances: tuple[Interval, ...]
    by_question: Float[Tensor, "role question"]

    def of(self, role: str) -> Interval:
        """Return a role's distance.

        Raises:
            InvalidArgumentError: It was not measured.
        """
        if role not in self.roles:
            raise InvalidArgumentError.of("role", f"be one of {', '.join(self.roles)}", role)
        return self.distances[self.roles.index(role)]

    def __repr__(self) -> str:
        away = sum(one.low > 0 for one in self.distances)
        return f"AxisDistances({len(self.roles)} roles at layer {self.layer}; {away} surely away from the assistant)"

    def _repr_html_(self) -> str:
        rows = zip(self.roles, self.kinds, self.distances, strict=True)
        return format_table(f"Distance from the assistant, layer {self.layer}", rows, ("role", "kind", "distance"))


@checked
def measure_axis_distances(answers: RoleAnswers, layer: int, *, others: RoleAnswers | None = None) -> AxisDistances:
    r"""Measure how far each role moves the model along the axis, by an axis that knows neither role nor question.

    .. math:: d_r(q) = \frac{(\bar a(\text{assistant}, q) - \bar a(r, q)) \cdot u_{-r,-h(q)}}{g_{-r}}

    The axis ``u`` is found on the other half of the questions (even and odd) and without the role itself; ``g`` is how
    far the mean of the other roles lies from the assistant in the question's own half.

    Args:
        answers: Of the assistant and of at least three other roles: the axis is made of these.
        layer: Zero-based block index.
        others: Answers to the same questions, of prompts that are not to be part of the axis; None measures the roles
            of ``answers``.

    Returns:
        A distance a role, without the assistant.

    Raises:
        LayerOutOfRangeError: The model has no such layer.
        InvalidArgumentError: Too few roles or questions, or ``others`` to other questions.
        ModelMismatchError: ``others`` of another model.

    Example:
        >>> import persona_lens as pl
        >>> pl.space.measure_axis_distances(answers, layer=15).of("pirate")  # doctest: +SKIP
    """
    layer = check_layer(layer, answers.model.n_layers)
    measured = answers.characters if others is None else others
    if measured.model != answers.model:
        rule = f"come from the model of `answers`, {answers.model.name}"
        raise ModelMismatchError.of("others", rule, measured.model.name)
    if measured.questions != answers.questions:
        raise InvalidArgumentError.of("others", "answer the same questions", list(measured.questions))
    n = len(answers.questions)
    if n < 4 or len(answers.characters.roles) < 3:
        rule = "hold at least three roles beside the assistant, and four questions"
        raise InvalidArgumentError.of("answers", rule, f"{len(answers.characters.roles)} and {n}")
    assistant = answers.assistant[:, layer].double()
    everyone = {name: answers.means[i, :, layer].double() for i, name in enumerate(answers.roles) if name != ASSISTANT}
    total = torch.stack(list(everyone.values())).sum(dim=0)
    is_even = torch.arange(n) % 2 == 0
    rows = []
    for name, means in zip(measured.roles, measured.means[:, :, layer].double(), strict=True):
        is_in = name in everyone
        mean_of_others = (total - everyone[name]) / (len(everyone) - 1) if is_in else total / len(everyone)
        row = torch.zeros(n, dtype=torch.float64)
        for here in (is_even, ~is_even):
            axis = (assistant - mean_of_others)[~here].mean(dim=0)
            gap = ((assistant - mean_of_others)[here] @ axis).mean()
            if not float(gap) > 0:
                rule, hint = "tell the assistant from the roles in both halves", "Ask more questions."
                raise InvalidArgumentError.of("answers", rule, f"a gap of {float(gap):.3g} at layer {layer}", hint)
            row[here] = ((assistant - means)[here] @ axis) / gap
        rows.append(row)
    by_question = torch.stack(rows)
    return AxisDistances(
        layer=layer,
        roles=measured.roles,
        kinds=measured.kinds,
        distances=tuple(bootstrap_mean(row) for row in by_question),
        by_question=by_question.float(),
    )
