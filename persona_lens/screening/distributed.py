"""Screening on many machines: Ray Data gives shards to a pool of processes, each with its own copy of the model."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from persona_lens.checking import checked
from persona_lens.conversations import BadRow, Conversation, read_conversations
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.files import write_bytes_atomically
from persona_lens.models.loading import ModelInfo, describe_model, load_model
from persona_lens.screening import files, shards
from persona_lens.screening.scores import ScreenSettings
from persona_lens.screening.screening import Screening
from persona_lens.screening.shards import Rows, ScreenPlan, Source
from persona_lens.vectors.persona_vector import PersonaVector

_WAITING = "waiting"
_PARQUET = "parquet"


@checked
@dataclass(frozen=True)
class RayWorkers:
    """The processes that score shards, each with a copy of the model.

    Args:
        n: How many.
        cpus: Cores for each.
        gpus: GPUs for each.
        dtype: Of each copy, as for :func:`persona_lens.load_model`.

    Raises:
        InvalidArgumentError: ``n`` below 1.
    """

    n: int
    cpus: float = 1
    gpus: float = 0
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InvalidArgumentError.of("n", "be at least 1", self.n)


@checked
def screen_on_ray(
    model: str | Path,
    data: Source,
    vectors: Mapping[str, PersonaVector],
    out: str | Path,
    *,
    layers: Mapping[str, int],
    workers: RayWorkers,
    adapter: str | Path | None = None,
    settings: ScreenSettings = ScreenSettings(),
    max_rows: int | None = None,
    shard_rows: int = 256,
) -> Screening:
    """Do as :func:`persona_lens.screen` on a Ray cluster, or on this machine with several processes.

    This process first reads all the data and cuts them into shards, which wait in ``out``; workers score them. A worker
    that dies is replaced and its shard computed again; after the death of this process the same call goes on where it
    was. The scores are those of :func:`persona_lens.screen`, byte for byte on like machines with the same number of
    threads, else up to rounding.

    Args:
        model: Name or folder, as for :func:`persona_lens.load_model`; every worker loads it once.
        data: As for :func:`persona_lens.screen`.
        vectors: By trait.
        out: Folder that every machine sees under this path. Besides what :func:`persona_lens.screen` writes there, it
            gets the scores as Parquet, in ``parquet/``.
        layers: Zero-based block index for each trait.
        workers: The processes.
        adapter: Folder of a PEFT adapter that is merged into the model.
        settings: How.
        max_rows: Rows to read; None reads all.
        shard_rows: Rows of a shard.

    Returns:
        The scores, on disk.

    Raises:
        ImportError: Ray is not installed.
        ModelMismatchError: A vector of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: As for :func:`persona_lens.screen`,

    Reference:
        Persona Vectors (arXiv 2507.21509), section 6.

    Example:
        >>> import persona_lens as pl
        >>> data, vectors, layers = "rows.jsonl", {"evil": vector}, {"evil": 15}  # doctest: +SKIP
        >>> two = pl.screening.RayWorkers(2)
        >>> name = "smollm2-135m-instruct"
        >>> pl.screening.screen_on_ray(name, data, vectors, "screened", layers=layers, workers=two)  # doctest: +SKIP
    """
    shards.check_by_trait(vectors, layers)
    ray = _import_ray()
    rows = itertools.islice(read_conversations(data, limits=settings.limits), max_rows)
    source: dict[str, Any] = {"model": str(model), "adapter": adapter and str(adapter), "dtype": workers.dtype}
    resources = {"num_cpus": workers.cpus, "num_gpus": workers.gpus}
    # Asked of a worker: this machine may have no room for the model, and computes in another dtype perhaps.
    info = ray.get(ray.remote(**resources)(_describe).remote(source, dict(vectors)))
    plan = shards.plan_screening(info, vectors, layers, settings, shard_rows, max_rows)
    folder = Path(out).absolute()
    shards.begin_screening(folder, plan)
    marks = []
    for index, chunk in enumerate(shards.split_into_shards(rows, shard_rows)):
        mark = shards.mark_shard(chunk, plan)
        if index == 0:
            shards.check_same_data(folder, mark)
        if files.read_shard(files.shard_path(folder, index), mark) is None:
            _write_rows(folder / _WAITING / f"{index:08d}.json", chunk)
        marks.append(mark)
    if marks:
        jobs = [{"shard": index, "mark": mark} for index, mark in enumerate(marks)]
        shutil.rmtree(folder / _PARQUET, ignore_errors=True)
        scored = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map_batches(
            _Worker, fn_constructor_args=(source, plan, str(folder)), batch_size=1, batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers.n), **resources,
        )  # fmt: skip
        scored.write_parquet(str(folder / _PARQUET))
    shards.finish_screening(folder, plan, marks)
    shutil.rmtree(folder / _WAITING, ignore_errors=True)
    return Screening.load(folder)


class _Worker:
    """A process with the model; called with one shard at a time."""

    def __init__(self, source: dict[str, Any], plan: ScreenPlan, folder: str) -> None:
        self.model = load_model(**source)
        found = asdict(describe_model(self.model))
        if found != plan.config["model"]:
            hint = "Give every machine the same files, and say `dtype`."
            rule = f"be the same on every machine, {plan.config['model']}"
            raise ModelMismatchError.of("model", rule, found, hint)
        self.plan = plan
        self.folder = Path(folder)

    def __call__(self, job: pa.Table) -> pa.Table:
        index, mark = job["shard"][0].as_py(), job["mark"][0].as_py()
        path = files.shard_path(self.folder, index)
        table = files.read_shard(path, mark)
        if table is None:  # not there yet: neither from an earlier run nor from a worker that died after writing it
            rows = _read_rows(self.folder / _WAITING / f"{index:08d}.json")
            table = shards.make_shard(self.model, rows, self.plan)
            files.write_shard(path, table, shards.mark_shard(rows, self.plan))
        return table.replace_schema_metadata(None)


def _describe(source: dict[str, Any], vectors: dict[str, PersonaVector]) -> ModelInfo:
    model = load_model(**source)
    for vector in vectors.values():
        vector.check_model(model)
    return describe_model(model)


def _write_rows(path: Path, rows: Rows) -> None:
    lines = [{"is_bad": isinstance(row, BadRow), "row": asdict(row)} for row in rows]
    write_bytes_atomically(path, json.dumps(lines).encode())


def _read_rows(path: Path) -> Rows:
    lines = json.loads(path.read_text(encoding="utf-8"))
    return [
        BadRow(**line["row"])
        if line["is_bad"]
        else Conversation(**line["row"] | {"messages": tuple(line["row"]["messages"])})
        for line in lines
    ]


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("screen_on_ray needs Ray Data. Install it with: pip install 'persona-lens[ray]'") from error
    return ray
