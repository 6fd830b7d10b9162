"""PersonaVector: a trait's direction at every layer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import FileFormatError, InvalidArgumentError, LayerOutOfRangeError, ModelMismatchError
from persona_lens.hub import Card, fetch_file, push_saved
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.records import Record, format_table, read_headed
from persona_lens.storage import Shard, load_shard, save_shard
from persona_lens.tensors.directions import normalize

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from persona_lens.vectors.estimators import Estimator
    from persona_lens.vectors.quality.card import NullMargin, VectorQuality
    from persona_lens.vectors.quality.data import QualityData

TokenPosition = Literal["response_mean", "prompt_mean", "last_prompt"]
"""Which tokens a direction is read from: means over the response's or the prompt's, or the prompt's last."""
TOKEN_POSITIONS: tuple[TokenPosition, ...] = ("response_mean", "prompt_mean", "last_prompt")
"""All of them."""

_FORMAT = "persona-vector"
_HUB_FILE = "vector.safetensors"
_FORMAT_VERSION = 1


@checked
@dataclass(frozen=True)
class ExtractionCounts(Record):
    """What became of the contrasting pairs of rollouts; each dropped pair is counted once, by the first reason.

    Args:
        pairs: Pairs sampled: one positive and one negative rollout of the same question.
        kept: Pairs that the vector rests on.
        dropped_empty: A response without text.
        dropped_unscored: A response that the judge gave no score.
        dropped_positive_score: The positive response scored 50 or less.
        dropped_negative_score: The negative response scored 50 or more.
        dropped_incoherent: A response with coherence under the floor.
        dropped_unfinished: A response that is a thought without an end, where the answer was to be pooled or judged.
    """

    pairs: int = 0
    kept: int = 0
    dropped_empty: int = 0
    dropped_unscored: int = 0
    dropped_positive_score: int = 0
    dropped_negative_score: int = 0
    dropped_incoherent: int = 0
    dropped_unfinished: int = 0

    def __add__(self, other: ExtractionCounts) -> ExtractionCounts:
        return ExtractionCounts(**{name: getattr(self, name) + getattr(other, name) for name in asdict(self)})


@dataclass(frozen=True)
class _Metadata:
    """What a vector's file holds besides the tensors."""

    trait: str
    position: TokenPosition
    model: ModelInfo
    counts: ExtractionCounts
    provenance: dict[str, Any]
    absent: tuple[int, ...] = ()


@checked
@dataclass(frozen=True, eq=False)
class PersonaVector:
    """A trait's raw mean-difference direction at every layer, for three token positions.

    ``vector + other``, ``vector - other`` and ``2.0 * vector`` work between vectors of one model and token position.
    Scaling by a number above zero keeps what the vector moves where it was tried: half of a vector has twice the
    coefficient in ``provenance["setting"]``. A vector that is turned round, and a sum, was tried nowhere, and says so.

    Args:
        trait: The trait's name.
        model: The model that it was extracted from.
        by_position: Raw (unnormalised) float32 directions for each token position.
        position: The token position that :attr:`directions` and :meth:`unit` use; the response mean steers best.
        counts: Pairs kept and dropped.
        split_half_cosine: Cosine between the directions of two halves of the questions, for each position and layer:
            how far the direction depends on which questions were asked.
        provenance: The trait's fingerprint, seed, settings, judge and library versions.
        absent: Layers of which nothing is known, such as those that another program's file leaves out; their rows are
            zero, and steering or projecting there is refused. None in a vector that was found here.

    Raises:
        InvalidArgumentError: A direction with NaN or infinite entries, shapes that do not fit the model, or an absent
            layer with a direction.

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
    absent: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.position not in self.by_position:
            raise InvalidArgumentError.of("position", f"be one of {sorted(self.by_position)}", self.position)
        expected = (self.model.n_layers, self.model.d_model)
        for name, directions in self.by_position.items():
            if tuple(directions.shape) != expected:
                raise InvalidArgumentError.of(
                    f"by_position[{name!r}]", f"have shape (layer, d_model) = {expected}", tuple(directions.shape)
                )
            finite = torch.isfinite(directions).all(dim=-1)
            if not bool(finite.all()):
                raise InvalidArgumentError.of(
                    f"by_position[{name!r}]",
                    "be finite",
                    f"NaN or infinity at layers {(~finite).nonzero()[:, 0].tolist()}",
                    "Extract the vector again; in float32 if the model overflows in half precision.",
                )
            if self.absent:
                self._check_absent(name, directions)

    def _check_absent(self, name: str, directions: Tensor) -> None:
        n_layers = self.model.n_layers
        if list(self.absent) != sorted(set(self.absent)) or not 0 <= self.absent[0] <= self.absent[-1] < n_layers:
            raise InvalidArgumentError.of("absent", f"ascend within [0, {n_layers})", self.absent)
        if bool(directions[list(self.absent)].any()):
            rule = f"be zero at the absent layers {list(self.absent)}"
            raise InvalidArgumentError.of(f"by_position[{name!r}]", rule, "a direction at one of them")

    @property
    def directions(self) -> Float[Tensor, "layer d_model"]:
        """Raw directions at the chosen token position; a steering coefficient multiplies them."""
        return self.by_position[self.position]

    @property
    def norms(self) -> Float[Tensor, " layer"]:
        """Euclidean norm of each layer's raw direction."""
        norms: Tensor = torch.linalg.vector_norm(self.directions, dim=-1)
        return norms

    def direction(self, layer: int) -> Float[Tensor, " d_model"]:
        """Return the raw direction of a layer.

        Raises:
            LayerOutOfRangeError: The model has no such layer, or the vector no direction there.
        """
        return self.directions[self.check_layer(layer)]

    def check_layer(self, layer: int) -> int:
        """Return a layer if the vector has a direction there.

        Raises:
            LayerOutOfRangeError: The model has no such layer, or the vector no direction there.
        """
        index = check_layer(layer, self.model.n_layers)
        if index in self.absent:
            told = self.provenance.get("left_out")
            why = told.get(str(index)) if isinstance(told, dict) else None
            rule = f"be one that {self.trait!r} has a direction at, `vector.layers`"
            raise LayerOutOfRangeError.of("layer", rule, index, str(why or "Its file holds none there."))
        return index

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers with a direction: all of the model's, but for :attr:`absent` ones."""
        return tuple(layer for layer in range(self.model.n_layers) if layer not in self.absent)

    def unit(self, layer: int) -> Float[Tensor, " d_model"]:
        """Return a layer's direction with norm one, for projections.

        Raises:
            LayerOutOfRangeError: The model has no such layer, or the vector no direction there.
        """
        return normalize(self.direction(layer))

    @property
    def units(self) -> Float[Tensor, "layer d_model"]:
        """Every layer's direction with norm one; zero where nothing was found, NaN at :attr:`absent` layers."""
        is_there = self.directions.any(dim=-1)
        units = torch.zeros_like(self.directions)
        units[is_there] = normalize(self.directions[is_there])
        units[list(self.absent)] = torch.nan
        return units

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
            raise ModelMismatchError.of(
                "vector",
                f"come from the model it is used on, {other.name} ({other.n_layers} layers, d_model "
                f"{other.d_model}, fingerprint {other.fingerprint})",
                f"{self.model.name} ({self.model.n_layers} layers, d_model {self.model.d_model}, fingerprint "
                f"{self.model.fingerprint})",
                "Extract it from this model with extract_persona_vector(model, trait).",
            )

    def __add__(self, other: PersonaVector) -> PersonaVector:
        return self._combine(other, 1.0, "+")

    def __sub__(self, other: PersonaVector) -> PersonaVector:
        return self._combine(other, -1.0, "-")

    def __mul__(self, factor: float | int) -> PersonaVector:
        if not math.isfinite(factor):
            raise InvalidArgumentError.of("factor", "be finite", factor)
        scaled = {name: directions * factor for name, directions in self.by_position.items()}
        provenance = _scale_provenance(self.provenance, float(factor))
        return replace(self, trait=f"{factor:g} * {self.trait}", by_position=scaled, provenance=provenance)

    __rmul__ = __mul__

    def __neg__(self) -> PersonaVector:
        return self * -1.0

    def _combine(self, other: object, sign: float, symbol: str) -> PersonaVector:
        if not isinstance(other, PersonaVector):
            raise TypeError(f"`other` must be a PersonaVector. Got {type(other).__name__}.")
        name = f"{self.trait} {symbol} {other.trait}"
        if self.model.fingerprint != other.model.fingerprint:
            raise ModelMismatchError.of("other", f"come from the same model, {self.model.name}", other.model.name)
        if self.position != other.position:
            raise InvalidArgumentError.of(
                "other", f"use the token position {self.position!r}", other.position, "See .at()."
            )
        shared = self.by_position.keys() & other.by_position.keys()
        combined = {
            key: self.by_position[key] + sign * other.by_position[key] for key in self.by_position if key in shared
        }
        absent = tuple(sorted({*self.absent, *other.absent}))
        if absent:
            for directions in combined.values():
                directions[list(absent)] = 0
        provenance: dict[str, Any] = {"combined": name}
        return PersonaVector(name, self.model, combined, self.position, provenance=provenance, absent=absent)

    def save(self, path: str | Path) -> None:
        """Write the vector as safetensors, its metadata as JSON in the header."""
        tensors = {f"directions.{name}": value for name, value in self.by_position.items()}
        tensors |= {f"split_half_cosine.{name}": value for name, value in self.split_half_cosine.items()}
        records = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "trait": self.trait,
            "position": self.position,
            "model": self.model.to_json(),
            "counts": asdict(self.counts),
            "provenance": self.provenance,
        }
        if self.absent:  # written only then, so that earlier versions read all other vectors
            records["absent"] = list(self.absent)
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
        try:
            metadata = read_headed(shard.records, _Metadata, _FORMAT, _FORMAT_VERSION)
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from error

        def group(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in shard.tensors.items() if k.startswith(prefix)}

        return cls(by_position=group("directions."), split_half_cosine=group("split_half_cosine."), **vars(metadata))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Share the vector on the Hugging Face hub, as ``vector.safetensors`` with a card, in one commit.

        Card and file name the model as it was loaded, of a folder the last part, and hold all of :attr:`provenance`.

        Args:
            repo_id: ``owner/name``; made if it is not there. A card that is there is replaced.
            private: Whether a repository that is made is closed to others; None leaves that to the hub.

        Returns:
            The commit's hash: :meth:`from_hub` with it as ``revision`` gives this very vector.

        Raises:
            InvalidArgumentError: No name that a repository can have.
            ApiError: The hub is out of reach, or refused. The token comes from HF_TOKEN or ``hf auth login``.

        Example:
            >>> vector.push_to_hub("me/evil-qwen2.5-7b")  # doctest: +SKIP
        """
        cosines = self.split_half_cosine.get(self.position)
        rows = {
            "trait": self.trait,
            "model": self.model.name,
            "model's fingerprint": self.model.fingerprint,
            "layers (zero-based block outputs)": f"{self.model.n_layers}, d_model {self.model.d_model}",
            "layers without a direction": ", ".join(map(str, self.absent)) or "none",
            "token positions": ", ".join(self.by_position),
            "pairs kept": f"{self.counts.kept} of {self.counts.pairs}",
            "split-half cosine, median over layers": "not measured" if cosines is None else f"{cosines.median():.2f}",
        }
        card = Card(
            f"Persona vector: {self.trait}",
            f"The direction of the trait {self.trait!r} in the residual stream of {self.model.name}, at every layer, "
            "raw: a steering coefficient multiplies it.",
            rows,
            "PersonaVector",
            ("persona-vectors", "activation-steering"),
            self.model.name,
            self.provenance,
        )
        return push_saved(repo_id, _HUB_FILE, self.save, card, private=private)

    @classmethod
    def from_hub(cls, repo_id: str, *, revision: str | None = None) -> PersonaVector:
        """Read a vector that :meth:`push_to_hub` shared.

        Args:
            repo_id: ``owner/name``.
            revision: A branch, a tag or a commit's hash; None takes the newest. Name a commit where results are to be
                the same again.

        Raises:
            InvalidArgumentError: No name that a repository can have, or a vector with NaN in it.
            ApiError: No such repository, revision or file, or the hub is out of reach.
            FileFormatError: A file that is damaged, or of another kind.

        Example:
            >>> import persona_lens as pl
            >>> pl.PersonaVector.from_hub("me/evil-qwen2.5-7b")  # doctest: +SKIP
        """
        return cls.load(fetch_file(repo_id, _HUB_FILE, revision))

    def quality(
        self,
        model: HookedModel,
        data: QualityData | None = None,
        *,
        estimator: Estimator | None = None,
        layer: int | None = None,
        again: PersonaVector | Sequence[PersonaVector] | None = None,
        null: NullMargin | None = None,
    ) -> VectorQuality:
        """Measure how stable, separating, confounded, specific and legible the vector is: its quality card.

        What is bundled for the trait is read, a minute on one core for the embedded model; what is missing is said to
        be. Arguments and errors are those of :func:`persona_lens.vectors.assess_vector`.

        Example:
            >>> import persona_lens as pl
            >>> model, vector = pl.load_model(), pl.load_vector("evil")  # doctest: +SKIP
            >>> vector.quality(model)  # a page in a notebook # doctest: +SKIP
            >>> vector.quality(model).plot()  # doctest: +SKIP
        """
        from persona_lens.vectors.quality.assessing import assess_vector  # what a vector is needs none of it

        return assess_vector(self, model, data, estimator=estimator, layer=layer, again=again, null=null)

    def plot(self) -> Figure:
        """Draw norm and split-half stability over layers; returns a plotly Figure."""
        from persona_lens.plots.vector import plot_vector  # plotly is imported only when drawing

        return plot_vector(self)

    def __repr__(self) -> str:
        cosines = self.split_half_cosine.get(self.position)
        stability = "" if cosines is None else f", split-half cosine {cosines.median():.2f} (median over layers)"
        pairs = f", kept {self.counts.kept} of {self.counts.pairs} pairs" if self.counts.pairs else ""
        return (
            f"PersonaVector({self.trait!r}, {self.position}, {self.model.n_layers} layers × d_model "
            f"{self.model.d_model}, model={self.model.name!r}{pairs}{stability})"
        )

    def _repr_html_(self) -> str:
        rows = {"trait": self.trait, "model": self.model.name, "token position": self.position}
        rows["layers × d_model"] = f"{self.model.n_layers} × {self.model.d_model}"
        rows |= {name.replace("_", " "): count for name, count in asdict(self.counts).items() if count}
        cosines = self.split_half_cosine.get(self.position)
        if cosines is not None:
            rows["split-half cosine (median)"] = f"{cosines.median():.2f}"
        return format_table("PersonaVector", rows.items())


def _scale_provenance(provenance: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return what is still true of a vector times a number: where it was tried, if it points the same way."""
    setting = provenance.get("setting")
    tried = setting.get("coefficient") if isinstance(setting, Mapping) else None
    if factor > 0:
        if isinstance(tried, bool) or not isinstance(tried, int | float):
            return provenance
        if math.isfinite(tried / factor):
            return provenance | {"setting": {**dict(setting or {}), "coefficient": tried / factor}}
    return {key: value for key, value in provenance.items() if key not in ("setting", "auroc")}
