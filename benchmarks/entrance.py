"""What a newcomer waits for: a clone of this repository in an empty folder, then one make target after the other.

    python benchmarks/entrance.py                    # 22 minutes on two cores; nothing else should run
    python benchmarks/entrance.py --only test docs   # the others' rows stay as they are

What is committed is what is timed. Writes ``docs/developing/entrance.json``, which README shows; packages come
from the package index, or from pip's cache where it has them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from persona_lens.files import write_json

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "developing" / "entrance.json"
# In this order: what comes first does the set-up. Most minutes that each may take.
LIMITS = {"setup": None, "figures": 15, "test": 6, "docs": None}


@dataclass(frozen=True)
class Arguments:
    """What can be chosen."""

    only: tuple[Literal["setup", "figures", "test", "docs"], ...] = ()
    """Targets to time, where not all are; the set-up comes first all the same, so that none of them does it."""


def main(arguments: Arguments) -> None:
    """Time each target and write the minutes."""
    if subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT).returncode:
        raise SystemExit("Commit first: a clone holds what is committed.")
    rows = {} if not arguments.only else {row["command"]: row for row in json.loads(OUT.read_text("utf-8"))["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # some tests ask as another user
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for target, limit in LIMITS.items():
            if target in (arguments.only or LIMITS):
                busy = os.getloadavg()[0]
                begun = time.monotonic()
                make(target, clone)
                minutes = (time.monotonic() - begun) / 60
                row = {"minutes": round(minutes, 1), "limit": limit, "load before": round(busy, 2)}
                rows[f"make {target}"] = {"command": f"make {target}", **row}
                print(f"make {target}: {minutes:.1f} minutes{'' if limit is None else f', at most {limit}'}")
            elif target == "setup":
                make(target, clone)
    machine = {"cores": os.cpu_count(), "processor": platform.machine()}
    write_json(OUT, {"rows": [rows[f"make {target}"] for target in LIMITS], "machine": machine})


def make(target: str, clone: Path) -> None:
    """Make a target; what it says is shown if it fails."""
    done = subprocess.run(["make", target], cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nmake {target} ended with status {done.returncode}.")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
