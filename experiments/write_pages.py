"""Write into the documentation what the results in figures/ say, so that no number is copied by hand.

The example of a watched conversation is drawn by the package's module as it is now; its readings stay.

make docs
"""

from __future__ import annotations

import re
from pathlib import Path

from results.pages import render_pages

from persona_lens.live.static_page import read_module
from persona_lens.reproduction.pages import fill_page

_WATCHED = Path("docs/howto/watch_example.html")
_INLINED = re.compile(r'(?<=<script type="module">).*(?=\nshowPages\()', re.DOTALL)


def main() -> None:
    """Fill every part of every page."""
    for (page, part), text in render_pages(Path()).items():
        fill_page(Path(page), part, text)
        print(f"{page}: {part}")
    page_as_it_was = _WATCHED.read_text(encoding="utf-8")
    _WATCHED.write_text(_INLINED.sub(lambda _: read_module(), page_as_it_was), encoding="utf-8")


if __name__ == "__main__":
    main()
