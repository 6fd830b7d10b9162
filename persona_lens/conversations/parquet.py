"""Rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from persona_lens.conversations.limits import ReadLimits
from persona_lens.conversations.rows import Refusal
from persona_lens.errors import FileFormatError

_FEWEST_ROWS, _MOST_ROWS = 4, 256  # at a time
_N_HARMLESS = 1 << 26
_N_AT_ONCE = 1 << 25


def check_parquet(path: Path) -> None:
    """Refuse a file without a footer that can be read.

    Raises:
        FileFormatError: It has none.
    """
    try:
        pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError, RuntimeError) as error:
        hint = f"It cannot be read: {error}"
        raise FileFormatError.of("source", "be a whole Parquet file", str(path), hint) from error


def read_parquet(path: Path, wanted: Sequence[str], limits: ReadLimits) -> Iterator[Any]:
    """Yield rows, with the wanted columns alone if there is one of them; a refusal for what is no row.

    Raises:
        Refusal: The columns hold more than the file's size allows.
        pa.ArrowException, OSError: A damaged file.
    """
    with pq.ParquetFile(path) as file:
        columns = [column for column in wanted if column in file.schema_arrow.names]
        n_bytes = _sum_sizes(file.metadata)
        most = max(_N_HARMLESS, limits.max_ratio * path.stat().st_size)
        if sum(n_bytes) > most:
            detail = f"{sum(n_bytes)} bytes, more than {limits.max_ratio} times the file's size"
            raise Refusal("compressed too far", detail)
        # A group may hold one text for all its rows, which then comes as often as there are rows at a time.
        n_rows = min(_MOST_ROWS, max(_FEWEST_ROWS, _N_AT_ONCE // max([1, *n_bytes])))
        for batch in file.iter_batches(batch_size=n_rows, columns=columns or None):
            yield from _to_rows(batch, limits)


def _sum_sizes(metadata: pq.FileMetaData) -> list[int]:
    """Return each row group's bytes before compression."""
    return [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]


def _to_rows(batch: pa.RecordBatch, limits: ReadLimits) -> list[Any]:
    """Return a batch's rows; one by one where something is wrong with one of them."""
    try:
        if batch.nbytes <= limits.max_row_bytes:
            return list(batch.to_pylist())
    except (pa.ArrowException, ValueError, OverflowError):  # no UTF-8, or dates that Python does not have
        if batch.num_rows == 1:
            return [_read_alone(batch)]
    if batch.num_rows == 1:
        return [Refusal("row too large", f"{batch.nbytes} bytes")]
    return [row for i in range(batch.num_rows) for row in _to_rows(batch.slice(i, 1), limits)]


def _read_alone(row: pa.RecordBatch) -> Refusal:
    try:
        row.to_pylist()
    except UnicodeDecodeError as error:
        return Refusal("not UTF-8", error.object.decode("utf-8", errors="backslashreplace"))
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return Refusal("wrong type", str(error))
    raise AssertionError("called for a row that cannot be read")
