"""Write each figure as a page, from the results in figures/. Git holds results and PNGs, not the pages.

make html
python experiments/write_html.py --png      # the PNGs too; needs a Chrome or Chromium
"""

from __future__ import annotations

from pathlib import Path

import tyro
from results.kinds import load_result

from persona_lens.reproduction.figures import write_pictures


def main(folder: Path = Path("figures"), png: bool = False) -> None:
    """Write the pages beside the results.

    Args:
        folder: Where the results are.
        png: Draw the PNGs anew too.
    """
    figures = {}
    for path in sorted(folder.glob("*.json")):
        for ending, figure in load_result(path).write_pages(folder, path.stem).items():
            print(folder / f"{path.stem}{ending}.html")
            figures[f"{path.stem}{ending}"] = figure
    if png:
        write_pictures(figures, folder)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
