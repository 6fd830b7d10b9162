"""Write each figure as a page, from the results in figures/. Git holds results and PNGs, not the pages.

make html
python experiments/write_html.py --png      # the PNGs too; needs a Chrome or Chromium
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import results
import tyro

from persona_lens.reproduction.figures import Result, write_picture


def main(folder: Path = Path("figures"), png: bool = False) -> None:
    """Write the pages beside the results.

    Args:
        folder: Where the results are.
        png: Draw the PNGs anew too.
    """
    kinds = find_kinds()
    for path in sorted(folder.glob("*.json")):
        kind = kinds[json.loads(path.read_text(encoding="utf-8"))["format"]]
        for ending, figure in kind.load(path).write_pages(folder, path.stem).items():
            print(folder / f"{path.stem}{ending}.html")
            if png:
                write_picture(figure, folder, f"{path.stem}{ending}")


def find_kinds() -> dict[str, type[Result]]:
    """Return every kind of result that an experiment writes, by the name that its files begin with."""
    modules = [importlib.import_module(found.name) for found in pkgutil.iter_modules(results.__path__, "results.")]
    named = {name: value for module in modules for name, value in vars(module).items()}
    return {name: value for name, value in named.items() if isinstance(value, type) and issubclass(value, Result)}


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
