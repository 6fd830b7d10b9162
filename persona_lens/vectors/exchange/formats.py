"""The table of formats, and which of them a file is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from persona_lens.errors import InvalidArgumentError
from persona_lens.vectors.exchange.assistant_axis import read_assistant_axis, write_assistant_axis
from persona_lens.vectors.exchange.control_vectors import read_control_vector, write_control_vector
from persona_lens.vectors.exchange.directions import LayerDirections
from persona_lens.vectors.exchange.paper import read_paper_vector, write_paper_vector
from persona_lens.vectors.exchange.steering_vectors import STAND_IN, read_steering_vector, write_steering_vector
from persona_lens.vectors.exchange.torch_files import load_torch_file
from persona_lens.vectors.exchange.trait_interp import read_trait_interp, write_trait_interp
from persona_lens.vectors.persona_vector import PersonaVector, TokenPosition


@dataclass(frozen=True)
class VectorFormat:
    """How a program's files are read and written.

    Args:
        read: Takes a path, ``trait`` and, where it is not None, ``position``.
        write: Takes directions and a path; returns the layers that were left out.
    """

    read: Callable[..., LayerDirections]
    write: Callable[[LayerDirections, Path], tuple[int, ...]]


def _read_own(path: Path, *, trait: str | None = None, position: TokenPosition | None = None) -> LayerDirections:
    vector = PersonaVector.load(path)
    found = LayerDirections.of(vector if position is None else vector.at(position))
    if trait is None:
        return found
    return LayerDirections(trait, found.by_layer, found.n_layers, found.position, found.model, found.provenance)


def _write_own(directions: LayerDirections, path: Path) -> tuple[int, ...]:
    directions.to_vector().save(path)
    return ()


FORMATS: Mapping[str, VectorFormat] = {
    "persona-lens": VectorFormat(_read_own, _write_own),
    "gguf": VectorFormat(read_control_vector, write_control_vector),
    "paper": VectorFormat(read_paper_vector, write_paper_vector),
    "assistant-axis": VectorFormat(read_assistant_axis, write_assistant_axis),
    "steering-vectors": VectorFormat(read_steering_vector, write_steering_vector),
    "trait-interp": VectorFormat(read_trait_interp, write_trait_interp),
}
"""By the name that ``persona-lens convert`` takes."""
_SUFFIXES = {".safetensors": "persona-lens", ".gguf": "gguf"}


def guess_source(path: Path) -> str:
    """Return the format of a file or folder that is there.

    Raises:
        FileNotFoundError: Nothing is there.
        FileFormatError: A ``.pt`` file that cannot be read.
        InvalidArgumentError: It may be of several formats, or of none.
    """
    if path.is_dir():
        return "trait-interp"
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    if not path.is_file():
        raise FileNotFoundError(f"`SOURCE` must name an existing file or folder. Got {str(path)!r}.")
    if path.suffix == ".pt":
        return "paper" if path.stem.endswith("_diff") else _guess_content(path, load_torch_file(path, [STAND_IN]))
    raise _undecided("SOURCE", path, "--from")


def _guess_content(path: Path, content: Any) -> str:
    if isinstance(content, Mapping) and not {"axis", "vector"}.isdisjoint(content):
        return "assistant-axis"
    if isinstance(content, Tensor):  # both programs save bare ones, one row apart
        raise _undecided("SOURCE", path, "--from paper or --from assistant-axis")
    return "steering-vectors"


def guess_target(path: Path) -> str:
    """Return the format that a path to be written is meant for.

    Raises:
        InvalidArgumentError: Its name does not say.
    """
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    if path.suffix == ".pt" and path.stem.endswith("_diff"):
        return "paper"
    raise _undecided("TARGET", path, "--to")


def _undecided(parameter: str, path: Path, option: str) -> InvalidArgumentError:
    rule = "have a name that says its format: .safetensors, .gguf or, of the paper's code, _diff.pt"
    hint = f"Say which with {option}; formats: {', '.join(FORMATS)}."
    return InvalidArgumentError(f"`{parameter}` must {rule}. Got {str(path)!r}. {hint}")
