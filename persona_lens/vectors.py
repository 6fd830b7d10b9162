"""PersonaVector: a trait's direction at every layer, and its extraction from contrasting rollouts."""

from __future__ import annotations

import hashlib
import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import (
    FileFormatError,
    InvalidArgumentError,
    ModelMismatchError,
    describe_violation,
)
from persona_lens.judges.judgement import Judge, identify_judge
from persona_lens.judges.likelihood import calibrate_likelihood_judge
from persona_lens.models.hooks import check_unsteered
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.models.model_type import HookedModel
from persona_lens.models.rollouts import Rollout, RolloutRequest, sample_recorded_rollouts
from persona_lens.models.sampling import SamplingSettings
from persona_lens.models.sites import check_layer
from persona_lens.progress import ProgressFactory, no_progress
from persona_lens.storage import (
    Shard,
    ShardStore,
    collect_versions,
    load_or_compute,
    load_shard,
    open_part,
    save_shard,
)
from persona_lens.tensors.directions import cosine, normalize
from persona_lens.traits.trait import Trait

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TokenPosition = Literal["response_mean", "prompt_mean", "last_prompt"]
TOKEN_POSITIONS: tuple[TokenPosition, ...] = ("response_mean", "prompt_mean", "last_prompt")

_FORMAT = "persona-vector"
_FORMAT_VERSION = 1
_EXTRACTION_STREAM = 103
# Rollouts are judged and added up in shards of this many contrasting pairs; then they are forgotten, so memory
# does not grow with their number.
_PAIRS_AT_ONCE = 64


@dataclass(frozen=True)
class ExtractionCounts:
    """What became of the contrasting pairs of rollouts; each dropped pair is counted once, by the first reason.

    Args:
        pairs: Pairs sampled: one positive and one negative rollout of the same question.
        kept: Pairs that the vector rests on.
        dropped_empty: A response without text.
        dropped_unscored: A response that the judge gave no score.
        dropped_positive_score: The positive response scored 50 or less.
        dropped_negative_score: The negative response scored 50 or more.
        dropped_incoherent: A response with coherence under the floor.
    """

    pairs: int = 0
    kept: int = 0
    dropped_empty: int = 0
    dropped_unscored: int = 0
    dropped_positive_score: int = 0
    dropped_negative_score: int = 0
    dropped_incoherent: int = 0

    def __add__(self, other: ExtractionCounts) -> ExtractionCounts:
        return ExtractionCounts(**{name: getattr(self, name) + getattr(other, name) for name in asdict(self)})


@dataclass(frozen=True, eq=False)
class PersonaVector:
    """A trait's raw mean-difference direction at every layer, for three token positions.

    ``vector + other``, ``vector - other`` and ``2.0 * vector`` work between vectors of one model and token position.

    Args:
        trait: The trait's name.
        model: The model that it was extracted from.
        by_position: Raw (unnormalised) float32 directions for each token position.
        position: The token position that :attr:`directions` and :meth:`unit` use; the response mean steers best.
        counts: Pairs kept and dropped.
        split_half_cosine: Cosine between the directions of two halves of the questions, for each position and layer:
            how far the direction depends on which questions were asked.
        provenance: The trait's fingerprint, seed, settings, judge and library versions.

    Raises:
        InvalidArgumentError: A direction with NaN or infinite entries, or shapes that do not fit the model.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2.
    """

    trait: str
    model: ModelInfo
    by_position: dict[str, Float[Tensor, "layer d_model"]]
    position: TokenPosition = "response_mean"
    counts: ExtractionCounts = field(default_factory=ExtractionCounts)
    split_half_cosine: dict[str, Float[Tensor, " layer"]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.position not in self.by_position:
            raise InvalidArgumentError(
                describe_violation("position", f"be one of {sorted(self.by_position)}", self.position)
            )
        expected = (self.model.n_layers, self.model.d_model)
        for name, directions in self.by_position.items():
            if tuple(directions.shape) != expected:
                raise InvalidArgumentError(
                    describe_violation(
                        f"by_position[{name!r}]", f"have shape (layer, d_model) = {expected}", tuple(directions.shape)
                    )
                )
            finite = torch.isfinite(directions).all(dim=-1)
            if not bool(finite.all()):
                raise InvalidArgumentError(
                    describe_violation(
                        f"by_position[{name!r}]",
                        "be finite",
                        f"NaN or infinity at layers {(~finite).nonzero()[:, 0].tolist()}",
                        "Extract the vector again; in float32 if the model overflows in half precision.",
                    )
                )

    @property
    def directions(self) -> Float[Tensor, "layer d_model"]:
        """Raw directions at the chosen token position; a steering coefficient multiplies them."""
        return self.by_position[self.position]

    @property
    def norms(self) -> Float[Tensor, " layer"]:
        """Euclidean norm of each layer's raw direction."""
        return self.directions.norm(dim=-1)

    def direction(self, layer: int) -> Float[Tensor, " d_model"]:
        """Return the raw direction of a layer.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
        """
        return self.directions[check_layer(layer, self.model.n_layers)]

    def unit(self, layer: int) -> Float[Tensor, " d_model"]:
        """Return a layer's direction with norm one, for projections.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
        """
        return normalize(self.direction(layer))

    @property
    def digest(self) -> str:
        """A hash of the directions at the chosen token position: what measurements along them belong to."""
        return hashlib.sha256(self.directions.detach().cpu().float().numpy().tobytes()).hexdigest()[:16]

    def at(self, position: TokenPosition) -> PersonaVector:
        """Return the same vector, using the directions of another token position."""
        return replace(self, position=position)

    def check_model(self, model: HookedModel) -> None:
        """Refuse a model that the vector was not extracted from; a fine-tuned one passes for vectors of its base.

        Raises:
            ModelMismatchError: Another model, or other weights.
        """
        other = describe_model(model)
        if self.model.fingerprint not in (other.fingerprint, other.base_fingerprint):
            raise ModelMismatchError(
                describe_violation(
                    "vector",
                    f"come from the model it is used on, {other.name} ({other.n_layers} layers, d_model "
                    f"{other.d_model}, fingerprint {other.fingerprint})",
                    f"{self.model.name} ({self.model.n_layers} layers, d_model {self.model.d_model}, fingerprint "
                    f"{self.model.fingerprint})",
                    "Extract it from this model with extract_persona_vector(model, trait).",
                )
            )

    def __add__(self, other: PersonaVector) -> PersonaVector:
        return self._combine(other, 1.0, "+")

    def __sub__(self, other: PersonaVector) -> PersonaVector:
        return self._combine(other, -1.0, "-")

    def __mul__(self, factor: float | int) -> PersonaVector:
        if not math.isfinite(factor):
            raise InvalidArgumentError(describe_violation("factor", "be finite", factor))
        scaled = {name: directions * factor for name, directions in self.by_position.items()}
        return replace(self, trait=f"{factor:g} * {self.trait}", by_position=scaled)

    __rmul__ = __mul__

    def __neg__(self) -> PersonaVector:
        return self * -1.0

    def _combine(self, other: object, sign: float, symbol: str) -> PersonaVector:
        if not isinstance(other, PersonaVector):
            raise TypeError(f"`other` must be a PersonaVector. Got {type(other).__name__}.")
        name = f"{self.trait} {symbol} {other.trait}"
        if self.model.fingerprint != other.model.fingerprint:
            raise ModelMismatchError(
                describe_violation("other", f"come from the same model, {self.model.name}", other.model.name)
            )
        if self.position != other.position:
            raise InvalidArgumentError(
                describe_violation("other", f"use the token position {self.position!r}", other.position, "See .at().")
            )
        shared = self.by_position.keys() & other.by_position.keys()
        combined = {
            key: self.by_position[key] + sign * other.by_position[key] for key in self.by_position if key in shared
        }
        return PersonaVector(name, self.model, combined, self.position, provenance={"combined": name})

    def save(self, path: str | Path) -> None:
        """Write the vector as safetensors, its metadata as JSON in the header."""
        tensors = {f"directions.{name}": value for name, value in self.by_position.items()}
        tensors |= {f"split_half_cosine.{name}": value for name, value in self.split_half_cosine.items()}
        records = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "trait": self.trait,
            "position": self.position,
            "model": asdict(self.model),
            "counts": asdict(self.counts),
            "provenance": self.provenance,
        }
        save_shard(Path(path), Shard(tensors, records))

    @classmethod
    def load(cls, path: str | Path) -> PersonaVector:
        """Read a vector that :meth:`save` wrote.

        Raises:
            FileNotFoundError: No such file.
            FileFormatError: A truncated file, or one that holds no persona vector.
            InvalidArgumentError: A vector with NaN in it.
        """
        shard = load_shard(Path(path))
        records = shard.records
        if not isinstance(records, dict) or records.get("format") != _FORMAT:
            raise FileFormatError(f"`path` must name a persona vector. Got {str(path)!r}, which holds something else.")
        if records["version"] > _FORMAT_VERSION:
            raise FileFormatError(
                f"`path` must have format version {_FORMAT_VERSION} or lower. Got {records['version']}. "
                "Update persona-lens."
            )

        def group(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in shard.tensors.items() if k.startswith(prefix)}

        return cls(
            trait=records["trait"],
            model=ModelInfo(**records["model"]),
            by_position=group("directions."),
            position=records["position"],
            counts=ExtractionCounts(**records["counts"]),
            split_half_cosine=group("split_half_cosine."),
            provenance=records["provenance"],
        )

    def plot(self) -> Figure:
        """Draw norm and split-half stability over layers; returns a plotly Figure."""
        from persona_lens.plots import plot_vector  # plotly is imported only when drawing

        return plot_vector(self)

    def __repr__(self) -> str:
        cosines = self.split_half_cosine.get(self.position)
        stability = "" if cosines is None else f", split-half cosine {cosines.median():.2f} (median over layers)"
        return (
            f"PersonaVector({self.trait!r}, {self.position}, {self.model.n_layers} layers × d_model "
            f"{self.model.d_model}, model={self.model.name!r}, kept {self.counts.kept} of {self.counts.pairs} "
            f"pairs{stability})"
        )

    def _repr_html_(self) -> str:
        rows = {"trait": self.trait, "model": self.model.name, "token position": self.position}
        rows["layers × d_model"] = f"{self.model.n_layers} × {self.model.d_model}"
        rows |= {name.replace("_", " "): count for name, count in asdict(self.counts).items() if count}
        cosines = self.split_half_cosine.get(self.position)
        if cosines is not None:
            rows["split-half cosine (median)"] = f"{cosines.median():.2f}"
        cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
        return f"<table><caption>PersonaVector</caption>{cells}</table>"


@dataclass(frozen=True)
class _PairUnit:
    """One contrasting pair to be sampled: a question under both sides of an instruction pair."""

    pair: int
    question: int
    rollout: int


def extract_persona_vector(
    model: HookedModel,
    trait: Trait,
    *,
    judge: Judge | Literal["none"] | None = None,
    rollouts: int = 1,
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 128,
    min_coherence: float = 0.0,
    store: ShardStore | None = None,
    progress: ProgressFactory = no_progress,
) -> PersonaVector:
    r"""Find a trait's direction at every layer from contrasting rollouts.

    .. math:: v_l = \operatorname{mean}_{i \in +} \bar a_l(y_i) - \operatorname{mean}_{i \in -} \bar a_l(y_i)

    Every extraction question is asked under the positive and the negative side of every instruction pair. The
    residual stream is pooled while the responses are sampled; no second pass is made, and memory does not grow with
    their number. A pair stays if its positive response scores above 50 and its negative one below 50.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait.
        judge: Scores the responses; None calibrates a LikelihoodJudge here; ``"none"`` keeps every response.
        rollouts: Responses per question and instruction; the paper's is 10.
        max_new_tokens: Length limit in tokens; the paper's is 1,000.
        temperature: Of the sampling; the paper's is 1.
        seed: Seed of the sampling.
        batch_size: Rows sampled at once.
        min_coherence: Least coherence (0 to 100) of both responses. The paper's code asks 50 of its judge; the
            LikelihoodJudge's coherence is a likelihood under the neutral prompt, which a strong trait lowers by
            itself, so the default asks nothing.
        store: Keeps finished shards, so that a killed run goes on where it was.
        progress: Makes a progress bar.

    Returns:
        The vector, with directions for response mean, prompt mean and last prompt token.

    Raises:
        InvalidArgumentError: ``rollouts`` under 1, or no pair survived the judge.
        HooksPresentError: The model carries hooks.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2 and appendix A.

    Example:
        >>> import persona_lens as pl
        >>> vector = pl.extract_persona_vector(pl.load_model(), pl.load_trait("evil"))  # doctest: +SKIP
    """
    if rollouts < 1:
        raise InvalidArgumentError(describe_violation("rollouts", "be at least 1", rollouts))
    if not 0 <= min_coherence <= 100:
        raise InvalidArgumentError(describe_violation("min_coherence", "be in [0, 100]", min_coherence))
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size)
    check_unsteered(model)
    if judge is None:
        judge = calibrate_likelihood_judge(
            model, trait, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, batch_size=batch_size
        )
    units = [
        _PairUnit(p, q, r)
        for q in range(len(trait.extraction_questions))  # outermost: a judge's work on a question is then shared
        for p in range(len(trait.instruction_pairs))
        for r in range(rollouts)
    ]
    # What the shards depend on, so that one store serves several traits.
    work = {
        "work": "extraction",
        "model": asdict(describe_model(model)),
        "trait": trait.fingerprint,
        "judge": "none" if judge == "none" else identify_judge(judge),
        "settings": settings.to_json(),
        "rollouts": rollouts,
        "min_coherence": min_coherence,
        "seed": seed,
    }
    part = open_part(store, work)
    # [half of the questions, class, position, layer, d_model]; in float64, so that many shards add up exactly enough
    sums = torch.zeros(2, 2, 3, model.cfg.n_layers, model.cfg.d_model, dtype=torch.float64)
    n_kept = torch.zeros(2, dtype=torch.float64)  # pairs kept in each half
    counts = ExtractionCounts()
    with progress("extracting", len(units)) as advance:
        for at in range(0, len(units), _PAIRS_AT_ONCE):
            chunk = units[at : at + _PAIRS_AT_ONCE]
            compute = partial(_extract_chunk, model, trait, chunk, judge, settings, min_coherence, seed)
            shard = load_or_compute(part, f"extraction-{at:06d}", compute)
            sums = sums + shard.tensors["sums"]
            n_kept = n_kept + shard.tensors["n_kept"]
            counts = counts + ExtractionCounts(**shard.records["counts"])
            advance(len(chunk))
    if counts.kept == 0:
        raise InvalidArgumentError(
            describe_violation(
                "judge",
                "keep at least one pair of rollouts",
                asdict(counts),
                f"The model does not show {trait.name!r} under these instructions; reword them, raise `rollouts`, or "
                'pass judge="none" to see the unfiltered direction.',
            )
        )
    total = (sums.sum(dim=0) / counts.kept).float()
    difference = total[0] - total[1]  # [position, layer, d_model]
    split_half: dict[str, Tensor] = {}
    if bool((n_kept > 0).all()):
        halves = ((sums[:, 0] - sums[:, 1]) / n_kept[:, None, None, None]).float()
        split_half |= dict(zip(TOKEN_POSITIONS, cosine(halves[0], halves[1]).unbind(), strict=True))
    return PersonaVector(
        trait=trait.name,
        model=describe_model(model),
        by_position=dict(zip(TOKEN_POSITIONS, difference.unbind(), strict=True)),
        counts=counts,
        split_half_cosine=split_half,
        provenance={
            "trait": trait.fingerprint,
            "seed": seed,
            "rollouts": rollouts,
            "max_new_tokens": max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "min_coherence": min_coherence,
            "judge": "none" if judge == "none" else judge.name,
            "versions": collect_versions(),
        },
    )


def _extract_chunk(
    model: HookedModel,
    trait: Trait,
    units: Sequence[_PairUnit],
    judge: Judge | Literal["none"],
    settings: SamplingSettings,
    min_coherence: float,
    seed: int,
) -> Shard:
    """Sample, judge and add up some contrasting pairs."""
    systems = (trait.positive_system_prompts, trait.negative_system_prompts)
    # Side by side, so that rows of one prompt are neighbours and share its computation.
    requests = [
        RolloutRequest(
            trait.extraction_questions[unit.question],
            (seed, _EXTRACTION_STREAM, side, unit.pair, unit.question, unit.rollout),
            systems[side][unit.pair],
        )
        for unit in units
        for side in (0, 1)
    ]
    sampled = sample_recorded_rollouts(model, requests, settings)
    reasons = _sort_out(sampled[0::2], sampled[1::2], judge, min_coherence)
    width = (3, model.cfg.n_layers, model.cfg.d_model)
    sums = torch.zeros(2, 2, *width)
    n_kept = torch.zeros(2)
    for i, (unit, reason) in enumerate(zip(units, reasons, strict=True)):
        if reason == "kept":
            half = unit.question % 2
            n_kept[half] += 1
            for side in (0, 1):
                means = sampled[2 * i + side].residuals
                assert means is not None  # a kept pair has two responses that are not empty
                sums[half, side] += torch.stack([means.response_mean, means.prompt_mean, means.last_prompt]).cpu()
    counts = {"pairs": len(units)} | {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    return Shard({"sums": sums, "n_kept": n_kept}, {"counts": counts})


def _sort_out(
    positive: Sequence[Rollout],
    negative: Sequence[Rollout],
    judge: Judge | Literal["none"],
    min_coherence: float,
) -> list[str]:
    """Return for each pair ``kept`` or the first reason why it is dropped, as named in ExtractionCounts."""
    both = [*positive, *negative]
    empty = [not rollout.response.strip() or rollout.residuals is None for rollout in both]
    n = len(positive)
    if judge == "none":
        return ["dropped_empty" if empty[i] or empty[n + i] else "kept" for i in range(n)]
    judged = judge.score([r.request.question for r in both], [r.response for r in both])
    reasons = []
    for i in range(n):
        plus, minus = judged[i], judged[n + i]
        if empty[i] or empty[n + i]:
            reasons.append("dropped_empty")
        elif plus.score is None or minus.score is None:
            reasons.append("dropped_unscored")
        elif plus.score <= 50:
            reasons.append("dropped_positive_score")
        elif minus.score >= 50:
            reasons.append("dropped_negative_score")
        elif any(j.coherence is not None and j.coherence < min_coherence for j in (plus, minus)):
            reasons.append("dropped_incoherent")
        else:
            reasons.append("kept")
    return reasons
