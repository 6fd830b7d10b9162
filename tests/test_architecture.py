"""The rules that keep the architecture's picture true, checked on the parsed source."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "persona_lens"

# A room is a top-level module or folder of persona_lens. What each may import of ours, itself aside:
FLOOR = {"errors", "progress", "storage", "streams", "tensors", "traits", "models", "judges"}
ALLOWED = {
    "errors": set(),
    "progress": set(),
    "storage": {"errors"},
    "streams": set(),
    "tensors": {"errors"},
    "traits": {"errors"},
    "models": {"errors", "tensors"},
    "judges": {"errors", "storage", "streams", "tensors", "traits", "models"},
    "vectors": FLOOR,
    "ordinary": FLOOR | {"vectors"},
    "conversations": {"errors", "models"},
    "interventions": FLOOR | {"vectors", "ordinary"},
    # The capability modules stand side by side: never one on another.
    "sweep": FLOOR | {"vectors"},
    "steering": FLOOR | {"vectors", "ordinary", "interventions"},
    "tracing": FLOOR | {"vectors"},
    "monitoring": FLOOR | {"vectors", "ordinary"},
    "finetuning": FLOOR | {"vectors", "ordinary", "conversations", "interventions"},
    "screening": FLOOR | {"vectors", "conversations"},
    "capability": FLOOR | {"vectors"},
    "cli": FLOOR | {"vectors", "conversations", "screening", "plots"},
    # Results know their figures only inside `.plot()`; see test_only_plot_methods_import_plots.
    "plots": FLOOR | {"vectors", "sweep", "tracing", "monitoring", "finetuning", "screening", "capability"},
}
PICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


@dataclass(frozen=True)
class Import:
    """One imported module, and the innermost function that imports it (empty at module level)."""

    module: str
    function: str

    @property
    def room(self) -> str:
        """The room it leads to: ``models`` for ``persona_lens.models.hooks.sites``; empty if it is not ours."""
        package, _, rest = self.module.partition(".")
        return (rest or "__init__").split(".")[0] if package == "persona_lens" else ""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def list_imports(path: Path) -> list[Import]:
    return list(_walk_imports(parse(path), path.relative_to(ROOT).parent.parts, function=""))


def _walk_imports(node: ast.AST, package: tuple[str, ...], function: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, function)
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) - child.level + 1] if child.level else ()
            source = [*base, *filter(None, [child.module])]
            # `from a import b` may name a module b or something in module a; the longer name covers both.
            for alias in child.names:
                yield Import(".".join([*source, alias.name]), function)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk_imports(child, package, child.name)
        else:
            yield from _walk_imports(child, package, function)


def list_sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def each_source(*folders: str) -> pytest.MarkDecorator:
    paths = list_sources(*folders)
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(ROOT)) for path in paths])


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@each_source("persona_lens")
def test_every_room_imports_only_the_rooms_below_it(path: Path):
    room = room_of(path)
    if room == "__init__":
        return  # the public face gathers names from every room
    assert room in ALLOWED, f"{room!r} is a new room: say in ALLOWED which others it may import"
    ours = {found.room for found in list_imports(path) if found.room} - {room, "plots"}
    assert ours <= ALLOWED[room], f"{room} may not import {sorted(ours - ALLOWED[room])}"


@each_source("persona_lens")
def test_only_plot_methods_import_plots(path: Path):
    if room_of(path) in ("plots", "cli"):
        return
    importers = {found.function for found in list_imports(path) if found.room == "plots"}
    assert importers <= {"plot"}, "plotly is loaded when a figure is drawn, not before"


@each_source("persona_lens")
def test_the_library_writes_no_figure(path: Path):
    writers = {"write_html", "write_image", "write_images"}
    named = {
        node.attr if isinstance(node, ast.Attribute) else node.name
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute | ast.alias)
    }
    assert not named & writers, "only experiments/ writes figures"


@each_source("experiments")
def test_experiments_do_not_import_each_other(path: Path):
    scripts = {other.stem for other in list_sources("experiments") if not other.stem.startswith("_")}
    for found in list_imports(path):
        first = found.module.removeprefix("experiments.").split(".")[0]
        assert first not in scripts, f"{first} is a script; what two scripts share is in a module named _NAME"


@each_source("persona_lens", "experiments", "benchmarks", "tests")
def test_nothing_unpickles(path: Path):
    modules = {found.module.split(".")[0] for found in list_imports(path)}
    assert not modules & PICKLERS, "pickle runs whatever code a file holds; use safetensors, JSON or Arrow"
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if ast.unparse(node.func) == "torch.load":
            assert given.get("weights_only") == "True", f"line {node.lineno}: weights_only"
        assert given.get("allow_pickle", "False") == "False", f"line {node.lineno}: allow_pickle"


@each_source("persona_lens", "experiments", "benchmarks")
def test_every_imported_package_is_a_declared_dependency(path: Path):
    ours = {"persona_lens", "experiments", "benchmarks"} | {other.stem for other in path.parent.glob("*.py")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["ray"]]
    declared = {_normalize(re.split(r"[<>=!~\[; ]", requirement)[0]) for requirement in requirements}
    distributions = packages_distributions()
    for name in {found.module.split(".")[0] for found in list_imports(path)} - ours - sys.stdlib_module_names:
        owners = {_normalize(owner) for owner in distributions.get(name, [name])}
        assert owners & declared, f"{name} (of {sorted(owners)}) is missing from pyproject's dependencies"


def _normalize(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
