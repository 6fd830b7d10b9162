"""The rules that keep the architecture's picture true, checked on the parsed source."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "persona_lens"
PAGE = ROOT / "docs" / "developing" / "architecture.md"

# A room is a top-level module or folder of persona_lens: what it is for, and what it may import of ours, itself aside.
# docs/developing/architecture.md shows this table; `python tests/test_architecture.py` writes it there.
FOUNDATION = {
    "checking",
    "ending",
    "errors",
    "checksums",
    "files",
    "hub",
    "progress_bars",
    "storage",
    "records",
    "run",
    "streams",
    "statistics",
    "plots",
    "texts",
}
MODELS = FOUNDATION | {"tensors", "traits", "models", "judges", "vectors"}
ROOMS = {
    "errors": ("every exception and warning", set()),
    "checking": ("types of arguments, checked at the call", {"errors"}),
    "checksums": ("checksums of JSON, tensors, files and folders", set()),
    "progress_bars": ("progress bars", {"checking"}),
    "streams": ("the name of every random stream", {"errors"}),
    "ending": ("how a command or a script ends: its exit status, and one line", {"errors"}),
    "texts": ("lists of texts, told from one text", {"errors"}),
    "files": ("files, written whole or not at all", {"errors"}),
    "hub": ("files on the Hugging Face hub, with their cards", {"errors"}),
    "storage": ("shards, kept and read back", {"checking", "errors", "checksums", "files"}),
    "records": ("the one codec of measured results", {"checking", "errors", "checksums", "files"}),
    "run": (
        "where long work is kept and shown, and who does it",
        {"checking", "errors", "progress_bars", "records", "storage"},
    ),
    "statistics": ("intervals, bootstraps, correlations, AUROC: numbers in, numbers out", {"checking", "errors"}),
    "plots": ("one file a result: values in, figures out", {"checking", "errors", "files", "statistics"}),
    "tensors": ("directions, and what can be done to activations: pure typed torch", {"checking", "errors"}),
    "traits": ("traits in words", {"checking", "errors", "files", "hub"}),
    "models": (
        "loading, text, engine and hooks: everything that touches TransformerLens",
        {"checking", "errors", "checksums", "hub", "progress_bars", "tensors"},
    ),
    "distributed": (
        "work on Ray processes, each with its own models",
        {"checking", "checksums", "errors", "models", "run"},
    ),
    "conversations": ("conversations from files and datasets", {"checking", "errors", "models"}),
    "judges": ("who scores responses", FOUNDATION | {"traits", "models"}),
    "vectors": ("PersonaVector, and how it is found", FOUNDATION | {"tensors", "traits", "models", "judges"}),
    "interventions": ("from vectors to hooks and `with` blocks", FOUNDATION | {"tensors", "models", "vectors"}),
    "diagnosis": (
        "does a model run as it should? each check with its cure",
        {"checking", "errors", "progress_bars", "records", "tensors", "models", "interventions"},
    ),
    "planning": ("what work on a model will take, from its configuration", {"checking", "errors", "records", "models"}),
    # The capability rooms stand side by side: never one on another.
    "evaluation": ("conditions, their scores, and what is made of them", MODELS | {"interventions"}),
    "monitoring": ("projections before a response, and of its tokens as they come", MODELS),
    "space": ("many characters side by side, and the axis from them to the assistant", MODELS),
    "finetuning": ("training with vectors, its data and its shift", MODELS | {"interventions", "conversations"}),
    "screening": ("training data screened", MODELS | {"conversations", "distributed"}),
    "reproduction": (
        "what the scripts in experiments/ share",
        MODELS | {"distributed", "ending", "interventions", "evaluation", "finetuning"},
    ),
    "live": ("a conversation that one watches: widget, page", MODELS | {"interventions", "evaluation", "monitoring"}),
    "cli": (
        "the command",
        MODELS
        | {
            "conversations",
            "diagnosis",
            "ending",
            "evaluation",
            "interventions",
            "live",
            "monitoring",
            "planning",
            "screening",
        },
    ),
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


@functools.cache
def list_imports(path: Path) -> tuple[Import, ...]:
    return tuple(_walk_imports(parse(path), path.relative_to(ROOT).parent.parts, function=""))


def _walk_imports(node: ast.AST, package: tuple[str, ...], function: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:  # what is under it never runs; what is beside it does
                yield from _walk_imports(other, package, function)
            continue
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


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def find_module(name: str, files: Mapping[str, Path]) -> str:
    """The file that an imported name leads to: the name itself, or the module that defines it; empty if not ours."""
    return name if name in files else name.rpartition(".")[0] if name.rpartition(".")[0] in files else ""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@each_source("persona_lens")
def test_every_room_imports_only_the_rooms_below_it(path: Path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return  # the public face gathers names from every room; the command's entrance is the command
    assert room in ROOMS, f"{room!r} is a new room: say in ROOMS what it is for and which others it may import"
    ours = {one.room for one in list_imports(path) if one.room}
    allowed = ROOMS[room][1] | {room}
    assert ours <= allowed, f"{room} may not import {sorted(ours - allowed)}"


def test_the_type_of_a_vector_needs_no_judge_and_no_sampling():
    rooms = {(one.room, one.module) for one in list_imports(PACKAGE / "vectors" / "persona_vector.py") if one.room}
    assert not [module for room, module in rooms if room == "judges" or ".engine." in module]


def test_no_file_imports_itself_through_others():
    """Imports inside functions count: a file that loads another while it runs needs it all the same."""
    files = {module_name(path): path for path in list_sources("persona_lens")}
    graph = {
        name: {target for one in list_imports(path) for target in [find_module(one.module, files)] if target} - {name}
        for name, path in files.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(error.args[1])}") from None


def test_a_circle_of_imports_would_be_found():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()


def test_no_room_imports_names_from_its_own_gathering():
    """`__init__` gathers a room's names for users; its own files import each other where things are defined."""
    for path in list_sources("persona_lens"):
        own = ".".join(path.relative_to(ROOT).parts[:2])
        if path.parent != PACKAGE and path.name != "__init__.py":
            found = [one.module for one in list_imports(path) if one.module.rpartition(".")[0] == own]
            names = [module for module in found if not (ROOT / module.replace(".", "/")).with_suffix(".py").exists()]
            folders = [module for module in names if not (ROOT / module.replace(".", "/")).is_dir()]
            assert not folders, f"{path.relative_to(ROOT)}: {folders}"


@each_source("persona_lens")
def test_figures_are_loaded_when_they_are_drawn_and_not_before(path: Path):
    if room_of(path) in ("plots", "cli", "reproduction"):
        return
    importers = {one.function for one in list_imports(path) if one.room == "plots"}
    assert importers <= {"plot"}, "plotly is loaded when a figure is drawn, not before"


@each_source("persona_lens/plots")
def test_a_plot_takes_values_and_imports_no_result(path: Path):
    assert {one.room for one in list_imports(path)} <= {"", "plots", "checking", "errors", "files", "statistics"}


def test_the_architecture_page_shows_the_table_of_rooms():
    assert render_table() in PAGE.read_text(encoding="utf-8"), "run: python tests/test_architecture.py"


def render_table() -> str:
    lines = ["| room | what is in it | may import |", "|---|---|---|"]
    for room, (purpose, allowed) in ROOMS.items():
        lines.append(f"| `{room}` | {purpose} | {', '.join(sorted(allowed)) or '–'} |")
    return "\n".join(lines)


@each_source("persona_lens")
def test_the_library_writes_no_figure(path: Path):
    if path == PACKAGE / "reproduction" / "figures.py":
        return  # for the scripts, which write theirs through it
    writers = {"write_html", "write_image", "write_images"}
    named = {
        node.attr if isinstance(node, ast.Attribute) else node.name
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute | ast.alias)
    }
    assert not named & writers, "only scripts write figures, through reproduction/figures.py"


@each_source("experiments")
def test_experiments_do_not_import_each_other(path: Path):
    scripts = {other.stem for other in (ROOT / "experiments").glob("*.py")}
    for found in list_imports(path):
        assert found.module.split(".")[0] not in scripts, "what two scripts share is in persona_lens/reproduction"


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
    ours = {"persona_lens", "experiments", "benchmarks", "results"} | {other.stem for other in path.parent.glob("*.py")}
    for name in {found.module.split(".")[0] for found in list_imports(path)} - ours - sys.stdlib_module_names:
        owners = {_normalize(owner) for owner in list_owners().get(name, [name])}
        assert owners & list_declared(), f"{name} (of {sorted(owners)}) is missing from pyproject's dependencies"


@functools.cache  # every file of the environment is looked at, which takes a third of a second
def list_owners() -> Mapping[str, list[str]]:
    return packages_distributions()


@functools.cache
def list_declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: packages for name, packages in project["optional-dependencies"].items() if name != "dev"}
    requirements = [*project["dependencies"], *chain.from_iterable(extras.values())]
    return {_normalize(re.split(r"[<>=!~\[; ]", requirement)[0]) for requirement in requirements}


def _normalize(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index("| room |"), page.index("\n\n", page.index("| room |"))
    PAGE.write_text(page[:start] + render_table() + page[end:], encoding="utf-8")
