"""Which layer, which coefficient? Steer at each, score the responses, set them against random directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.evaluation.conditions import Condition, ConditionScores, score_conditions
from persona_lens.judges.default import default_judge
from persona_lens.judges.judgement import Judge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import Intervention
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.hooks.sites import resolve_layers
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.records import Record, format_table
from persona_lens.run import Run
from persona_lens.statistics import Interval
from persona_lens.statistics.crossed import mean_over_directions_interval
from persona_lens.statistics.missing import mean_interval
from persona_lens.storage import collect_versions
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.tensors.operations import Add
from persona_lens.texts import check_texts
from persona_lens.traits.trait import Trait
from persona_lens.vectors.persona_vector import PersonaVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Fraction of the questions to which a coherent setting may have no scored answer.
_MOST_SILENT = 0.2


@checked
@dataclass(frozen=True)
class RandomNull:
    """Random directions of the vector's norm, that a vector has to beat.

    Args:
        directions: How many, at least two: what they do differs, so they are units of the null's intervals.
        layers: At which layers; None takes every third of those that are swept.
        questions: On the first how many of the questions; None takes all.

    Raises:
        InvalidArgumentError: Fewer than two directions, or no question.
    """

    directions: int = 2
    layers: int | Sequence[int] | str | None = None
    questions: int | None = None

    def __post_init__(self) -> None:
        if self.directions < 2:
            raise InvalidArgumentError.of("directions", "be at least 2", self.directions)
        if self.questions is not None and self.questions < 1:
            raise InvalidArgumentError.of("questions", "be at least 1, or None for all", self.questions)


@checked
@dataclass(frozen=True)
class LayerChoice(Record):
    """A layer and coefficient picked from a sweep.

    Args:
        rule: How it was picked.
        layer: Zero-based block index (the paper's layer is one higher).
        coefficient: Multiplies the raw vector.
        score: Trait score on the sweep's questions. It is the largest of many, so it flatters: confirm it on other
            questions with :func:`confirm_choice`.
        coherence: Coherence there.
    """

    rule: str
    layer: int
    coefficient: float
    score: Interval
    coherence: Interval


@checked
@dataclass(frozen=True, eq=False, repr=False)
class SweepResult(Record):
    """Trait score and coherence for every layer × coefficient.

    Args:
        trait: The trait's name.
        model: The model.
        judge: The judge's name.
        layers: Zero-based block indices.
        coefficients: Multiples of the raw vector.
        questions: Questions asked; intervals are bootstrapped over them.
        scores: Trait scores 0 to 100, averaged over rollouts; NaN where the judge gave none.
        coherences: Coherence 0 to 100, likewise.
        responses: One response text for each layer, coefficient and question.
        baseline_scores: Scores without steering.
        baseline_coherences: Coherence without steering.
        null_layers: Layers at which random directions of the vector's norm were tried.
        null_scores: Scores under random directions, of all questions or of the first few.
        null_coherences: Coherence under random directions.
        n_unscored: Responses without a score.
        provenance: Seed, settings and library versions.
    """

    trait: str
    model: ModelInfo
    judge: str
    layers: tuple[int, ...]
    coefficients: tuple[float, ...]
    questions: tuple[str, ...]
    scores: Float[Tensor, "layer coefficient question"]
    coherences: Float[Tensor, "layer coefficient question"]
    responses: tuple[tuple[tuple[str, ...], ...], ...]
    baseline_scores: Float[Tensor, " question"]
    baseline_coherences: Float[Tensor, " question"]
    null_layers: tuple[int, ...]
    null_scores: Float[Tensor, "direction null_layer coefficient asked"]
    null_coherences: Float[Tensor, "direction null_layer coefficient asked"]
    n_unscored: int
    provenance: dict[str, Any]

    def score_interval(self, layer: int, coefficient: float) -> Interval:
        """Return the mean score at a layer and coefficient with its bootstrap interval over questions."""
        return mean_interval(self.scores[self._index(layer, coefficient)])

    def coherence_interval(self, layer: int, coefficient: float) -> Interval:
        """Return the mean coherence at a layer and coefficient with its bootstrap interval over questions."""
        return mean_interval(self.coherences[self._index(layer, coefficient)])

    def null_interval(self, coefficient: float) -> Interval:
        """Return the mean score under random directions, over all their layers.

        The interval holds for other directions and layers as well as for other questions.

        Raises:
            InvalidArgumentError: A coefficient that was not swept.
        """
        if coefficient not in self.coefficients:
            raise InvalidArgumentError.of("coefficient", f"be one of {self.coefficients}", coefficient)
        column = self.null_scores[:, :, self.coefficients.index(coefficient)]
        return mean_over_directions_interval(column.flatten(end_dim=1))

    def choose_by_score(self) -> LayerChoice:
        """Choose as the paper does: the layer and coefficient with the highest trait score.

        Reference:
            Persona Vectors (arXiv 2507.21509), appendix B.4.
        """
        choice = self._choose(torch.ones(len(self.layers), len(self.coefficients), dtype=torch.bool), "highest score")
        assert choice is not None
        return choice

    def choose_coherent(self, min_coherence: float = 50.0) -> LayerChoice | None:
        """Choose the highest trait score among settings that are surely coherent; None if none is.

        Surely: the whole 95 % interval of the mean coherence lies at or above the floor. With the mean alone, the
        choice among many settings would favour one whose coherence was overestimated. A setting under which the model
        says nothing to more than a fifth of the questions is not coherent, whatever it says to the others.
        """
        rows = [
            [
                mean_interval(cell).low >= min_coherence and bool(cell.isnan().float().mean() <= _MOST_SILENT)
                for cell in row
            ]
            for row in self.coherences
        ]
        return self._choose(torch.tensor(rows), f"highest score with coherence surely ≥ {min_coherence:g}")

    def _choose(self, allowed: Tensor, rule: str) -> LayerChoice | None:
        means = self.scores.nanmean(dim=-1).nan_to_num(-1.0).masked_fill(~allowed, float("-inf"))
        if not bool(allowed.any()):
            return None
        best = int(means.argmax())
        layer = self.layers[best // len(self.coefficients)]
        coefficient = self.coefficients[best % len(self.coefficients)]
        return LayerChoice(
            rule,
            layer,
            coefficient,
            self.score_interval(layer, coefficient),
            self.coherence_interval(layer, coefficient),
        )

    def _index(self, layer: int, coefficient: float) -> tuple[int, int]:
        if layer not in self.layers:
            raise InvalidArgumentError.of("layer", f"be one that was swept, {self.layers}", layer)
        if coefficient not in self.coefficients:
            raise InvalidArgumentError.of("coefficient", f"be one that was swept, {self.coefficients}", coefficient)
        return self.layers.index(layer), self.coefficients.index(coefficient)

    def plot(self) -> Figure:
        """Draw score and coherence over layers; returns a plotly Figure."""
        from persona_lens.plots.sweep import plot_sweep  # plotly is imported only when drawing

        return plot_sweep(self)

    def __repr__(self) -> str:
        best = self.choose_by_score()
        coherent = self.choose_coherent()
        kept = "none" if coherent is None else f"layer {coherent.layer} × {coherent.coefficient:g}: {coherent.score}"
        return (
            f"SweepResult({self.trait!r} on {self.model.name!r}, {len(self.layers)} layers × "
            f"{len(self.coefficients)} coefficients × {len(self.questions)} questions, unsteered score "
            f"{mean_interval(self.baseline_scores)}, best layer {best.layer} × {best.coefficient:g}: {best.score}, "
            f"coherent best {kept})"
        )

    def _repr_html_(self) -> str:
        scores, coherences = self.scores.nanmean(dim=-1), self.coherences.nanmean(dim=-1)
        rows = [
            (f"layer {layer}", *(f"{s:.0f} ({c:.0f})" for s, c in zip(scores[i], coherences[i], strict=True)))
            for i, layer in enumerate(self.layers)
        ]
        caption = f"{self.trait}: mean trait score (coherence) on {self.model.name}"
        return format_table(caption, rows, ("", *(f"× {c:g}" for c in self.coefficients)))


@checked
def sweep_layers(
    model: HookedModel,
    trait: Trait,
    vector: PersonaVector,
    *,
    coefficients: Sequence[float] = (1.0, 2.0, 4.0),
    layers: int | Sequence[int] | str = "all",
    questions: Sequence[str] | None = None,
    judge: Judge | None = None,
    null: RandomNull = RandomNull(),
    sampling: Sampling = Sampling(max_new_tokens=32),
    run: Run = Run(),
) -> SweepResult:
    """Steer at each layer with each coefficient, and score what the model then says.

    Every layer, coefficient and random direction is a :class:`Condition`: all see the same random numbers, so
    differences between them are differences of steering.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait; its evaluation questions are asked by default.
        vector: Steered with, raw: ``h + coefficient * vector`` at the last prompt token and every generated one.
        coefficients: Multiples of the raw vector.
        layers: Zero-based block indices, or ``"all"``.
        questions: Questions to ask. Keep some of the evaluation questions back for :func:`confirm_choice`.
        judge: Scores the responses; None takes the :func:`persona_lens.judges.default_judge`.
        null: Random directions to compare with.
        sampling: How responses are drawn; its seed is that of the random directions too.
        run: Keeps finished shards and shows progress.

    Returns:
        Scores, coherence, null and baseline; see :meth:`SweepResult.choose_by_score` and
        :meth:`SweepResult.choose_coherent`.

    Raises:
        LayerOutOfRangeError: A layer that the model does not have.
        ModelMismatchError: A vector of another model.
        HooksPresentError: The model carries hooks.
        InvalidArgumentError: An empty list, or a value out of range.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.2 and appendix B.4.

    Example:
        >>> import persona_lens as pl
        >>> sweep = pl.sweep_layers(model, trait, vector, coefficients=(1.0, 2.0))  # doctest: +SKIP
        >>> sweep.choose_coherent()  # doctest: +SKIP
    """
    vector.check_model(model)
    check_unsteered(model)
    swept = resolve_layers(layers, model.cfg.n_layers)
    nulled = swept[1::3] or swept if null.layers is None else resolve_layers(null.layers, model.cfg.n_layers)
    questions = check_texts("questions", trait.evaluation_questions if questions is None else questions)
    coefficients = tuple(float(c) for c in coefficients)
    _check_sweep(coefficients)
    judge = judge or default_judge(model, trait, run)
    randoms = sample_random_directions(vector.norms, model.cfg.d_model, null.directions, sampling.seed)

    def score(conditions: Sequence[Condition], asked: Sequence[str]) -> ConditionScores:
        return score_conditions(model, judge, conditions, asked, sampling=sampling, stream=(Stream.SWEEP,), run=run)

    steered = [shift_at(layer, vector.direction(layer), c) for layer in swept for c in coefficients]
    found = score([Condition(), *steered], questions)
    asked = questions[: null.questions]
    random = score([shift_at(at, one[at], c) for one in randoms for at in nulled for c in coefficients], asked)
    scores, coherences = found.by_question, found.coherence_by_question
    shape = (len(swept), len(coefficients), len(questions))
    null_shape = (null.directions, len(nulled), len(coefficients), len(asked))
    texts = iter(found.responses[1:])
    return SweepResult(
        trait=trait.name,
        model=describe_model(model),
        judge=judge.name,
        layers=swept,
        coefficients=coefficients,
        questions=questions,
        scores=scores[1:].reshape(shape),
        coherences=coherences[1:].reshape(shape),
        responses=tuple(tuple(tuple(one for one, *_ in next(texts)) for _ in coefficients) for _ in swept),
        baseline_scores=scores[0],
        baseline_coherences=coherences[0],
        null_layers=nulled,
        null_scores=random.by_question.reshape(null_shape),
        null_coherences=random.coherence_by_question.reshape(null_shape),
        n_unscored=found.n_unscored + random.n_unscored,
        provenance={
            "seed": sampling.seed,
            "rollouts": sampling.rollouts,
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "positions": sampling.positions,
            "versions": collect_versions(),
        },
    )


def shift_at(layer: int, direction: Float[Tensor, " d_model"], coefficient: float) -> Condition:
    """Return the condition under which a multiple of a direction is added at one layer."""
    return Condition(Intervention.of(layer, Add(direction, coefficient)))


def _check_sweep(coefficients: Sequence[float]) -> None:
    rules = (
        ("coefficients", "hold at least one number", coefficients, len(coefficients) > 0),
        ("coefficients", "be finite", coefficients, all(map(math.isfinite, coefficients))),
        ("coefficients", "differ from each other", coefficients, len(set(coefficients)) == len(coefficients)),
    )
    for name, rule, got, holds in rules:
        if not holds:
            raise InvalidArgumentError.of(name, rule, got)
