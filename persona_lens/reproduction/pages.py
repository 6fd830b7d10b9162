"""Pages of the documentation whose numbers a script writes."""

from __future__ import annotations

from pathlib import Path

from persona_lens.errors import FileFormatError
from persona_lens.files import write_bytes_atomically


def fill_page(page: Path, part: str, text: str) -> None:
    """Put a text between ``<!-- part -->`` and ``<!-- /part -->`` of a page; what stood there goes.

    Args:
        page: A Markdown file.
        part: The markers' name.
        text: Markdown.

    Raises:
        FileFormatError: The page lacks one of the markers.
    """
    start, end = f"<!-- {part} -->\n", f"<!-- /{part} -->\n"
    content = page.read_text(encoding="utf-8")
    before, found, rest = content.partition(start)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise FileFormatError(f"`page` must hold {start.strip()} and {end.strip()}. Got {page}, which does not.")
    write_bytes_atomically(page, (before + start + text.rstrip("\n") + "\n" + end + after).encode())
