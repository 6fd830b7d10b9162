"""Write each result in figures/ anew, as results are written now. After a change of how, and without a run.

python experiments/rewrite_results.py
"""

from __future__ import annotations

from pathlib import Path

import tyro
from results.kinds import load_result


def main(folder: Path = Path("figures")) -> None:
    """Read and write the results.

    Args:
        folder: Where they are.
    """
    for path in sorted(folder.glob("*.json")):
        before = path.stat().st_size
        load_result(path).save(path)
        print(f"{path}: {before} → {path.stat().st_size} bytes")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
