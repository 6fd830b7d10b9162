"""Which layer, which coefficient? Steer at each, score the responses, set them against random directions."""

from __future__ import annotations

import hashlib
import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import FileFormatError, InvalidArgumentError, describe_violation
from persona_lens.judges.judgement import Judge, identify_judge
from persona_lens.judges.likelihood import calibrate_likelihood_judge
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.engine.sampling import SamplingSettings
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.pairs import SiteIntervention, check_unsteered
from persona_lens.models.hooks.sites import resolve_layers
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.progress import ProgressFactory, no_progress
from persona_lens.statistics import Interval, bootstrap_mean, bootstrap_paired_difference
from persona_lens.storage import Shard, ShardStore, collect_versions, load_or_compute, open_part
from persona_lens.streams import Stream
from persona_lens.tensors.directions import sample_random_directions
from persona_lens.tensors.operations import Add
from persona_lens.traits.trait import Trait
from persona_lens.vectors import PersonaVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Configurations sampled and judged between two saves. Fixed, because a shard is computed as one stream: with another
# cut, rows would share other batches.
# Fraction of the questions to which a coherent setting may have no scored answer.
_MOST_SILENT = 0.2
_CONFIGURATIONS_AT_ONCE = 24


@dataclass(frozen=True)
class LayerChoice:
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


@dataclass(frozen=True, eq=False)
class SweepResult:
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
        null_scores: Scores under random directions.
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
    null_scores: Float[Tensor, "direction null_layer coefficient question"]
    null_coherences: Float[Tensor, "direction null_layer coefficient question"]
    n_unscored: int
    provenance: dict[str, Any]

    def score_interval(self, layer: int, coefficient: float) -> Interval:
        """Return the mean score at a layer and coefficient with its bootstrap interval over questions."""
        return _interval(self.scores[self._index(layer, coefficient)])

    def coherence_interval(self, layer: int, coefficient: float) -> Interval:
        """Return the mean coherence at a layer and coefficient with its bootstrap interval over questions."""
        return _interval(self.coherences[self._index(layer, coefficient)])

    def null_interval(self, coefficient: float) -> Interval:
        """Return the mean score under random directions, with the interval over directions × layers."""
        column = self.null_scores[:, :, self.coefficients.index(coefficient)]
        return _interval(column.nanmean(dim=-1).flatten())

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
            [_interval(cell).low >= min_coherence and bool(cell.isnan().float().mean() <= _MOST_SILENT) for cell in row]
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
            raise InvalidArgumentError(describe_violation("layer", f"be one that was swept, {self.layers}", layer))
        if coefficient not in self.coefficients:
            raise InvalidArgumentError(
                describe_violation("coefficient", f"be one that was swept, {self.coefficients}", coefficient)
            )
        return self.layers.index(layer), self.coefficients.index(coefficient)

    def to_json(self) -> dict[str, Any]:
        """Return the whole result as JSON-able values, NaN as null."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["model"] = asdict(self.model)
        return {key: _to_plain(value) for key, value in content.items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> SweepResult:
        """Read what :meth:`to_json` returned.

        Raises:
            FileFormatError: A key is missing.
        """
        missing = [field.name for field in fields(cls) if field.name not in content]
        if missing:
            raise FileFormatError(f"`content` must hold a whole sweep. Missing: {missing}. Run the sweep again.")

        def tensor(key: str) -> Tensor:
            return torch.tensor(_to_nan(content[key]), dtype=torch.float32)

        return cls(
            trait=content["trait"],
            model=ModelInfo(**content["model"]),
            judge=content["judge"],
            layers=tuple(content["layers"]),
            coefficients=tuple(content["coefficients"]),
            questions=tuple(content["questions"]),
            scores=tensor("scores"),
            coherences=tensor("coherences"),
            responses=tuple(tuple(tuple(cell) for cell in row) for row in content["responses"]),
            baseline_scores=tensor("baseline_scores"),
            baseline_coherences=tensor("baseline_coherences"),
            null_layers=tuple(content["null_layers"]),
            null_scores=tensor("null_scores"),
            null_coherences=tensor("null_coherences"),
            n_unscored=content["n_unscored"],
            provenance=content["provenance"],
        )

    def plot(self) -> Figure:
        """Draw score and coherence over layers; returns a plotly Figure."""
        from persona_lens.plots import plot_sweep  # plotly is imported only when drawing

        return plot_sweep(self)

    def __repr__(self) -> str:
        best = self.choose_by_score()
        coherent = self.choose_coherent()
        kept = "none" if coherent is None else f"layer {coherent.layer} × {coherent.coefficient:g}: {coherent.score}"
        return (
            f"SweepResult({self.trait!r} on {self.model.name!r}, {len(self.layers)} layers × "
            f"{len(self.coefficients)} coefficients × {len(self.questions)} questions, unsteered score "
            f"{_interval(self.baseline_scores)}, best layer {best.layer} × {best.coefficient:g}: {best.score}, "
            f"coherent best {kept})"
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>× {c:g}</th>" for c in self.coefficients)
        rows = "".join(
            f"<tr><th>layer {layer}</th>"
            + "".join(
                f"<td>{self.scores[i, j].nanmean():.0f} ({self.coherences[i, j].nanmean():.0f})</td>"
                for j in range(len(self.coefficients))
            )
            + "</tr>"
            for i, layer in enumerate(self.layers)
        )
        caption = f"{html.escape(self.trait)}: mean trait score (coherence) on {html.escape(self.model.name)}"
        return f"<table><caption>{caption}</caption><tr><th></th>{head}</tr>{rows}</table>"


@dataclass(frozen=True)
class Confirmation:
    """A choice of layer and coefficient, measured on questions that it was not made on.

    Args:
        layer: Zero-based block index.
        coefficient: Multiplies the raw vector.
        steered: Trait score when steered.
        baseline: Trait score unsteered.
        random: Trait score under random directions of the same norm.
        rise: Steered less unsteered, paired by question.
        above_random: Steered less random, paired by question.
        coherence: Coherence when steered.
        baseline_coherence: Coherence unsteered.
        random_coherence: Coherence under random directions.
        examples: Question, unsteered response, steered response.
        n_questions: Questions; the intervals are bootstrapped over them.
        n_responses: Responses sampled.
        n_unscored: Responses without a score.
    """

    layer: int
    coefficient: float
    steered: Interval
    baseline: Interval
    random: Interval
    rise: Interval
    above_random: Interval
    coherence: Interval
    baseline_coherence: Interval
    random_coherence: Interval
    examples: tuple[tuple[str, str, str], ...]
    n_questions: int
    n_responses: int
    n_unscored: int

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON-able values."""
        return {key: _to_plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Confirmation:
        """Read what :meth:`to_json` returned."""
        values: dict[str, Any] = {
            key: Interval(**{k: _to_nan(v) for k, v in value.items()}) if isinstance(value, dict) else value
            for key, value in content.items()
        }
        values["examples"] = tuple(tuple(example) for example in values["examples"])
        return cls(**values)

    @property
    def is_clear(self) -> bool:
        """Whether steering lies above random directions with 95 % confidence."""
        return self.above_random.low > 0


@dataclass(frozen=True, eq=False)
class _Configuration:
    """One way of steering: nothing, or a direction times a coefficient at a layer."""

    steering: tuple[tuple[int, Add], ...] = ()

    @property
    def interventions(self) -> tuple[SiteIntervention, ...]:
        """As sampling takes them."""
        return tuple(SiteIntervention(layer, add) for layer, add in self.steering)

    def digest(self) -> str:
        """Return what tells this configuration from others."""
        parts = [(layer, add.coefficient, add.direction.detach().cpu().tolist()) for layer, add in self.steering]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def sweep_layers(
    model: HookedModel,
    trait: Trait,
    vector: PersonaVector,
    *,
    coefficients: Sequence[float] = (1.0, 2.0, 4.0),
    layers: int | Sequence[int] | str = "all",
    questions: Sequence[str] | None = None,
    judge: Judge | None = None,
    rollouts: int = 1,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    random_directions: int = 2,
    null_layers: int | Sequence[int] | str | None = None,
    seed: int = 0,
    batch_size: int = 128,
    store: ShardStore | None = None,
    progress: ProgressFactory = no_progress,
) -> SweepResult:
    """Steer at each layer with each coefficient, and score what the model then says.

    All configurations are one stream of rows, each with its own intervention; every configuration sees the same
    random numbers, so differences between them are differences of steering.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait; its evaluation questions are asked by default.
        vector: Steered with, raw: ``h + coefficient * vector`` at the last prompt token and every generated one.
        coefficients: Multiples of the raw vector.
        layers: Zero-based block indices, or ``"all"``.
        questions: Questions to ask. Keep some of the evaluation questions back for :func:`confirm_choice`.
        judge: Scores the responses; None calibrates a LikelihoodJudge here.
        rollouts: Responses per question and configuration.
        max_new_tokens: Length limit in tokens.
        temperature: Of the sampling; the paper's is 1.
        random_directions: Random directions of the vector's norm, as the null.
        null_layers: Layers for the null; None takes every third of ``layers``.
        seed: Seed of the sampling and of the random directions.
        batch_size: Rows sampled at once.
        store: Keeps finished shards, so that a killed run goes on where it was.
        progress: Makes a progress bar.

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
    nulled = swept[1::3] or swept if null_layers is None else resolve_layers(null_layers, model.cfg.n_layers)
    questions = tuple(trait.evaluation_questions if questions is None else questions)
    coefficients = tuple(float(c) for c in coefficients)
    _check_sweep(questions, coefficients, rollouts, random_directions)
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size)
    if judge is None:
        judge = calibrate_likelihood_judge(
            model, trait, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, batch_size=batch_size
        )
    randoms = sample_random_directions(vector.norms, model.cfg.d_model, max(random_directions, 1), seed)
    configurations = [
        _Configuration(),
        *(_steer(layer, vector.direction(layer), c) for layer in swept for c in coefficients),
        *(
            _steer(layer, directions[layer], c)
            for directions in randoms[:random_directions]
            for layer in nulled
            for c in coefficients
        ),
    ]
    scores, coherences, texts, n_unscored = _run_configurations(
        model, configurations, questions, judge, settings, rollouts, (seed, Stream.SWEEP), store, "sweep", progress
    )
    scores, coherences = scores.nanmean(dim=-1), coherences.nanmean(dim=-1)
    shape = (len(swept), len(coefficients), len(questions))
    null_shape = (random_directions, len(nulled), len(coefficients), len(questions))
    end = 1 + shape[0] * shape[1]
    flat_texts = iter(texts[1:end])
    return SweepResult(
        trait=trait.name,
        model=describe_model(model),
        judge=judge.name,
        layers=swept,
        coefficients=coefficients,
        questions=questions,
        scores=scores[1:end].reshape(shape),
        coherences=coherences[1:end].reshape(shape),
        responses=tuple(tuple(tuple(next(flat_texts)) for _ in coefficients) for _ in swept),
        baseline_scores=scores[0],
        baseline_coherences=coherences[0],
        null_layers=nulled,
        null_scores=scores[end:].reshape(null_shape),
        null_coherences=coherences[end:].reshape(null_shape),
        n_unscored=n_unscored,
        provenance={
            "seed": seed,
            "rollouts": rollouts,
            "max_new_tokens": max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "positions": settings.positions,
            "versions": collect_versions(),
        },
    )


def confirm_choice(
    model: HookedModel,
    vector: PersonaVector,
    choice: LayerChoice,
    *,
    questions: Sequence[str],
    judge: Judge,
    rollouts: int = 4,
    random_directions: int = 4,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 128,
    store: ShardStore | None = None,
    progress: ProgressFactory = no_progress,
) -> Confirmation:
    """Measure a chosen layer and coefficient on fresh questions, against no steering and random directions.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        vector: The vector that was swept.
        choice: From :meth:`SweepResult.choose_coherent` or :meth:`SweepResult.choose_by_score`.
        questions: Questions that were not in the sweep.
        judge: The sweep's judge.
        rollouts: Responses per question: steered, unsteered, and under each random direction.
        random_directions: Random directions of the vector's norm at that layer.
        max_new_tokens: Length limit in tokens.
        temperature: Of the sampling; the paper's is 1.
        seed: Seed of the sampling and of the random directions.
        batch_size: Rows sampled at once.
        store: Keeps finished shards.
        progress: Makes a progress bar.

    Returns:
        Scores, differences and coherence with intervals over questions.

    Raises:
        ModelMismatchError: A vector of another model.
        HooksPresentError: The model carries hooks.
        InvalidArgumentError: No questions, or a value out of range.
    """
    vector.check_model(model)
    check_unsteered(model)
    questions = tuple(questions)
    _check_sweep(questions, (choice.coefficient,), rollouts, random_directions)
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size)
    randoms = sample_random_directions(
        vector.norms, model.cfg.d_model, max(random_directions, 1), seed + Stream.CONFIRMATION
    )
    configurations = [_Configuration(), _steer(choice.layer, vector.direction(choice.layer), choice.coefficient)]
    configurations += [_steer(choice.layer, directions[choice.layer], choice.coefficient) for directions in randoms]
    scores, coherences, texts, n_unscored = _run_configurations(
        model, configurations, questions, judge, settings, rollouts,
        (seed, Stream.CONFIRMATION), store, "confirmation", progress,
    )  # fmt: skip
    by_question = scores.nanmean(dim=-1)
    coherence = coherences.nanmean(dim=-1)
    random_score = by_question[2:].nanmean(dim=0)
    return Confirmation(
        layer=choice.layer,
        coefficient=choice.coefficient,
        steered=_interval(by_question[1]),
        baseline=_interval(by_question[0]),
        random=_interval(random_score),
        rise=_paired(by_question[1], by_question[0]),
        above_random=_paired(by_question[1], random_score),
        coherence=_interval(coherence[1]),
        baseline_coherence=_interval(coherence[0]),
        random_coherence=_interval(coherence[2:].nanmean(dim=0)),
        examples=tuple(zip(questions, texts[0], texts[1], strict=True)),
        n_questions=len(questions),
        n_responses=scores.numel(),
        n_unscored=n_unscored,
    )


def _steer(layer: int, direction: Tensor, coefficient: float) -> _Configuration:
    return _Configuration(((layer, Add(direction, coefficient)),))


def _check_sweep(
    questions: Sequence[str], coefficients: Sequence[float], rollouts: int, random_directions: int
) -> None:
    rules = (
        ("questions", "hold at least one question", questions, len(questions) > 0),
        ("coefficients", "hold at least one number", coefficients, len(coefficients) > 0),
        ("coefficients", "be finite", coefficients, all(abs(c) < float("inf") for c in coefficients)),
        ("coefficients", "differ from each other", coefficients, len(set(coefficients)) == len(coefficients)),
        ("rollouts", "be at least 1", rollouts, rollouts >= 1),
        ("random_directions", "be at least 1", random_directions, random_directions >= 1),
    )
    for name, rule, got, holds in rules:
        if not holds:
            raise InvalidArgumentError(describe_violation(name, rule, got))


def _run_configurations(
    model: HookedModel,
    configurations: Sequence[_Configuration],
    questions: tuple[str, ...],
    judge: Judge,
    settings: SamplingSettings,
    rollouts: int,
    stream: tuple[int, ...],
    store: ShardStore | None,
    label: str,
    progress: ProgressFactory,
) -> tuple[Tensor, Tensor, list[list[str]], int]:
    """Sample and judge every configuration.

    Returns:
        Scores and coherences ``[configuration, question, rollout]`` with NaN for none, the first rollout's texts
        ``[configuration][question]``, and the number of responses without a score.
    """
    # What the shards depend on, so that one store serves several vectors and choices.
    work = {
        "work": label,
        "model": asdict(describe_model(model)),
        "judge": identify_judge(judge),
        "configurations": [configuration.digest() for configuration in configurations],
        "questions": questions,
        "settings": settings.to_json(),
        "rollouts": rollouts,
        "stream": stream,
    }
    part = open_part(store, work)
    shards = []
    with progress(f"{label} (configurations)", len(configurations)) as advance:
        for at in range(0, len(configurations), _CONFIGURATIONS_AT_ONCE):
            chunk = configurations[at : at + _CONFIGURATIONS_AT_ONCE]

            def compute(chunk: Sequence[_Configuration] = chunk) -> Shard:
                return _run_chunk(model, chunk, questions, judge, settings, rollouts, stream)

            shards.append(load_or_compute(part, f"{label}-{at:06d}", compute))
            advance(len(chunk))
    scores = torch.cat([shard.tensors["scores"] for shard in shards])
    coherences = torch.cat([shard.tensors["coherences"] for shard in shards])
    texts = [row for shard in shards for row in shard.records["responses"]]
    return scores, coherences, texts, int(scores.isnan().sum())


def _run_chunk(
    model: HookedModel,
    configurations: Sequence[_Configuration],
    questions: tuple[str, ...],
    judge: Judge,
    settings: SamplingSettings,
    rollouts: int,
    stream: tuple[int, ...],
) -> Shard:
    # The seed leaves the configuration out: all configurations see the same random numbers.
    requests = [
        RolloutRequest(question, (*stream, q, r), interventions=configuration.interventions)
        for configuration in configurations
        for q, question in enumerate(questions)
        for r in range(rollouts)
    ]
    sampled = sample_rollouts(model, requests, settings)
    judged = judge.score([s.request.question for s in sampled], [s.response for s in sampled])
    shape = (len(configurations), len(questions), rollouts)

    def collect(values: list[float | None]) -> Tensor:
        return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float32).reshape(shape)

    texts = [s.response for s in sampled[::rollouts]]
    n = len(questions)
    return Shard(
        {"scores": collect([j.score for j in judged]), "coherences": collect([j.coherence for j in judged])},
        {"responses": [texts[i : i + n] for i in range(0, len(texts), n)]},
    )


def _interval(values: Tensor) -> Interval:
    """Bootstrap the mean of the values that are there; NaN throughout if fewer than two are."""
    present = values[~values.isnan()]
    if len(present) < 2:
        return Interval(float("nan"), float("nan"), float("nan"))
    return bootstrap_mean(present)


def _paired(a: Tensor, b: Tensor) -> Interval:
    both = ~(a.isnan() | b.isnan())
    if int(both.sum()) < 2:
        return Interval(float("nan"), float("nan"), float("nan"))
    return bootstrap_paired_difference(a[both], b[both])


def _to_plain(value: Any) -> Any:
    """Turn tensors, tuples and NaN into lists and None, floats rounded to what an interval can carry."""
    if isinstance(value, Tensor):
        return _to_plain(value.tolist())
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


def _to_nan(value: Any) -> Any:
    """Undo :func:`_to_plain` for nested lists of numbers."""
    if isinstance(value, list):
        return [_to_nan(item) for item in value]
    return float("nan") if value is None else value
