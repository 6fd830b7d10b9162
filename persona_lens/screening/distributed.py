"""Screening on many machines: shards are scored by Ray workers, each with its own copy of the model."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from persona_lens.checking import checked
from persona_lens.conversations import BadRow, Conversation, read_conversations
from persona_lens.distributed import RayWorkers, load_once, rename_loaded
from persona_lens.errors import ModelMismatchError
from persona_lens.files import write_bytes_atomically
from persona_lens.models.loading import ModelInfo, ModelSource, describe_model
from persona_lens.models.loading.placing import DeviceMap
from persona_lens.models.loading.source import find_anywhere, write_map
from persona_lens.models.text.templates import TemplateArguments, read_settings, warn_of_date, write_arguments
from persona_lens.screening import files, shards
from persona_lens.screening.scores import ScreenSettings
from persona_lens.screening.screening import Screening
from persona_lens.screening.shards import Rows, ScreenPlan, Source
from persona_lens.vectors.persona_vector import PersonaVector

_WAITING = "waiting"
_PARQUET = "parquet"


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
    device_map: DeviceMap | None = None,
    template_arguments: TemplateArguments | None = None,
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
        device_map: Where each worker keeps the weights, as for :func:`persona_lens.load_model`.
        template_arguments: What the chat template reads besides the messages, as there.
        settings: How.
        max_rows: Rows to read; None reads all.
        shard_rows: Rows of a shard.

    Returns:
        The scores, on disk.

    Raises:
        ImportError: Ray is not installed.
        ModelMismatchError: A vector of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: As for :func:`persona_lens.screen`; a template argument that the chat template does not
            read.

    Warns:
        DatedTemplateWarning: The chat template writes today's date, which is fixed for all workers and recorded.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 6.

    Example:
        >>> import persona_lens as pl
        >>> data, vectors, layers = "rows.jsonl", {"evil": vector}, {"evil": 15}  # doctest: +SKIP
        >>> two = pl.distributed.RayWorkers(2)
        >>> name = "smollm2-135m-instruct"
        >>> pl.screening.screen_on_ray(name, data, vectors, "screened", layers=layers, workers=two)  # doctest: +SKIP
    """
    shards.check_by_trait(vectors, layers)
    shards.check_sizes(shard_rows, max_rows)
    rows = itertools.islice(read_conversations(data, limits=settings.limits), max_rows)
    source = ModelSource(
        find_anywhere(model), None if adapter is None else find_anywhere(adapter), None, workers.dtype,
        template_arguments=write_arguments(template_arguments), device_map=write_map(device_map),
    )  # fmt: skip
    with workers.started() as pool:
        # Asked of one of them: this machine may have no room for the model, and computes in another dtype perhaps.
        ((info, arguments),) = pool.compute_each([partial(_describe, source, dict(vectors))])
        if arguments != source.template_arguments:
            warn_of_date()  # where it is seen: a worker's own is not
        source = replace(source, template_arguments=arguments)  # all workers write one day, where it is written
        plan = shards.plan_screening(info, vectors, layers, settings, shard_rows, max_rows)
        folder = Path(out).absolute()
        shards.begin_screening(folder, plan)
        marks = []
        n_with_further = 0
        for index, chunk in enumerate(shards.split_into_shards(rows, shard_rows)):
            mark = shards.mark_shard(chunk, plan)
            if index == 0:
                shards.check_same_data(folder, mark)
            if files.read_shard(files.shard_path(folder, index), mark) is None:
                _write_rows(folder / _WAITING / f"{index:08d}.json", chunk)
            marks.append(mark)
            n_with_further += shards.count_with_further(chunk, settings.turn)
        shutil.rmtree(folder / _PARQUET, ignore_errors=True)
        for _ in pool.compute_each([partial(_score, source, plan, folder, *one) for one in enumerate(marks)]):
            pass
    shards.finish_screening(folder, plan, marks, n_with_further)
    shutil.rmtree(folder / _WAITING, ignore_errors=True)
    return Screening.load(folder)


def _describe(source: ModelSource, vectors: dict[str, PersonaVector]) -> tuple[ModelInfo, str]:
    model = load_once(source)
    for vector in vectors.values():
        vector.check_model(model)
    arguments = read_settings(model.tokenizer).arguments
    rename_loaded(source, replace(source, template_arguments=arguments))  # with today's date: one model, not two
    return describe_model(model), arguments


def _score(source: ModelSource, plan: ScreenPlan, folder: Path, index: int, mark: str) -> None:
    """Score a shard in a worker."""
    model = load_once(source)
    found = describe_model(model).to_json()
    if found != plan.config["model"]:
        hint = "Give every machine the same files, and say `dtype`."
        raise ModelMismatchError.of("model", f"be the same on every machine, {plan.config['model']}", found, hint)
    path = files.shard_path(folder, index)
    table = files.read_shard(path, mark)
    if table is None:  # not there yet: neither from an earlier run nor from a worker that died after writing it
        rows = _read_rows(folder / _WAITING / f"{index:08d}.json")
        table = shards.make_shard(model, rows, plan)
        files.write_shard(path, table, shards.mark_shard(rows, plan))
    (folder / _PARQUET).mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata(None), folder / _PARQUET / f"{index:08d}.parquet")


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
