"""Write into the documentation what the results in figures/ say, so that no number is copied by hand.

make docs
"""

from __future__ import annotations

from pathlib import Path

from results.pages import render_pages

from persona_lens.reproduction.pages import fill_page


def main() -> None:
    """Fill every part of every page."""
    for (page, part), text in render_pages(Path()).items():
        fill_page(Path(page), part, text)
        print(f"{page}: {part}")


if __name__ == "__main__":
    main()
