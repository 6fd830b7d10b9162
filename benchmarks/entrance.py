"""What a newcomer waits for: a clone of this repository in an empty folder, then one make target after the other.

    python benchmarks/entrance.py        # twenty minutes on two cores; nothing else should run

What is committed is what is timed. Writes ``docs/developing/entrance.json``, which README shows; packages come
from the package index, or from pip's cache where it has them.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

from persona_lens.files import write_json

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "developing" / "entrance.json"
# In this order: what comes first does the set-up. Most minutes that each may take.
LIMITS = {"setup": None, "figures": 15, "test": 6, "docs": None}


def main() -> None:
    """Time each target and write the minutes."""
    if subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT).returncode:
        raise SystemExit("Commit first: a clone holds what is committed.")
    busy = os.getloadavg()[0]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for target, limit in LIMITS.items():
            begun = time.monotonic()
            subprocess.run(["make", target], cwd=clone, stdout=subprocess.DEVNULL, check=True)
            minutes = (time.monotonic() - begun) / 60
            rows.append({"command": f"make {target}", "minutes": round(minutes, 1), "limit": limit})
            print(f"make {target}: {minutes:.1f} minutes{'' if limit is None else f', at most {limit}'}")
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "load before": round(busy, 2)}
    write_json(OUT, {"rows": rows, "machine": machine})


if __name__ == "__main__":
    main()
