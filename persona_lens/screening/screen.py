"""Screening a dataset shard by shard: streamed, resumable, with a line for every row that came."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sized
from pathlib import Path

from persona_lens.checking import checked
from persona_lens.conversations import read_conversations
from persona_lens.files import leaving_no_empty_folder
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import describe_model
from persona_lens.run import Run
from persona_lens.screening import files, shards
from persona_lens.screening.scores import ScreenSettings
from persona_lens.screening.screening import Screening
from persona_lens.screening.shards import Source
from persona_lens.vectors.persona_vector import PersonaVector


@checked
def screen(
    model: HookedModel,
    data: Source,
    vectors: Mapping[str, PersonaVector],
    out: str | Path,
    *,
    layers: Mapping[str, int],
    settings: ScreenSettings = ScreenSettings(),
    max_rows: int | None = None,
    shard_rows: int = 256,
    run: Run = Run(),
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
        settings: How.
        max_rows: Rows to read; None reads all. A later call may ask for more, and keeps what is there.
        shard_rows: Rows of a shard.
        run: Shows progress; what is finished is kept in ``out``.

    Returns:
        The scores, on disk.

    Raises:
        ModelMismatchError: A vector of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: No vector, names that ``layers`` lacks, no row that can be scored, or a folder that holds
            another screening or one of other data.
        HooksPresentError: The model carries hooks.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 6.

    Example:
        >>> import persona_lens as pl
        >>> found = pl.screen(model, "rows.jsonl", {"evil": vector}, "screened", layers={"evil": 15})  # doctest: +SKIP
        >>> found.measure("evil")  # doctest: +SKIP
    """
    shards.check_by_trait(vectors, layers)
    for vector in vectors.values():
        vector.check_model(model)
    plan = shards.plan_screening(describe_model(model), vectors, layers, settings, shard_rows, max_rows)
    check_unsteered(model)
    folder = Path(out)
    rows = itertools.islice(read_conversations(data, limits=settings.limits), max_rows)
    with leaving_no_empty_folder(folder):
        shards.begin_screening(folder, plan)
        marks: list[str] = []
        n_with_further = 0
        with run.progress("screening (rows)", _count_rows(data, max_rows)) as advance:
            for chunk in shards.split_into_shards(rows, shard_rows):
                path, mark = files.shard_path(folder, len(marks)), shards.mark_shard(chunk, plan)
                if not marks:
                    shards.check_same_data(folder, mark)
                if files.read_shard(path, mark) is None:
                    files.write_shard(path, shards.make_shard(model, chunk, plan, advance), mark)
                else:
                    advance(len(chunk))
                marks.append(mark)
                n_with_further += shards.count_with_further(chunk, settings.turn)
        shards.finish_screening(folder, plan, marks, n_with_further)
    return Screening.load(folder)


def _count_rows(data: Source, max_rows: int | None) -> int:
    """Return how many rows will come, 0 if only reading would tell."""
    n_rows = len(data) if isinstance(data, Sized) and not isinstance(data, str) else 0
    return min(n_rows, max_rows) if n_rows and max_rows else n_rows or max_rows or 0
