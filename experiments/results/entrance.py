"""What a newcomer waits for, as a table."""

from __future__ import annotations

import json
from pathlib import Path

_DOES = {
    "make setup": "environment, locked packages, the model's weights",
    "make figures": "a first look at the layer sweeps of three traits and at the fine-tuning shift, with few questions "
    "each, into `figures/brief/`; the published figures are `--profile quick` of the same scripts",
    "make test": "the quick tests; `make test-all` runs the slow ones too",
    "make docs": "the numbers of these pages, from the results in `figures/`; then the site, into `site/`",
}


def entrance_to_markdown(path: Path) -> str:
    """Write what each make target does, and the minutes that it took in a fresh clone."""
    found = json.loads(path.read_text(encoding="utf-8"))
    cores = found["machine"]["cores"]
    head = [f"| command | does | minutes on {cores} cores |", "|---|---|---|"]
    rows = (f"| `{row['command']}` | {_DOES[row['command']]} | {row['minutes']:.1f} |" for row in found["rows"])
    return "\n".join([*head, *rows])
