"""Screening a dataset shard by shard: streamed, resumable, with a row for every row that came."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import datasets
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.conversations import BadRow, Conversation, read_conversations
from persona_lens.errors import FileFormatError, InvalidArgumentError, describe_violation
from persona_lens.judges.likelihood import check_unsteered
from persona_lens.models.loading import describe_model
from persona_lens.models.model_type import HookedModel
from persona_lens.models.sites import check_layer
from persona_lens.progress import ProgressFactory, no_progress
from persona_lens.screening.scores import ScoredRow, ScreenSettings, score_rows
from persona_lens.storage import collect_versions, write_bytes_atomically, write_json
from persona_lens.tensors.statistics import Interval, bootstrap_mean, bootstrap_pearson_r
from persona_lens.vectors import PersonaVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Source: TypeAlias = str | Path | datasets.Dataset | datasets.IterableDataset | Iterable[Any]

_RECORD = "screening.json"
_SHARDS = "shards"
SCORED = "scored"


@dataclass(frozen=True)
class ApproximationCheck:
    """How near the paper's cheaper ways come to the exact projection difference of a dataset.

    Args:
        exact: ΔP over all samples.
        subset: ΔP over a random subset.
        n_subset: Its size.
        last_prompt: ΔP with the last prompt token's projection in place of the base response's.
        r_last_prompt: Correlation of that with the exact ΔP over samples.
        r_raw: Correlation of the raw projection with the exact ΔP over samples.
    """

    exact: Interval
    subset: Interval
    n_subset: int
    last_prompt: Interval
    r_last_prompt: Interval
    r_raw: Interval


@dataclass(frozen=True, eq=False)
class Screening:
    """A screened dataset, on disk.

    Args:
        folder: Where it is.
        traits: Traits screened for.
        counts: Rows by what became of them: ``scored``, or the reason why not.
        n_cut: Scored rows whose response goes on beyond what was projected.
        config: What the scores depend on.
    """

    folder: Path
    traits: tuple[str, ...]
    counts: dict[str, int]
    n_cut: int
    config: dict[str, Any]

    @property
    def rows(self) -> datasets.Dataset:
        """Every row in order, memory-mapped: ``status`` is ``scored`` or the reason why a row was not.

        A scored row has ``question``, ``response``, ``base_response`` and for each trait ``TRAIT.raw``, ``.base``,
        ``.prompt`` and ``.delta``, in residual-stream units.
        """
        return datasets.concatenate_datasets(
            [datasets.Dataset.from_file(str(path)) for path in _list_shards(self.folder)]
        )

    def values(self, trait: str, column: str = "delta") -> Float[Tensor, " sample"]:
        """Return one number for each scored row; rows without a base response are left out of ``delta`` and ``base``.

        Raises:
            InvalidArgumentError: A trait or column that was not screened for.
        """
        if trait not in self.traits:
            raise InvalidArgumentError(describe_violation("trait", f"be one of {self.traits}", trait))
        if column not in ("raw", "base", "prompt", "delta"):
            raise InvalidArgumentError(describe_violation("column", "be raw, base, prompt or delta", column))
        return torch.tensor([v for v in self.rows[f"{trait}.{column}"][:] if v is not None], dtype=torch.float64)

    def measure(self, trait: str) -> Interval:
        """Return the dataset's projection difference with its 95 % bootstrap interval over samples; NaN for one."""
        values = self.values(trait)
        return bootstrap_mean(values) if len(values) > 1 else Interval(float("nan"), float("nan"), float("nan"))

    def threshold(self, trait: str, quantile: float = 0.95) -> float:
        """Return the ΔP below which a fraction of this dataset's samples lies; for data that are called clean.

        Raises:
            InvalidArgumentError: A quantile outside (0, 1).

        Reference:
            Persona Vectors (arXiv 2507.21509), appendix K.
        """
        if not 0 < quantile < 1:
            raise InvalidArgumentError(describe_violation("quantile", "be in (0, 1)", quantile))
        return float(self.values(trait).quantile(quantile))

    def check_approximations(self, trait: str, *, n_subset: int = 100, seed: int = 0) -> ApproximationCheck:
        """Compare the paper's two approximations, and the raw projection, with the exact projection difference.

        Args:
            trait: Which.
            n_subset: Samples of the random subset; all of them if there are fewer.
            seed: Draws the subset.

        Reference:
            Persona Vectors (arXiv 2507.21509), appendix I.
        """
        rows = self.rows
        columns = [rows[f"{trait}.{name}"][:] for name in ("delta", "raw", "prompt")]
        whole = [row for row in zip(*columns, strict=True) if row[0] is not None]
        delta, raw, prompt = torch.tensor(whole, dtype=torch.float64).T
        chosen = torch.randperm(len(delta), generator=torch.Generator().manual_seed(seed))[:n_subset]
        return ApproximationCheck(
            exact=bootstrap_mean(delta),
            subset=bootstrap_mean(delta[chosen]),
            n_subset=len(chosen),
            last_prompt=bootstrap_mean(raw - prompt),
            r_last_prompt=bootstrap_pearson_r(raw - prompt, delta),
            r_raw=bootstrap_pearson_r(raw, delta),
        )

    @classmethod
    def load(cls, folder: str | Path) -> Screening:
        """Read what :func:`screen` wrote.

        Raises:
            FileNotFoundError: No such screening.
            FileFormatError: One that was not finished.
        """
        path = Path(folder) / _RECORD
        if not path.is_file():
            raise FileNotFoundError(f"`folder` must hold a screening, with {_RECORD}. Got {str(folder)!r}.")
        content = json.loads(path.read_text(encoding="utf-8"))
        if "counts" not in content:
            hint = "Run the same command again: it goes on where it was."
            raise FileFormatError(describe_violation("folder", "hold a finished screening", str(folder), hint))
        config = content["config"]
        return cls(Path(folder), tuple(config["traits"]), content["counts"], content["n_cut"], config)

    def plot(self) -> Figure:
        """Draw each trait's distribution of ΔP; returns a plotly Figure."""
        from persona_lens.plots import plot_screening  # plotly is imported only when drawing

        return plot_screening(self, {})

    def __repr__(self) -> str:
        shown = ", ".join(f"{trait} ΔP {self.measure(trait)}" for trait in self.traits)
        return f"Screening({self.folder.name!r}, {self.counts}, {shown})"


def screen(
    model: HookedModel,
    data: Source,
    vectors: Mapping[str, PersonaVector],
    out: str | Path,
    *,
    layers: Mapping[str, int],
    settings: ScreenSettings | None = None,
    max_rows: int | None = None,
    shard_rows: int = 256,
    progress: ProgressFactory = no_progress,
) -> Screening:
    """Measure each conversation's projection difference for several traits in one pass.

    Memory does not grow with the data: rows are read, scored and written a shard at a time. The same call again
    computes only the shards that are missing or whose rows have changed, and gives the bytes of an uninterrupted run.

    Args:
        model: The model that is to be trained, unsteered.
        data: As for :func:`persona_lens.read_conversations`.
        vectors: By trait.
        out: Folder for the scores; new, or that of this same screening.
        layers: Zero-based block index for each trait.
        settings: How; :class:`ScreenSettings` if left out.
        max_rows: Rows to read; None reads all.
        shard_rows: Rows of a shard.
        progress: Makes a progress bar.

    Returns:
        The scores, on disk.

    Raises:
        ModelMismatchError: A vector of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: No vector, names that ``layers`` lacks, or a folder that holds another screening.
        HooksPresentError: The model carries residual-stream hooks.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 6.

    Example:
        >>> import persona_lens as pl
        >>> found = pl.screen(model, "rows.jsonl", {"evil": vector}, "screened", layers={"evil": 15})  # doctest: +SKIP
        >>> found.measure("evil")  # doctest: +SKIP
    """
    settings = settings or ScreenSettings()
    if not vectors or vectors.keys() != layers.keys():
        rule = f"name the traits of `vectors`, {sorted(vectors)}, at least one"
        raise InvalidArgumentError(describe_violation("layers", rule, sorted(layers)))
    for name, number in (("shard_rows", shard_rows), ("max_rows", 1 if max_rows is None else max_rows)):
        if number < 1:
            raise InvalidArgumentError(describe_violation(name, "be at least 1", number))
    for trait, vector in vectors.items():
        vector.check_model(model)
        check_layer(layers[trait], vector.model.n_layers)
    check_unsteered(model)
    units = {trait: (layers[trait], vector.unit(layers[trait]).cpu()) for trait, vector in vectors.items()}
    config = {
        "model": asdict(describe_model(model)),
        "traits": list(vectors),
        "layers": dict(layers),
        "vectors": {
            trait: hashlib.sha256(unit.numpy().tobytes()).hexdigest()[:16] for trait, (_, unit) in units.items()
        },
        "norms": {trait: float(vector.norms[layers[trait]]) for trait, vector in vectors.items()},
        "settings": asdict(settings),
        "shard_rows": shard_rows,
        "max_rows": max_rows,
        "versions": collect_versions(),
    }
    folder = Path(out)
    rows = itertools.islice(read_conversations(data), max_rows)
    _begin(folder, config)
    schema = _make_schema(list(vectors))
    counts: Counter[str] = Counter()
    n_shards = n_cut = 0
    with progress("screening (rows)", _count_rows(data, max_rows)) as advance:
        for chunk in _chunks(rows, shard_rows):
            path = folder / _SHARDS / f"{n_shards:08d}.arrow"
            digest = _digest(chunk)
            table = _read_shard(path, digest)
            if table is None:
                table = pa.Table.from_pylist(_score_chunk(model, chunk, units, settings), schema)
                write_bytes_atomically(path, _to_bytes(table.replace_schema_metadata({"rows": digest})))
            counts.update(table["status"].to_pylist())
            n_cut += sum(filter(None, table["is_cut"].to_pylist()))
            n_shards += 1
            advance(len(chunk))
    for stale in _list_shards(folder)[n_shards:]:  # of longer data that this folder once held
        stale.unlink()
    if not counts[SCORED]:
        rule = "hold a conversation that can be scored"
        raise InvalidArgumentError(describe_violation("data", rule, dict(counts)))
    write_json(folder / _RECORD, {"config": config, "counts": dict(counts.most_common()), "n_cut": n_cut})
    return Screening.load(folder)


def _begin(folder: Path, config: dict[str, Any]) -> None:
    """Claim the folder, or find that it is this screening's."""
    path = folder / _RECORD
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))["config"]
        if found != json.loads(json.dumps(config)):
            changed = sorted(key for key in config if found.get(key) != json.loads(json.dumps(config[key])))
            got, hint = f"one with other {', '.join(changed)}", "Choose a new folder."
            raise InvalidArgumentError(describe_violation("out", "be new, or hold this screening", got, hint))
    elif folder.is_dir() and any(folder.iterdir()):
        raise InvalidArgumentError(
            describe_violation("out", "be new, or hold this screening", "other files", "Choose a new folder.")
        )
    write_json(path, {"config": config})  # without counts: not finished


def _score_chunk(
    model: HookedModel, chunk: list[Conversation | BadRow], units: Mapping[str, Any], settings: ScreenSettings
) -> list[dict[str, Any]]:
    good = [row for row in chunk if isinstance(row, Conversation)]
    scored = iter(score_rows(model, good, units, settings))
    return [_to_row(next(scored) if isinstance(row, Conversation) else row, list(units)) for row in chunk]


def _to_row(row: ScoredRow | BadRow, traits: list[str]) -> dict[str, Any]:
    if isinstance(row, BadRow):
        return {"index": row.index, "place": row.place, "status": row.reason, "detail": row.detail}
    values: dict[str, Any] = {
        "index": row.conversation.index,
        "place": row.conversation.place,
        "status": SCORED,
        "question": row.question,
        "response": row.response,
        "base_response": row.base_response,
        "n_prompt_tokens": row.n_prompt_tokens,
        "n_response_tokens": row.n_response_tokens,
        "is_cut": row.is_cut,
    }
    for trait in traits:
        base = row.base[trait]
        values |= {f"{trait}.raw": row.raw[trait], f"{trait}.base": base, f"{trait}.prompt": row.prompt[trait]}
        values[f"{trait}.delta"] = None if base is None else row.raw[trait] - base
    return values


def _make_schema(traits: list[str]) -> pa.Schema:
    texts = ("place", "status", "detail", "question", "response", "base_response")
    numbers = [f"{trait}.{name}" for trait in traits for name in ("raw", "base", "prompt", "delta")]
    fields = {"index": pa.int64()} | dict.fromkeys(texts, pa.large_string())
    fields |= {"n_prompt_tokens": pa.int32(), "n_response_tokens": pa.int32(), "is_cut": pa.bool_()}
    return pa.schema(list((fields | dict.fromkeys(numbers, pa.float32())).items()))


def _to_bytes(table: pa.Table) -> bytes:
    # The stream form, which datasets maps into memory.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _read_shard(path: Path, digest: str) -> pa.Table | None:
    """Return a finished shard; None if it is missing, damaged or of other rows."""
    if not path.is_file():
        return None
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            table = reader.read_all()
    except (pa.ArrowInvalid, OSError):
        return None
    return table if (table.schema.metadata or {}).get(b"rows") == digest.encode() else None


def _digest(chunk: list[Conversation | BadRow]) -> str:
    content = json.dumps([asdict(row) for row in chunk], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _count_rows(data: Source, max_rows: int | None) -> int:
    """Return how many rows will come, 0 if only reading would tell."""
    n_rows = len(data) if isinstance(data, Sized) and not isinstance(data, str) else 0
    return min(n_rows, max_rows) if n_rows and max_rows else n_rows or max_rows or 0


def _list_shards(folder: Path) -> list[Path]:
    return sorted((folder / _SHARDS).glob("*.arrow"))
