"""The benchmarks' ratios as a table."""

from __future__ import annotations

import json
from pathlib import Path

# What a reader asks first stands first; what is not named here follows.
_ORDER = (
    "limits", "sampling", "extraction", "sweep", "memory", "judging", "hooks", "finetuning", "screening",
)  # fmt: skip


def benchmarks_to_markdown(folder: Path) -> str:
    """Write every benchmark's ratios, medians over rounds with their range."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8"))["rows"] for path in sorted(folder.glob("*.json"))}
    names = [*(name for name in _ORDER if name in found), *(name for name in found if name not in _ORDER)]
    lines = ["| work | ratio: median (range) | target |", "|---|---|---|"]
    for row in (row for name in names for row in found[name]):
        ratio = row["ratio"]
        shown = f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
        lines.append(f"| {row['what']} | {shown} | {row['target']} |")
    return "\n".join(lines)
