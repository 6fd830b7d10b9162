"""What ``import persona_lens`` gives, and what it costs."""

import __future__

import subprocess
import sys
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


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def is_plumbing(value: object) -> bool:
    # Submodules become attributes by being imported, `annotations` by the future import.
    return isinstance(value, ModuleType | __future__._Feature)


def test_the_public_names_are_those_of_all():
    attributes = {name: value for name, value in vars(persona_lens).items() if not name.startswith("_")}
    defined = {name for name, value in attributes.items() if not is_plumbing(value)}
    assert defined == {name for name in persona_lens.__all__ if not is_plumbing(getattr(persona_lens, name))}


def test_no_public_name_is_listed_twice():
    assert len(persona_lens.__all__) == len(set(persona_lens.__all__))


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_a_promised_name_is_public(name: str):
    assert name in persona_lens.__all__


@pytest.mark.parametrize("name", sorted(persona_lens.__all__))
def test_a_public_name_is_documented(name: str):
    assert getattr(persona_lens, name).__doc__


def test_importing_prints_nothing():
    done = run_python("import persona_lens")
    assert (done.stdout, done.stderr) == ("", "")


def test_importing_takes_under_three_seconds_beyond_torch_and_transformer_lens():
    # Processor time, so that a busy machine does not matter; the better of two, as the first may compile.
    code = (
        "import time, torch, transformer_lens, transformer_lens.model_bridge\n"
        "start = time.process_time()\n"
        "import persona_lens\n"
        "print(time.process_time() - start)"
    )
    seconds = min(float(run_python(code).stdout) for _ in range(2))
    assert seconds < MAX_IMPORT_SECONDS
