"""Let the notebooks open in Colab with one click, once they have an address.

    .venv/bin/python .ci/colab.py OWNER/REPOSITORY

Each gets a badge below its title and a first cell that installs the released package where it runs in Colab. Done when
a version is on the package index, not before: until then that name is nobody's, and what is installed could be
anybody's.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

from persona_lens.models.loading.embedded import INSTALL

ROOT = Path(__file__).resolve().parents[1]
TAG = "colab"
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
EXTRAS = "embeddings,widget"


def main(arguments: list[str]) -> None:
    """Write the badges; a repository that has moved gets them anew."""
    if len(arguments) != 1 or not re.fullmatch(r"[\w-]+/[\w.-]+", arguments[0]):
        raise SystemExit(f"Name the repository on GitHub as OWNER/REPOSITORY. Got {' '.join(arguments) or 'nothing'}.")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        path.write_text(add_colab(text, path.relative_to(ROOT).as_posix(), arguments[0], version), encoding="utf-8")
        print(path.relative_to(ROOT))


def add_colab(text: str, path: str, repository: str, version: str) -> str:
    """Return a notebook with badge and first cell, in place of those that it may have."""
    notebook = json.loads(text)
    title, *others = (cell for cell in notebook["cells"] if TAG not in cell["metadata"].get("tags", ()))
    heading, *lines = re.sub(rf"\n\n{re.escape(BADGE)}\S*", "", "".join(title["source"])).split("\n")
    address = f"https://colab.research.google.com/github/{repository}/blob/main/{path}"
    title["source"] = split("\n".join([heading, "", f"{BADGE}({address})", *lines]))
    install = f"""\
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "persona-lens[{EXTRAS}]=={version}"
    %{INSTALL.removeprefix("python -m ")}"""
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": TAG,
        "metadata": {"tags": [TAG]},
        "outputs": [],
        "source": split(install),
    }
    notebook["cells"] = [title, cell, *others]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def split(source: str) -> list[str]:
    """Return a cell's lines as a notebook file holds them."""
    return source.splitlines(keepends=True)


if __name__ == "__main__":
    main(sys.argv[1:])
