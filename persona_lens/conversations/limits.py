"""How much of a file is read at most, so that no file takes the machine's memory or its day."""

from __future__ import annotations

from dataclasses import dataclass, fields

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError


@checked
@dataclass(frozen=True)
class ReadLimits:
    """Bounds on what a file may ask of its reader; what lies beyond is a bad row, and reading goes on where it can.

    Args:
        max_row_bytes: Bytes of a row: of a line, of an entry of a JSON list (what stands between its commas), or of a
            Parquet row in memory.
        max_depth: Brackets open at once within a row of JSON.
        max_ratio: How many times a compressed file's size its contents may be; 64 MiB are read anyway. There reading
            ends.

    Raises:
        InvalidArgumentError: A limit that is no whole number of at least 1.

    Example:
        >>> ReadLimits(max_row_bytes=1 << 16)
        ReadLimits(max_row_bytes=65536, max_depth=100, max_ratio=200)
    """

    max_row_bytes: int = 1 << 22
    max_depth: int = 100
    max_ratio: int = 200

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidArgumentError.of(field.name, "be a whole number, at least 1", value)
