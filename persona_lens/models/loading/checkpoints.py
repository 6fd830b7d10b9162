"""Where a name leads, and the configuration there: all that is known of a model before its weights are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers import AutoConfig

from persona_lens.errors import FileFormatError, ModelNotFoundError, PersonaLensError
from persona_lens.hub import reach
from persona_lens.models.loading import embedded
from persona_lens.models.loading.embedded import EMBEDDED_MODEL
from persona_lens.models.loading.process_wide import quiet

_MAX_NAME = 1000  # characters; a path of more is none
MAX_QUOTED = 200
"""Characters of another library's error."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model that a name leads to.

    Args:
        name: As it was given.
        source: What ``from_pretrained`` is told: a folder or a name of the hub.
        extra: How it is to read it.
        config: The Hugging Face configuration; None for a GGUF file, where it is as slow to read as all of it.
    """

    name: str
    source: str
    extra: dict[str, Any]
    config: Any | None

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.config is None

    @property
    def quantization(self) -> str | None:
        """How its weights are quantised in the files, in transformers' word for it; None if they are not."""
        config = getattr(self.config, "quantization_config", None)
        return None if config is None else name_method(config)


def find_checkpoint(name: str) -> Checkpoint:
    """Return the model that a name leads to; no weights are read.

    Args:
        name: As for :func:`load_model`.

    Raises:
        ModelNotFoundError: No such model.
        FileFormatError: A configuration that is damaged, or of no architecture that is known.
    """
    source, extra = _find_source(name)
    return Checkpoint(name, source, extra, None if "gguf_file" in extra else _read_config(name, source, extra))


def read_config(name: str) -> Any:
    """Return a model's Hugging Face configuration, from wherever the name points; no weights are read.

    Args:
        name: As for :func:`load_model`.

    Raises:
        ModelNotFoundError, FileFormatError: As for :func:`find_checkpoint`.
    """
    return _read_config(name, *_find_source(name))


def name_method(quantization_config: Any) -> str:
    """Return transformers' word for how weights are quantised: ``bitsandbytes``, ``torchao`` and so on."""
    is_mapping = isinstance(quantization_config, Mapping)
    method = quantization_config.get("quant_method", "unnamed") if is_mapping else quantization_config.quant_method
    return str(getattr(method, "value", method))


def _read_config(name: str, source: str, extra: dict[str, Any]) -> Any:
    try:
        with quiet():
            return AutoConfig.from_pretrained(source, trust_remote_code=False, **extra)
    except OSError as error:
        why = "No such folder here, and the Hugging Face hub does not have it or is out of reach."
        raise not_found(name, why) from error
    except Exception as error:  # the reader of configurations raises whatever it stumbles over
        raise damaged(name, error) from error


def _find_source(name: str) -> tuple[str, dict[str, Any]]:
    """Return what ``from_pretrained`` is told for a name: folder or hub name, and how to read it.

    Raises:
        ModelNotFoundError: A name that is no folder, file or hub name.
    """
    path = Path(name).expanduser()
    extra: dict[str, Any] = {}
    if name == EMBEDDED_MODEL:
        source = str(embedded.prepare_embedded_model())
    elif os.path.isfile(path) and path.suffix.lower() == ".gguf":
        source, extra["gguf_file"] = str(path.parent), path.name
    else:
        source = str(path) if os.path.isdir(path) else name
        looks_local = path.suffix.lower() == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1
        if not name.strip() or len(name) > _MAX_NAME or os.path.isfile(path):
            raise not_found(name, "That is no name, or a file of another kind.")
        if not os.path.isdir(path) and looks_local:
            raise not_found(name, "There is no such file or folder.")
        if os.path.isdir(path) and not (path / "config.json").is_file():
            why = "The folder has no config.json. Is it a PEFT adapter? Then load_model(BASE, adapter=FOLDER)."
            raise not_found(name, why)
        if not os.path.isdir(path):
            extra["local_files_only"] = not reach(constants.ENDPOINT)
    return source, extra


def damaged(name: str, error: Exception) -> PersonaLensError:
    """Return the error of files that no library reads."""
    hint = f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_QUOTED]}. Get the files again."
    return FileFormatError.of("model", "name a whole model of a known architecture", name, hint)


def not_found(name: str, why: str) -> PersonaLensError:
    """Return the error of a name that leads nowhere."""
    rule = f"be {EMBEDDED_MODEL!r}, a Hugging Face name such as 'Qwen/Qwen2.5-7B-Instruct', a folder or a GGUF file"
    hint = f"{why} For the bundled model: load_model({EMBEDDED_MODEL!r})."
    return ModelNotFoundError.of("model", rule, name, hint)
