"""Every kind of result that an experiment writes."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import results
from persona_lens.reproduction.figures import Result


def load_result(path: Path) -> Result:
    """Load a result of whatever kind its file says."""
    return find_kinds()[json.loads(path.read_text(encoding="utf-8"))["format"]].load(path)


def find_kinds() -> dict[str, type[Result]]:
    """Return every kind of result by the name that its files begin with."""
    names = ["persona_lens.reproduction.layer_sweep"]  # other scripts read it
    names += [found.name for found in pkgutil.iter_modules(results.__path__, "results.")]
    named = [value for name in names for value in vars(importlib.import_module(name)).values()]
    kinds = [value for value in named if isinstance(value, type) and issubclass(value, Result)]
    return {kind.__name__: kind for kind in kinds}
