"""From what a model was loaded, so that another process can load the same one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Backend = Literal["hooked", "bridge"]


@dataclass(frozen=True)
class ModelSource:
    """The arguments of :func:`persona_lens.load_model` that lead to the same weights and the same class again.

    Where they lie in memory is no part of it: another process takes the device that it has.

    Args:
        model: Name, or absolute path of a folder or GGUF file.
        adapter: Absolute path of a PEFT adapter's folder; None without one.
        backend: ``hooked`` or ``bridge``; None leaves the choice to the loader.
        dtype: Of the weights.
        quantization: The configuration by which they were quantised while they were loaded, as JSON.
        template_arguments: What the chat template reads besides the messages, as JSON; as they stand when it is sent.
        chat: Hash of the chat template and of the tokens that end a response, as they stand when it is sent; the
            files' own must be the same.
    """

    model: str
    adapter: str | None = None
    backend: Backend | None = None
    dtype: str = "auto"
    quantization: str | None = None
    template_arguments: str = ""
    chat: str = ""


def find_anywhere(path: str | Path) -> str:
    """Return a name as it is, and a path that leads somewhere as one that does so from every working directory."""
    there = Path(path).expanduser()
    return str(there.absolute()) if there.exists() else str(path)
