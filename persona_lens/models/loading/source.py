"""From what a model was loaded, so that another process can load the same one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Backend = Literal["hooked", "bridge"]

DISK = "disk"
"""Weights stay in their files."""
MAP_WORDS = frozenset({"auto", "balanced", "balanced_low_0", "sequential", DISK})
"""Maps that are found where the model is loaded; all but the last are accelerate's words."""


@dataclass(frozen=True)
class ModelSource:
    """The arguments of :func:`persona_lens.load_model` that lead to the same weights and the same class again.

    On which device they lie is no part of it: another process takes the one that it has. How they are spread is.

    Args:
        model: Name, or absolute path of a folder or GGUF file.
        adapter: Absolute path of a PEFT adapter's folder; None without one.
        backend: ``hooked`` or ``bridge``; None leaves the choice to the loader.
        dtype: Of the weights.
        quantization: The configuration by which they were quantised while they were loaded, as JSON.
        template_arguments: What the chat template reads besides the messages, as JSON; as they stand when it is sent.
        chat: Hash of the chat template and of the tokens that end a response, as they stand when it is sent; the
            files' own must be the same.
        device_map: How the weights are spread over devices and the disk, as JSON; empty for one device.
    """

    model: str
    adapter: str | None = None
    backend: Backend | None = None
    dtype: str = "auto"
    quantization: str | None = None
    template_arguments: str = ""
    chat: str = ""
    device_map: str = ""


def write_map(device_map: Mapping[str, int | str | torch.device] | str | None) -> str:
    """Return a device map as JSON where another process needs it; empty where it names one device.

    Example:
        >>> write_map({"": "cuda:1"}), write_map("disk")
        ('', '"disk"')
    """
    if device_map is None:
        return ""
    if isinstance(device_map, str):
        return json.dumps(device_map) if device_map in MAP_WORDS else ""
    places = {name: place if isinstance(place, int) else str(place) for name, place in device_map.items()}
    return json.dumps(places) if len(set(places.values())) > 1 or DISK in places.values() else ""


def find_anywhere(path: str | Path) -> str:
    """Return a name as it is, and a path that leads somewhere as one that does so from every working directory."""
    there = Path(path).expanduser()
    return str(there.absolute()) if there.exists() else str(path)
