"""Persona vectors of the embedded model that come with the package."""

from __future__ import annotations

import difflib
from importlib.resources import as_file, files

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.vectors.persona_vector import PersonaVector

_FOLDER = files("persona_lens") / "data" / "vectors"
_SUFFIX = ".safetensors"


@checked
def list_ready_vectors() -> tuple[str, ...]:
    """Return the traits of which a vector of the embedded model comes with the package.

    Example:
        >>> "evil" in list_ready_vectors()
        True
    """
    return tuple(sorted(file.name.removesuffix(_SUFFIX) for file in _FOLDER.iterdir() if file.name.endswith(_SUFFIX)))


@checked
def load_vector(trait: str) -> PersonaVector:
    """Load a persona vector of the embedded model, SmolLM2-135M-Instruct.

    ``provenance["setting"]`` says at which layer and coefficient it was tried, how coherent responses were then and
    without it, and ``provenance["auroc"]`` how surely each judge told them from unsteered ones (estimate and 95 %
    interval), with what validation found of that judge for this trait. Of the vector read from written answers and the
    sampled one it is the better by these very numbers, which flatters them a little. Written by
    ``experiments/ready_vectors.py``.

    Args:
        trait: One of :func:`persona_lens.vectors.list_ready_vectors`.

    Raises:
        InvalidArgumentError: No vector of this trait comes with the package; the message says how to make one.

    Example:
        >>> vector = load_vector("evil")
        >>> vector
        PersonaVector('evil', response_mean, 30 layers × d_model 576, ...)
        >>> vector.provenance["setting"]["layer"]
        20
    """
    names = list_ready_vectors()
    if trait not in names:
        near = difflib.get_close_matches(trait, names, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        hint += "PersonaVector.load(path) reads a file; extract_persona_vector(model, trait) makes one."
        raise InvalidArgumentError.of("trait", f"be one of {', '.join(names)}", trait, hint)
    with as_file(_FOLDER / f"{trait}{_SUFFIX}") as path:
        return PersonaVector.load(path)
