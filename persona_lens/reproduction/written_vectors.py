"""Vectors read from written answers, once for all scripts that take them."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from persona_lens.errors import FileFormatError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.run import Run
from persona_lens.traits.written import load_written_examples
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.written import hash_examples, read_persona_vector

_known: WeakKeyDictionary[HookedModel, dict[tuple[str, int | None], PersonaVector]] = WeakKeyDictionary()


def read_written_vector(
    model: HookedModel, trait: str, n_examples: int | None = None, shared: Run | None = None
) -> PersonaVector:
    """Read a trait's vector from the training half of its written examples, once a model: it is others' null too.

    Args:
        model: The model, unsteered.
        trait: A trait with written examples.
        n_examples: Most examples; None takes all.
        shared: Keeps it for other scripts, as ``arguments.share(model)`` does; None keeps it for this process.
    """
    known = _known.setdefault(model, {})
    if (trait, n_examples) not in known:
        known[trait, n_examples] = _read(model, trait, n_examples, shared)
    return known[trait, n_examples]


def _read(model: HookedModel, trait: str, n_examples: int | None, shared: Run | None) -> PersonaVector:
    examples = load_written_examples(trait, "training")[:n_examples]
    if shared is None or shared.store is None:
        return read_persona_vector(model, trait, examples)
    path = shared.part({"vector": trait, "examples": hash_examples(examples)}).folder / "written.safetensors"
    try:
        return PersonaVector.load(path)
    except (FileNotFoundError, FileFormatError):
        read_persona_vector(model, trait, examples).save(path)
    return PersonaVector.load(path)
