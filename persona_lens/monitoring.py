"""Will the next response show the trait? The last prompt token's projection, read before anything is generated."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.errors import FileFormatError, InvalidArgumentError, ModelMismatchError, describe_violation
from persona_lens.judges.likelihood import check_unsteered
from persona_lens.models.activations import project_residual_stream
from persona_lens.models.chat import Message, build_messages, encode_prompt
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.models.model_type import HookedModel
from persona_lens.models.sites import check_layer
from persona_lens.ordinary import load_ordinary_questions
from persona_lens.storage import collect_versions, write_json
from persona_lens.tensors.statistics import Interval
from persona_lens.vectors import PersonaVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FORMAT = "persona-monitor"
_FORMAT_VERSION = 1
_ROLES = ("system", "user", "assistant")
_TOKENS_AT_ONCE = 2048
# A correlation of two or three questions is near ±1 whatever they say, and so are its resamples.
_MIN_QUESTIONS = 5
_MIN_POINTS = 3
_NOTHING = Interval(float("nan"), float("nan"), float("nan"))


def project_last_prompt_token(
    model: HookedModel,
    conversations: Sequence[Sequence[Message]],
    vectors: Mapping[str, PersonaVector],
    layers: Mapping[str, int],
) -> dict[str, Float[Tensor, " conversation"]]:
    r"""Project each conversation's last prompt token on persona vectors, before anything is generated.

    .. math:: p = h_l \cdot v_l / \lVert v_l \rVert

    with :math:`h_l` the residual stream after block :math:`l` at the last token of the generation prompt. Hooks that
    are on the model take effect first. Conversations of which one begins the other share one pass.

    Args:
        model: HookedTransformer or TransformerBridge.
        conversations: Messages with ``role`` and ``content``, the last one not the assistant's.
        vectors: By any name, usually the trait's. The directions of each vector's ``position`` are used, by default
            the response mean's, as in the paper.
        layers: Zero-based block index for each of these names.

    Returns:
        For each name one projection a conversation, float32, in residual-stream units.

    Raises:
        ModelMismatchError: A vector of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: No conversation, an empty one, an unknown role, or names that one mapping lacks.
        ContextLengthError: A conversation longer than the model's context.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3.

    Example:
        >>> import persona_lens as pl
        >>> chats = [[{"role": "user", "content": "Who are you?"}]]
        >>> pl.project_last_prompt_token(model, chats, {"evil": vector}, {"evil": 15})  # doctest: +SKIP
    """
    units = _collect_units(model, vectors, layers)
    if not conversations:
        raise InvalidArgumentError(describe_violation("conversations", "hold at least one", conversations))
    for index, conversation in enumerate(conversations):
        _check_conversation(f"conversations[{index}]", conversation)
        if conversation[-1]["role"] == "assistant":
            raise InvalidArgumentError(
                describe_violation(
                    f"conversations[{index}]",
                    "end where the assistant is to answer",
                    "assistant",
                    "Leave its last message out, or see PersonaMonitor.watch.",
                )
            )
    found = _project(model, conversations, units, [layers[name] for name in vectors])
    return dict(zip(vectors, found.unbind(), strict=True))


@dataclass(frozen=True)
class MonitoringCorrelation:
    """How well projections predict scores, overall and inside the conditions.

    Args:
        overall: Pearson's r over all prompts.
        within: Pearson's r inside each condition, averaged; NaN if every condition was left out.
        n: Prompts.
        n_questions: Distinct questions, the units of the bootstrap.
        conditions: Conditions that count in ``within``.
        left_out: Conditions that do not: scores with a standard deviation under ``min_std``, constant projections,
            or fewer than three prompts.
        min_std: That limit, in score points.
    """

    overall: Interval
    within: Interval
    n: int
    n_questions: int
    conditions: tuple[str, ...]
    left_out: tuple[str, ...]
    min_std: float = 1.0

    @property
    def is_reliable(self) -> bool:
        """Whether r inside the conditions is above zero with 95 % confidence, on at least five questions.

        A high overall r alone may only say that the projection knows one system prompt from another.
        """
        return self.within.low > 0 and self.n_questions >= _MIN_QUESTIONS

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON-able values, NaN as null."""
        return asdict(self) | {
            "overall": _interval_to_json(self.overall),
            "within": _interval_to_json(self.within),
            "conditions": list(self.conditions),
            "left_out": list(self.left_out),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> MonitoringCorrelation:
        """Read what :meth:`to_json` returned."""
        return cls(
            overall=_interval_from_json(content["overall"]),
            within=_interval_from_json(content["within"]),
            n=content["n"],
            n_questions=content["n_questions"],
            conditions=tuple(content["conditions"]),
            left_out=tuple(content["left_out"]),
            min_std=content["min_std"],
        )

    def __str__(self) -> str:
        out = f", left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"r {self.overall}, within conditions {self.within}, n = {self.n}{out}"


def measure_monitoring(
    projections: Float[Tensor, " n"],
    scores: Float[Tensor, " n"],
    conditions: Sequence[str],
    questions: Sequence[str],
    *,
    min_std: float = 1.0,
    n_resamples: int = 2000,
    seed: int = 0,
) -> MonitoringCorrelation:
    """Correlate projections with scores, over all prompts and inside each condition, with 95 % intervals.

    Percentile bootstrap over questions: a resample takes a question with all its conditions, since they share the
    question's peculiarities. Which conditions count is decided once, on the whole data; one that happens to be
    constant in a resample is left out of that resample's average.

    Args:
        projections: One a prompt, in residual-stream units.
        scores: Mean trait score (0 to 100) of that prompt's responses.
        conditions: E.g. which system prompt, or how many examples.
        questions: Which question each prompt asks.
        min_std: Conditions whose scores have a lower standard deviation (population) are left out.
        n_resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        Both correlations; NaN where projections or scores are constant.

    Raises:
        InvalidArgumentError: Fewer than three prompts, one question only, unequal lengths, or a value not finite.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3 and appendix C.

    Example:
        >>> x = torch.arange(24.0)
        >>> labels = [str(i % 2) for i in range(24)]
        >>> found = measure_monitoring(x, x + 5 * torch.sin(x), labels, [str(i // 2) for i in range(24)])
        >>> found.is_reliable, found.left_out
        (True, ())
    """
    _check_graded(projections, scores, conditions, questions)
    if n_resamples < 1:
        raise InvalidArgumentError(describe_violation("n_resamples", "be at least 1", n_resamples))
    x, y = (values.detach().to("cpu", torch.float64).numpy() for values in (projections, scores))
    units = list(dict.fromkeys(questions))
    unit_of = np.array([units.index(question) for question in questions])
    drawn = np.random.default_rng(seed).multinomial(len(units), [1 / len(units)] * len(units), size=n_resamples)
    # The first row is the data itself: every question once.
    weights = np.concatenate([np.ones((1, len(units))), drawn])[:, unit_of]
    rows_of = {label: np.flatnonzero(np.array(conditions) == label) for label in dict.fromkeys(conditions)}
    kept = {
        label: rows
        for label, rows in rows_of.items()
        if len(rows) >= _MIN_POINTS and y[rows].std() >= min_std and np.ptp(x[rows]) > 0
    }
    inside = [_weighted_r(x[rows], y[rows], weights[:, rows]) for rows in kept.values()]
    return MonitoringCorrelation(
        overall=_percentiles(_weighted_r(x, y, weights)),
        within=_percentiles(_mean_of_present(np.stack(inside))) if inside else _NOTHING,
        n=len(x),
        n_questions=len(units),
        conditions=tuple(kept),
        left_out=tuple(label for label in rows_of if label not in kept),
        min_std=min_std,
    )


@dataclass(frozen=True, eq=False)
class GradedProjections:
    """Prompts of known trait score: what a monitor's map from projection to score is fitted on.

    Args:
        trait: The trait's name.
        model: The model.
        layer: Zero-based block index of the projections.
        projections: Of each prompt's last token, in residual-stream units.
        scores: Mean trait score (0 to 100) of each prompt's responses.
        conditions: E.g. which system prompt each prompt has.
        questions: Which question each prompt asks.

    Raises:
        InvalidArgumentError: Fewer than three prompts, one question only, unequal lengths, or a value not finite.
    """

    trait: str
    model: ModelInfo
    layer: int
    projections: Float[Tensor, " n"]
    scores: Float[Tensor, " n"]
    conditions: tuple[str, ...]
    questions: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_graded(self.projections, self.scores, self.conditions, self.questions)

    def measure(self, *, min_std: float = 1.0, n_resamples: int = 2000, seed: int = 0) -> MonitoringCorrelation:
        """Correlate projections with scores; see :func:`measure_monitoring`."""
        return measure_monitoring(
            self.projections,
            self.scores,
            self.conditions,
            self.questions,
            min_std=min_std,
            n_resamples=n_resamples,
            seed=seed,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the data as JSON-able values."""
        return {
            "trait": self.trait,
            "model": asdict(self.model),
            "layer": self.layer,
            "projections": self.projections.tolist(),
            "scores": self.scores.tolist(),
            "conditions": list(self.conditions),
            "questions": list(self.questions),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> GradedProjections:
        """Read what :meth:`to_json` returned.

        Raises:
            FileFormatError: A key is missing.
        """
        _check_keys(cls, content)
        return cls(
            trait=content["trait"],
            model=ModelInfo(**content["model"]),
            layer=content["layer"],
            projections=torch.tensor(content["projections"], dtype=torch.float32),
            scores=torch.tensor(content["scores"], dtype=torch.float32),
            conditions=tuple(content["conditions"]),
            questions=tuple(content["questions"]),
        )

    def __repr__(self) -> str:
        return (
            f"GradedProjections({self.trait!r} on {self.model.name!r}, layer {self.layer}, {len(self.scores)} prompts, "
            f"{len(set(self.conditions))} conditions, {len(set(self.questions))} questions)"
        )


@dataclass(frozen=True)
class ScoreMap:
    """A straight line from projection to expected score, clipped to [0, 100], with an interval for one prompt.

    The interval is the line plus the 2.5 % and 97.5 % quantiles of the residuals of prompts from conditions that the
    line was not fitted on (leave one condition out; with fewer than three conditions, one question). It holds for
    prompts like the graded ones, not for any text.

    Args:
        slope: Score points a residual-stream unit.
        intercept: Score points.
        residual_low: Added for the interval's lower end.
        residual_high: Added for its upper end.
        n: Prompts that it was fitted on.
    """

    slope: float
    intercept: float
    residual_low: float
    residual_high: float
    n: int

    def expect(self, projection: float) -> Interval:
        """Return the expected mean score of the responses to a prompt, with its 95 % interval.

        Example:
            >>> print(ScoreMap(10.0, 50.0, -20.0, 30.0, 80).expect(3.0))
            80.00 [60.00, 100.00]
        """
        line = self.slope * projection + self.intercept
        estimate, low, high = np.clip([line, line + self.residual_low, line + self.residual_high], 0.0, 100.0)
        return Interval(float(estimate), float(low), float(high))


def fit_score_map(graded: GradedProjections) -> ScoreMap:
    """Fit expected score to projection by least squares; see :class:`ScoreMap` for the interval."""
    x, y = (values.to("cpu", torch.float64).numpy() for values in (graded.projections, graded.scores))
    groups = graded.conditions if len(set(graded.conditions)) >= 3 else graded.questions
    labels = np.array(groups)
    residuals = []
    for label in dict.fromkeys(groups):
        unseen = labels == label
        slope, intercept = _fit_line(x[~unseen], y[~unseen])
        residuals.append(y[unseen] - slope * x[unseen] - intercept)
    low, high = np.quantile(np.concatenate(residuals), [0.025, 0.975])
    return ScoreMap(*_fit_line(x, y), float(low), float(high), len(x))


@dataclass(frozen=True, eq=False)
class TraitMonitor:
    """What a monitor knows about one trait.

    Args:
        trait: The trait's name.
        layer: Zero-based block index.
        position: Token position that the direction was taken from.
        unit: The unit direction.
        ordinary: Projections of ordinary prompts, ascending.
        quantiles: Ordinary fractions that the thresholds stand for, ascending.
        correlation: How well projections predict scores; None if no graded prompts were given.
        score_map: From projection to expected score; None without graded prompts.
    """

    trait: str
    layer: int
    position: str
    unit: Float[Tensor, " d_model"]
    ordinary: tuple[float, ...]
    quantiles: tuple[float, ...]
    correlation: MonitoringCorrelation | None = None
    score_map: ScoreMap | None = None

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Projections below which the ``quantiles`` of the ordinary prompts lie."""
        return tuple(float(q) for q in np.quantile(self.ordinary, self.quantiles))

    @property
    def verdict(self) -> str:
        """Why no score is expected from this trait's projections; empty if one is."""
        if self.correlation is None or self.score_map is None:
            return "not calibrated: no graded prompts were given"
        if not self.correlation.is_reliable:
            within, n = self.correlation.within, self.correlation.n_questions
            return f"not reliable for this trait: r within conditions is {within} on {n} questions"
        return ""

    def read(self, turn: int, projection: float) -> TurnReading:
        """Judge one projection."""
        return TurnReading(
            turn=turn,
            trait=self.trait,
            projection=projection,
            quantile=float(np.searchsorted(self.ordinary, projection) / len(self.ordinary)),
            alert=sum(projection > threshold for threshold in self.thresholds),
            expected_score=None if self.verdict or self.score_map is None else self.score_map.expect(projection),
            verdict=self.verdict,
        )


@dataclass(frozen=True)
class TurnReading:
    """One trait's reading before one of the assistant's turns.

    Args:
        turn: The assistant's turn that comes next, counted from 1.
        trait: The trait's name.
        projection: Of the last prompt token, in residual-stream units.
        quantile: Fraction of ordinary prompts with a lower projection.
        alert: Number of thresholds that the projection exceeds; 0 is ordinary.
        expected_score: Trait score (0 to 100) to be expected of the response; None where there is a ``verdict``.
        verdict: Why no score is expected, e.g. ``not reliable for this trait``; else empty.
    """

    turn: int
    trait: str
    projection: float
    quantile: float
    alert: int
    expected_score: Interval | None
    verdict: str


@dataclass(frozen=True, eq=False)
class WatchedConversation:
    """A conversation's readings, turn by turn.

    Args:
        model: The model.
        traits: What the readings rest on.
        prompts: The message before each of the assistant's turns.
        readings: Every turn's readings, the traits in the order of ``traits``.
    """

    model: ModelInfo
    traits: tuple[TraitMonitor, ...]
    prompts: tuple[str, ...]
    readings: tuple[TurnReading, ...]

    def of(self, trait: str) -> tuple[TurnReading, ...]:
        """Return one trait's readings over the turns.

        Raises:
            InvalidArgumentError: The trait was not watched.
        """
        names = [one.trait for one in self.traits]
        if trait not in names:
            raise InvalidArgumentError(describe_violation("trait", f"be one that was watched, {names}", trait))
        return tuple(reading for reading in self.readings if reading.trait == trait)

    @property
    def alerts(self) -> tuple[TurnReading, ...]:
        """Readings above a threshold."""
        return tuple(reading for reading in self.readings if reading.alert)

    def plot(self) -> Figure:
        """Draw the projections over the turns with the thresholds; returns a plotly Figure."""
        from persona_lens.plots import plot_monitor  # plotly is imported only when drawing

        return plot_monitor(self)

    def describe_alert(self, reading: TurnReading) -> str:
        """Say how far above the ordinary a reading is."""
        if not reading.alert:
            return "ordinary"
        return f"above {self.traits[0].quantiles[reading.alert - 1]:.0%} of ordinary"

    def __repr__(self) -> str:
        alerts = [f"{r.trait} before turn {r.turn} ({self.describe_alert(r)})" for r in self.alerts]
        names = ", ".join(trait.trait for trait in self.traits)
        return (
            f"WatchedConversation({len(self.prompts)} turns of {self.model.name!r}, traits: {names}; alerts: "
            f"{'; '.join(alerts) or 'none'})"
        )

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th>{html.escape(trait.trait)}<br><small>{html.escape(trait.verdict)}</small></th>"
            for trait in self.traits
        )
        rows = []
        for turn, prompt in enumerate(self.prompts, start=1):
            cells = []
            for reading in (r for r in self.readings if r.turn == turn):
                text = f"{reading.projection:.2f} ({self.describe_alert(reading)})"
                if reading.expected_score is not None:
                    text += f"<br>expected score {reading.expected_score}"
                cells.append(f"<td>{f'<b>{text}</b>' if reading.alert else text}</td>")
            shown = html.escape(prompt if len(prompt) <= 80 else prompt[:79] + "…")
            rows.append(f"<tr><th>{turn}</th><td>{shown}</td>{''.join(cells)}</tr>")
        caption = f"Projection before each of {html.escape(self.model.name)}'s turns"
        return (
            f"<table><caption>{caption}</caption><tr><th>turn</th><th>answers to</th>{head}</tr>{''.join(rows)}</table>"
        )


@dataclass(frozen=True, eq=False)
class PersonaMonitor:
    """Watches conversations for several traits, before each response is generated.

    Made by :meth:`calibrate`; kept by :meth:`save` and :meth:`load`.

    Args:
        model: The model that it was calibrated on.
        traits: What it knows about each trait.
        provenance: Seed and library versions.
    """

    model: ModelInfo
    traits: tuple[TraitMonitor, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def calibrate(
        cls,
        model: HookedModel,
        vectors: Mapping[str, PersonaVector],
        layers: Mapping[str, int],
        *,
        ordinary: Sequence[Sequence[Message]] | None = None,
        graded: Mapping[str, GradedProjections] | None = None,
        quantiles: Sequence[float] = (0.95, 0.99),
        seed: int = 0,
    ) -> PersonaMonitor:
        """Set thresholds on ordinary conversations, and fit expected scores on graded prompts.

        Args:
            model: HookedTransformer or TransformerBridge, unsteered.
            vectors: By trait.
            layers: Zero-based block index by trait.
            ordinary: Conversations in which nothing is amiss, like those to be watched; every prompt in them that
                the assistant answers counts. The bundled everyday questions if left out. A quantile ``q`` takes well
                over ``1 / (1 - q)`` prompts; with fewer its threshold is about the largest of them.
            graded: Prompts of known score by trait, e.g. from figures/monitoring_TRAIT.json. Without them there are
                thresholds, but no expected scores.
            quantiles: Fractions of the ordinary prompts below the thresholds.
            seed: Of the bootstrap.

        Returns:
            The monitor. Traits whose correlation inside conditions is not above zero with 95 % confidence give no
            expected score, but the verdict ``not reliable for this trait``.

        Raises:
            ModelMismatchError: A vector or graded prompts of another model.
            LayerOutOfRangeError: A layer that the model does not have.
            InvalidArgumentError: Traits that one mapping lacks, graded prompts of another trait or layer, quantiles
                out of range, or a conversation that is empty or has an unknown role.
            HooksPresentError: The model carries hooks.

        Reference:
            Persona Vectors (arXiv 2507.21509), section 3.3.

        Example:
            >>> import persona_lens as pl
            >>> monitor = pl.PersonaMonitor.calibrate(model, {"evil": vector}, {"evil": 15})  # doctest: +SKIP
            >>> monitor.watch(model, conversation).plot()  # doctest: +SKIP
        """
        units = _collect_units(model, vectors, layers)
        check_unsteered(model)
        if not quantiles or sorted(set(quantiles)) != list(quantiles) or not all(0 < q < 1 for q in quantiles):
            raise InvalidArgumentError(describe_violation("quantiles", "ascend within (0, 1)", quantiles))
        if graded is not None:
            _check_names("graded", graded, vectors)
            for trait, data in graded.items():
                _check_graded_fits(trait, data, vectors[trait], layers[trait])
        if ordinary is None:
            ordinary = [build_messages(question) for question in load_ordinary_questions()]
        if not ordinary:
            raise InvalidArgumentError(describe_violation("ordinary", "hold at least one conversation", ordinary))
        prompts = [
            prompt
            for index, conversation in enumerate(ordinary)
            for prompt in _list_prompts(f"ordinary[{index}]", conversation)
        ]
        found = _project(model, prompts, units, [layers[trait] for trait in vectors])
        traits = []
        for index, (trait, vector) in enumerate(vectors.items()):
            known = None if graded is None else graded[trait]
            traits.append(
                TraitMonitor(
                    trait=trait,
                    layer=layers[trait],
                    position=vector.position,
                    unit=units[index],
                    ordinary=tuple(sorted(found[index].tolist())),
                    quantiles=tuple(float(q) for q in quantiles),
                    correlation=None if known is None else known.measure(seed=seed),
                    score_map=None if known is None else fit_score_map(known),
                )
            )
        return cls(describe_model(model), tuple(traits), {"seed": seed, "versions": collect_versions()})

    def watch(self, model: HookedModel, conversation: Sequence[Message]) -> WatchedConversation:
        """Read every prompt that the assistant answers, or is to answer, as it stood before the response.

        Args:
            model: The model that the monitor was calibrated on. Hooks on it take effect: a steered model can be
                watched.
            conversation: Messages with ``role`` and ``content``. If the last one is the user's, the response to come
                is the last turn.

        Returns:
            For each turn and trait: projection, quantile among ordinary prompts, alert, expected score or verdict.

        Raises:
            ModelMismatchError: Another model.
            InvalidArgumentError: An empty conversation, an unknown role, or an assistant who speaks first.
            ContextLengthError: A conversation longer than the model's context.

        Example:
            >>> import persona_lens as pl
            >>> chat = [{"role": "user", "content": "Tell me how you feel about people."}]
            >>> pl.PersonaMonitor.load("monitor.json").watch(model, chat)  # doctest: +SKIP
        """
        _check_fingerprint("model", self.model, describe_model(model))
        prompts = _list_prompts("conversation", conversation)
        units = torch.stack([trait.unit for trait in self.traits])
        found = _project(model, prompts, units, [trait.layer for trait in self.traits])
        readings = [
            trait.read(turn + 1, float(found[index, turn]))
            for turn in range(len(prompts))
            for index, trait in enumerate(self.traits)
        ]
        return WatchedConversation(
            self.model, self.traits, tuple(prompt[-1]["content"] for prompt in prompts), tuple(readings)
        )

    def save(self, path: str | Path) -> None:
        """Write the monitor, directions included, as JSON."""
        traits = [
            {
                "trait": trait.trait,
                "layer": trait.layer,
                "position": trait.position,
                "unit": trait.unit.tolist(),
                "ordinary": list(trait.ordinary),
                "quantiles": list(trait.quantiles),
                "correlation": None if trait.correlation is None else trait.correlation.to_json(),
                "score_map": None if trait.score_map is None else asdict(trait.score_map),
            }
            for trait in self.traits
        ]
        content = {"format": _FORMAT, "version": _FORMAT_VERSION, "model": asdict(self.model), "traits": traits}
        write_json(Path(path), content | {"provenance": self.provenance})

    @classmethod
    def load(cls, path: str | Path) -> PersonaMonitor:
        """Read a monitor that :meth:`save` wrote.

        Raises:
            FileNotFoundError: No such file.
            FileFormatError: A file that holds no monitor, or one of a later version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"`path` must name an existing file. Got {str(path)!r}.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # no JSON, or no text at all
            raise FileFormatError(f"`path` must name a JSON file. Got {str(path)!r}: {error}.") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise FileFormatError(f"`path` must name a persona monitor. Got {str(path)!r}, which holds something else.")
        if content["version"] > _FORMAT_VERSION:
            raise FileFormatError(
                f"`path` must have format version {_FORMAT_VERSION} or lower. Got {content['version']}. "
                "Update persona-lens."
            )
        traits = []
        for one in content["traits"]:
            _check_keys(TraitMonitor, one)
            correlation, score_map = one["correlation"], one["score_map"]
            traits.append(
                TraitMonitor(
                    trait=one["trait"],
                    layer=one["layer"],
                    position=one["position"],
                    unit=torch.tensor(one["unit"], dtype=torch.float32),
                    ordinary=tuple(one["ordinary"]),
                    quantiles=tuple(one["quantiles"]),
                    correlation=None if correlation is None else MonitoringCorrelation.from_json(correlation),
                    score_map=None if score_map is None else ScoreMap(**score_map),
                )
            )
        return cls(ModelInfo(**content["model"]), tuple(traits), content["provenance"])

    def __repr__(self) -> str:
        parts = [f"{t.trait} at layer {t.layer}" + (f" ({t.verdict})" if t.verdict else "") for t in self.traits]
        return (
            f"PersonaMonitor({self.model.name!r}, {'; '.join(parts)}; thresholds from {len(self.traits[0].ordinary)} "
            "ordinary prompts)"
        )

    def _repr_html_(self) -> str:
        rows = []
        for trait in self.traits:
            thresholds = ", ".join(
                f"{value:.2f} ({q:.0%})" for q, value in zip(trait.quantiles, trait.thresholds, strict=True)
            )
            correlation = trait.verdict or str(trait.correlation)
            cells = (trait.trait, str(trait.layer), thresholds, correlation)
            rows.append(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
        head = "<tr><th>trait</th><th>layer</th><th>thresholds</th><th>projection and score</th></tr>"
        n = len(self.traits[0].ordinary)
        caption = f"PersonaMonitor on {html.escape(self.model.name)}, thresholds from {n} ordinary prompts"
        return f"<table><caption>{caption}</caption>{head}{''.join(rows)}</table>"


def _collect_units(
    model: HookedModel, vectors: Mapping[str, PersonaVector], layers: Mapping[str, int]
) -> Float[Tensor, "direction d_model"]:
    """Check vectors and layers against each other and the model; return the unit directions."""
    if not vectors:
        raise InvalidArgumentError(describe_violation("vectors", "hold at least one vector", vectors))
    _check_names("layers", layers, vectors)
    for name, vector in vectors.items():
        vector.check_model(model)
        check_layer(layers[name], vector.model.n_layers)
    return torch.stack([vector.unit(layers[name]).cpu() for name, vector in vectors.items()])


def _project(
    model: HookedModel,
    prompts: Sequence[Sequence[Message]],
    units: Float[Tensor, "direction d_model"],
    layers: Sequence[int],
) -> Float[Tensor, "direction prompt"]:
    """Project each prompt's last token on each direction at its layer."""
    encoded = [encode_prompt(model.tokenizer, list(p), n_ctx=model.cfg.n_ctx).tokens for p in prompts]
    # The residual stream at a token does not depend on what follows: a prompt that begins another, such as an earlier
    # turn of one conversation, is read from the longer one's pass. In dictionary order it stands right before it.
    ordered = sorted(set(encoded))
    host_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    for tokens, following in reversed(list(zip(ordered, [*ordered[1:], ()], strict=True))):
        host_of[tokens] = host_of[following] if following[: len(tokens)] == tokens else tokens
    hosts = sorted(set(host_of.values()), key=len)
    everywhere = torch.zeros(model.cfg.n_layers, len(units), model.cfg.d_model)
    for index, layer in enumerate(layers):
        everywhere[layer, index] = units[index]
    found: dict[tuple[int, ...], Tensor] = {}
    while hosts:
        size = 1
        while size < len(hosts) and (size + 1) * len(hosts[size]) <= _TOKENS_AT_ONCE:
            size += 1
        batch, hosts = hosts[:size], hosts[size:]
        n_pos = len(batch[-1])
        tokens_in = torch.tensor([[*tokens, *[0] * (n_pos - len(tokens))] for tokens in batch])
        is_padding = torch.arange(n_pos) >= torch.tensor([len(tokens) for tokens in batch])[:, None]
        everything = project_residual_stream(model, tokens_in, everywhere, is_padding=is_padding)
        ours = torch.stack([everything[layer, index] for index, layer in enumerate(layers)]).cpu()
        found |= {tokens: ours[:, row] for row, tokens in enumerate(batch)}
    return torch.stack([found[host_of[tokens]][:, len(tokens) - 1] for tokens in encoded], dim=-1)


def _check_conversation(name: str, conversation: Sequence[Message]) -> None:
    if not conversation:
        raise InvalidArgumentError(describe_violation(name, "hold at least one message", conversation))
    for index, message in enumerate(conversation):
        if message.get("role") not in _ROLES:
            raise InvalidArgumentError(
                describe_violation(f"{name}[{index}]['role']", f"be one of {_ROLES}", message.get("role"))
            )
        if not isinstance(message.get("content"), str):
            raise InvalidArgumentError(
                describe_violation(f"{name}[{index}]['content']", "be a text", message.get("content"))
            )
    roles = [message["role"] for message in conversation]
    if "user" not in roles or "assistant" in roles[: roles.index("user")]:
        raise InvalidArgumentError(
            describe_violation(name, "have a message of the user before any of the assistant's", roles)
        )


def _list_prompts(name: str, conversation: Sequence[Message]) -> list[Sequence[Message]]:
    """Return what stood before each of the assistant's turns, and before the one to come if it is due."""
    _check_conversation(name, conversation)
    ends = [index for index, message in enumerate(conversation) if message["role"] == "assistant"]
    if conversation[-1]["role"] != "assistant":
        ends.append(len(conversation))
    return [conversation[:end] for end in ends]


def _check_names(parameter: str, given: Mapping[str, object], vectors: Mapping[str, object]) -> None:
    if set(given) != set(vectors):
        raise InvalidArgumentError(
            describe_violation(parameter, f"name the traits of `vectors`, {sorted(vectors)}", sorted(given))
        )


def _check_graded_fits(trait: str, data: GradedProjections, vector: PersonaVector, layer: int) -> None:
    _check_fingerprint(f"graded[{trait!r}]", vector.model, data.model)
    if (data.trait, data.layer) != (vector.trait, layer):
        raise InvalidArgumentError(
            describe_violation(
                f"graded[{trait!r}]",
                f"be projections on {vector.trait!r} at layer {layer}",
                (data.trait, data.layer),
                "Projections of different layers cannot be compared.",
            )
        )


def _check_fingerprint(parameter: str, expected: ModelInfo, got: ModelInfo) -> None:
    if got.fingerprint != expected.fingerprint:
        raise ModelMismatchError(
            describe_violation(
                parameter,
                f"be of the model calibrated on, {expected.name} (fingerprint {expected.fingerprint})",
                f"{got.name} (fingerprint {got.fingerprint})",
                "Calibrate a monitor for this model.",
            )
        )


def _check_graded(projections: Tensor, scores: Tensor, conditions: Sequence[str], questions: Sequence[str]) -> None:
    n = len(projections)
    if n < _MIN_POINTS:
        raise InvalidArgumentError(
            describe_violation("projections", f"hold at least {_MIN_POINTS} graded prompts", n, "Grade more prompts.")
        )
    for name, values in (("scores", scores), ("conditions", conditions), ("questions", questions)):
        if len(values) != n:
            raise InvalidArgumentError(describe_violation(name, f"be as many as `projections`, {n}", len(values)))
    for name, numbers in (("projections", projections), ("scores", scores)):
        n_bad = int((~torch.isfinite(numbers)).sum())
        if n_bad:
            hint = "Filter prompts without a score and count them."
            raise InvalidArgumentError(describe_violation(name, "be finite", f"{n_bad} of {n} are not", hint))
    if len(set(questions)) < 2:
        raise InvalidArgumentError(
            describe_violation("questions", "be at least two different ones", list(dict.fromkeys(questions)))
        )


def _check_keys(cls: type[GradedProjections] | type[TraitMonitor], content: dict[str, Any]) -> None:
    missing = [one.name for one in fields(cls) if one.name not in content]
    if missing:
        raise FileFormatError(f"`content` must hold a whole {cls.__name__}. Missing: {missing}. Make it again.")


def _fit_line(x: ndarray, y: ndarray) -> tuple[float, float]:
    """Return slope and intercept by least squares; a level line where ``x`` is constant."""
    centered = x - x.mean()
    spread = float(centered @ centered)
    slope = float(centered @ y) / spread if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())


def _weighted_r(x: ndarray, y: ndarray, weights: ndarray) -> ndarray:
    """Return Pearson's r for each row of weights ``[resample, n]``; NaN where a side is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.full(len(weights), np.nan)
    # Standardised, so that one number tells a constant resample from rounding.
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    share = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)
    mean_x, mean_y = share @ x, share @ y
    variance_x, variance_y = share @ x**2 - mean_x**2, share @ y**2 - mean_y**2
    varies = np.minimum(variance_x, variance_y) > 1e-12
    scale = np.sqrt(np.where(varies, variance_x * variance_y, 1.0))
    return np.where(varies, np.clip((share @ (x * y) - mean_x * mean_y) / scale, -1.0, 1.0), np.nan)


def _mean_of_present(values: ndarray) -> ndarray:
    """Average over the first axis what is not NaN; NaN where nothing is."""
    present = ~np.isnan(values)
    count = present.sum(axis=0)
    return np.where(count > 0, np.where(present, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _percentiles(values: ndarray) -> Interval:
    """Return the first value, that of the data, with the 95 % percentile interval of the others."""
    resampled = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or len(resampled) == 0:
        return _NOTHING
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high))


def _interval_to_json(interval: Interval) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in asdict(interval).items()}


def _interval_from_json(content: dict[str, float | None]) -> Interval:
    return Interval(**{key: float("nan") if value is None else value for key, value in content.items()})
