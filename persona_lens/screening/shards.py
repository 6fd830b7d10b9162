"""The work of screening in pieces: shards of rows, scored one by one and written whole, by whichever process."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from persona_lens.conversations import BadRow, Conversation
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.files import write_bytes_atomically, write_json
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import ModelInfo
from persona_lens.progress_bars import Advance, count_nothing
from persona_lens.screening.scores import ScoredRow, ScreenSettings, score_rows
from persona_lens.storage import collect_versions
from persona_lens.vectors.persona_vector import PersonaVector

Source: TypeAlias = str | Path | datasets.Dataset | datasets.IterableDataset | Iterable[Any]
Rows: TypeAlias = Sequence[Conversation | BadRow]

RECORD = "screening.json"
SCORED = "scored"
_SHARDS = "shards"


@dataclass(frozen=True, eq=False)
class ScreenPlan:
    """What is done to every shard; the same in every process.

    Args:
        units: By trait, a zero-based block index and the unit direction there.
        settings: How rows are scored.
        shard_rows: Rows of a shard.
        max_rows: Rows to read; None for all.
        config: What the scores depend on, as it is written beside them.
    """

    units: dict[str, tuple[int, Float[Tensor, " d_model"]]]
    settings: ScreenSettings
    shard_rows: int
    max_rows: int | None
    config: dict[str, Any]


def check_by_trait(vectors: Mapping[str, PersonaVector], layers: Mapping[str, int]) -> None:
    """Refuse what is no mapping, such as one vector or one layer.

    Raises:
        InvalidArgumentError: One of both is none.
    """
    for name, given, example in (("vectors", vectors, "{'evil': vector}"), ("layers", layers, "{'evil': 15}")):
        if not isinstance(given, Mapping):
            raise InvalidArgumentError.of(name, f"be a mapping by trait, such as {example}", given)


def plan_screening(
    info: ModelInfo,
    vectors: Mapping[str, PersonaVector],
    layers: Mapping[str, int],
    settings: ScreenSettings,
    shard_rows: int,
    max_rows: int | None,
) -> ScreenPlan:
    """Check the arguments of a screening and put them together.

    Raises:
        InvalidArgumentError: No vector, names that ``layers`` lacks, or a number below 1.
        LayerOutOfRangeError: A layer that the model does not have.
    """
    if not vectors or vectors.keys() != layers.keys():
        rule = f"name the traits of `vectors`, {sorted(vectors)}, at least one"
        raise InvalidArgumentError.of("layers", rule, sorted(layers))
    for name, number in (("shard_rows", shard_rows), ("max_rows", 1 if max_rows is None else max_rows)):
        if number < 1:
            raise InvalidArgumentError.of(name, "be at least 1", number)
    for layer in layers.values():
        check_layer(layer, info.n_layers)
    units = {trait: (layers[trait], vector.unit(layers[trait]).cpu()) for trait, vector in vectors.items()}
    config = {
        "model": asdict(info),
        "traits": list(vectors),
        "layers": dict(layers),
        "vectors": {
            trait: hashlib.sha256(unit.numpy().tobytes()).hexdigest()[:16] for trait, (_, unit) in units.items()
        },
        "norms": {trait: float(vector.norms[layers[trait]]) for trait, vector in vectors.items()},
        "settings": asdict(settings),
        "shard_rows": shard_rows,
        "versions": collect_versions(),
    }
    return ScreenPlan(units, settings, shard_rows, max_rows, config)


def begin_screening(folder: Path, plan: ScreenPlan) -> None:
    """Claim a folder, or find that it is this same screening's.

    Raises:
        InvalidArgumentError: It holds another screening, one of more rows, or other files.
    """
    path = folder / RECORD
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        found, had = record["config"], record["max_rows"]
        if plan.max_rows is not None and (had is None or had > plan.max_rows):
            rule, hint = f"be at least that of the screening in {str(folder)!r}, {had}", "Choose a new folder."
            raise InvalidArgumentError.of("max_rows", rule, plan.max_rows, hint)
        config = json.loads(json.dumps(plan.config))
        if found != config:
            changed = sorted(key for key in config if found.get(key) != config[key])
            got, hint = f"one with other {', '.join(changed)}", "Choose a new folder."
            raise InvalidArgumentError.of("out", "be new, or hold this screening", got, hint)
    # Hidden files are what a run left that was killed while it wrote its first one.
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InvalidArgumentError.of("out", "be new, or hold this screening", "other files", "Choose a new folder.")
    write_json(path, {"config": plan.config, "max_rows": plan.max_rows})  # without counts: not finished


def finish_screening(folder: Path, plan: ScreenPlan, digests: Sequence[str]) -> None:
    """Check that every shard is there and count what became of the rows, which marks the screening as finished.

    Raises:
        FileFormatError: A shard is missing or of other rows, as where another process writes into the same folder.
        InvalidArgumentError: Not one row was scored.
    """
    counts: Counter[str] = Counter()
    n_cut = n_without_base = 0
    delta = f"{next(iter(plan.units))}.delta"
    for index, digest in enumerate(digests):
        table = read_shard(shard_path(folder, index), digest)
        if table is None:
            rule, hint = f"hold {shard_path(folder, index).name}, whole", "Run the same command again."
            raise FileFormatError.of("out", rule, "none, or one of other rows", hint)
        columns = table.select(["status", "is_cut", delta]).to_pydict()
        counts.update(columns["status"])
        n_cut += sum(filter(None, columns["is_cut"]))
        n_without_base += sum(s == SCORED and d is None for s, d in zip(columns["status"], columns[delta], strict=True))
    if not counts[SCORED]:
        rule = "hold a conversation that can be scored"
        found = dict(counts) or "no row at all"
        hint = 'A row is {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}, '
        hint += 'or {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}.'
        if len(list_shards(folder)) == len(digests):  # else it holds what other data scored
            _discard(folder)  # the same folder can take what is meant
        raise InvalidArgumentError.of("data", rule, found, hint)
    for stale in list_shards(folder)[len(digests) :]:  # of longer data that this folder once held
        stale.unlink()
    content = {"counts": dict(counts.most_common()), "n_cut": n_cut, "n_without_base": n_without_base}
    write_json(folder / RECORD, {"config": plan.config, "max_rows": plan.max_rows, **content})


def _discard(folder: Path) -> None:
    """Remove a screening that scored nothing, and only what it wrote."""
    for path in [*list_shards(folder), folder / RECORD]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not there, or not empty
        shard_path(folder, 0).parent.rmdir()


def check_same_data(folder: Path, digest: str) -> None:
    """Refuse to write the scores of other data over finished ones.

    Args:
        folder: The screening's.
        digest: Of the first shard's rows, as they come now.

    Raises:
        InvalidArgumentError: The first finished shard is whole and of other rows.
    """
    found = _read_digest(shard_path(folder, 0))
    if found not in (None, digest):
        hint = "Choose a new folder."
        raise InvalidArgumentError.of("out", "hold a screening of these data", "of other data", hint)


def make_shard(model: HookedModel, rows: Rows, plan: ScreenPlan, advance: Advance = count_nothing) -> pa.Table:
    """Score a shard's rows: a line for each, in order."""
    good = [row for row in rows if isinstance(row, Conversation)]
    advance(len(rows) - len(good))
    scored = iter(score_rows(model, good, plan.units, plan.settings, advance))
    traits = list(plan.units)
    lines = [_to_line(next(scored) if isinstance(row, Conversation) else row, traits) for row in rows]
    return pa.Table.from_pylist(lines, _make_schema(traits))


def write_shard(path: Path, table: pa.Table, digest: str) -> None:
    """Write a shard so that a reader sees all of it or none, with the digest of its rows."""
    sink = pa.BufferOutputStream()
    marked = table.replace_schema_metadata({"rows": digest})
    with pa.ipc.new_stream(sink, marked.schema) as writer:  # the stream form, which datasets maps into memory
        writer.write_table(marked)
    write_bytes_atomically(path, sink.getvalue().to_pybytes())


def read_shard(path: Path, digest: str) -> pa.Table | None:
    """Return a finished shard; None if it is missing, damaged or of other rows."""
    if _read_digest(path) != digest:
        return None
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            return reader.read_all()
    except (pa.ArrowInvalid, OSError):
        return None


def _read_digest(path: Path) -> str | None:
    """Return the digest of a shard's rows; None if the shard is missing or damaged at its beginning."""
    if not path.is_file():
        return None
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            metadata: dict[bytes, bytes] = reader.schema.metadata or {}
            return metadata.get(b"rows", b"").decode()
    except (pa.ArrowInvalid, OSError):
        return None


def digest_rows(rows: Rows) -> str:
    """Return what tells these rows from others."""
    content = json.dumps([asdict(row) for row in rows], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def split_into_shards(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield the rows in lists of ``size``; the last may be shorter."""
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def shard_path(folder: Path, index: int) -> Path:
    """Return where a shard of a screening lies."""
    return folder / _SHARDS / f"{index:08d}.arrow"


def list_shards(folder: Path) -> list[Path]:
    """Return a screening's shards in order; not the caches that `datasets` puts beside them."""
    return sorted((folder / _SHARDS).glob(f"{'[0-9]' * 8}.arrow"))


def _to_line(row: ScoredRow | BadRow, traits: list[str]) -> dict[str, Any]:
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
