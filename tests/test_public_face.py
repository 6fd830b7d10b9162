"""What ``import persona_lens`` gives, and what it costs."""

import __future__

import ast
import importlib
import importlib.metadata
import inspect
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

import persona_lens

# Names that notebooks and other code rely on: removing one breaks them.
PROMISED = {
    "PersonaVector",
    "Trait",
    "cache_residual_stream",
    "extract_persona_vector",
    "load_model",
    "load_trait",
    "project",
    "sweep_layers",
}
MAX_IMPORT_SECONDS = 3.0
MAX_NAMES = 44
MAX_PARAMETERS = 10
ROOMS = sorted(name for name in persona_lens.__all__ if isinstance(getattr(persona_lens, name), ModuleType))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def is_plumbing(value: object) -> bool:
    # Submodules become attributes by being imported, `annotations` by the future import.
    return isinstance(value, ModuleType | __future__._Feature)


def test_the_public_names_are_those_of_all():
    listed = {name for name in persona_lens.__all__ if not is_plumbing(getattr(persona_lens, name))}
    attributes = {name: value for name, value in vars(persona_lens).items() if not name.startswith("_")}
    defined = {name for name, value in attributes.items() if not is_plumbing(value)}
    assert defined == listed - {"__version__"}
    assert sorted(dir(persona_lens)) == sorted(persona_lens.__all__)


def test_type_checkers_see_what_is_imported_at_run_time():
    source = ast.parse(Path(persona_lens.__file__).read_text(encoding="utf-8"))
    (checked,) = [node for node in source.body if isinstance(node, ast.If)]
    seen = {(one.name, node.module) for node in checked.body for one in node.names}
    assert {(name, f"persona_lens.{home}") for name, home in persona_lens._HOMES.items()} <= seen
    assert {name for name, _ in seen} == set(persona_lens.__all__) - {"__version__", "plots"}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'steeer'"):
        persona_lens.steeer  # noqa: B018


def test_the_package_alone_loads_no_model_library():
    code = "import sys, persona_lens\nprint([one for one in ('torch', 'transformers', 'numpy') if one in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"


def test_no_public_name_is_listed_twice():
    assert len(persona_lens.__all__) == len(set(persona_lens.__all__))


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_promised_name_is_public(name: str):
    assert name in persona_lens.__all__


def test_every_public_name_is_documented():
    named = (inspect.isclass, inspect.isfunction)
    found = {name: value for name, value in list_public().items() if any(is_kind(value) for is_kind in named)}
    assert not [name for name, value in found.items() if not value.__doc__]


def list_public() -> dict[str, object]:
    """Every public name: those at the top, and those that the rooms gather."""
    found = {name: getattr(persona_lens, name) for name in persona_lens.__all__}
    for room in ROOMS:
        module = importlib.import_module(f"persona_lens.{room}")
        found |= {f"{room}.{name}": getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: value for name, value in found.items() if not isinstance(value, ModuleType)}


def list_types(annotation: object) -> set[type]:
    """This package's classes that an annotation names, however deep."""
    parts = set().union(*map(list_types, typing.get_args(annotation)), set())
    is_ours = isinstance(annotation, type) and annotation.__module__.startswith("persona_lens.")
    return parts | ({annotation} if is_ours else set())


def hints(value: object) -> dict[str, object]:
    """The annotations, resolved; those imported for type checkers alone by their public names."""
    public = {one.__name__: one for one in list_public().values() if inspect.isclass(one)}
    names = public | {"Figure": object, "ColouredTokens": object}
    own = vars(sys.modules[value.__module__])
    return typing.get_type_hints(value, None if inspect.isclass(value) else names | own, names)


def list_signatures(value: object) -> list[object]:
    if not inspect.isclass(value):
        return [value]
    methods = [one for name, one in inspect.getmembers(value, inspect.isroutine) if not name.startswith("_")]
    return [value, *(one for one in methods if (getattr(one, "__module__", None) or "").startswith("persona_lens."))]


def test_forty_names_stand_at_the_top_and_the_rest_in_rooms():
    assert len(persona_lens.__all__) - len(ROOMS) <= MAX_NAMES


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_gathers_its_public_names(room: str):
    module = importlib.import_module(f"persona_lens.{room}")
    assert module.__doc__
    assert all(hasattr(module, name) for name in getattr(module, "__all__", ()))


def test_every_type_that_a_public_signature_names_is_public():
    public = list_public()
    exported = {id(value) for value in public.values()}
    hidden: dict[str, list[str]] = {}
    for name, value in public.items():
        for one in list_signatures(value) if inspect.isclass(value) or inspect.isfunction(value) else ():
            for found in set().union(*map(list_types, hints(one).values()), set()):
                if id(found) not in exported and not found.__name__.startswith("_"):
                    hidden.setdefault(f"{found.__module__}.{found.__name__}", []).append(name)
    assert not hidden


def test_no_public_function_takes_more_than_ten_parameters():
    functions = {name: value for name, value in list_public().items() if inspect.isfunction(value)}
    counts = {name: len(inspect.signature(value).parameters) for name, value in functions.items()}
    # These two load their models themselves, and take what load_model takes of it.
    loading = {"plan_prevention", "finetuning.plan_prevention", "screening.screen_on_ray"}
    assert {name: count for name, count in counts.items() if count > MAX_PARAMETERS + 2 * (name in loading)} == {}


def test_the_version_is_the_packages():
    assert persona_lens.__version__ == importlib.metadata.version("persona-lens")


def test_importing_prints_nothing():
    done = run_python("import persona_lens")
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
def test_importing_takes_under_three_seconds_beyond_torch_and_transformer_lens():
    # Processor time, so that a busy machine does not matter; a second try, as the first may compile.
    code = (
        "import time, torch, transformer_lens, transformer_lens.model_bridge\n"
        "start = time.process_time()\n"
        "import persona_lens\n"
        "[getattr(persona_lens, name) for name in persona_lens.__all__ if name != 'plots']\n"
        "print(time.process_time() - start)"
    )
    assert any(float(run_python(code).stdout) < MAX_IMPORT_SECONDS for _ in range(2))
