"""What several commands choose alike: the trait, its vector, where to steer, how responses are drawn."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.sampling import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import EMBEDDED_MODEL, describe_model
from persona_lens.run import Run
from persona_lens.storage import ShardStore, collect_versions
from persona_lens.traits.library import list_traits, load_trait
from persona_lens.traits.trait import Trait
from persona_lens.traits.written import list_written_traits, load_written_examples
from persona_lens.vectors.extraction import extract_persona_vector
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.ready import list_ready_vectors, load_vector
from persona_lens.vectors.written import read_persona_vector

Source = Literal["written", "sampled"]
# As in the experiments' quick profile: cool enough for a model of 135 million parameters.
EMBEDDED_SAMPLING = Sampling(max_new_tokens=48, temperature=0.7)


@dataclass(frozen=True)
class Way:
    """How a question is steered."""

    vector: PersonaVector
    layer: int
    coefficient: float


def read_trait(name: str) -> Trait:
    """Load a bundled trait, or one's own from a JSON file.

    Raises:
        InvalidArgumentError: Neither.
    """
    if name in list_traits():
        return load_trait(name)
    if not name.endswith(".json"):
        near = difflib.get_close_matches(name, list_traits(), n=1)
        hint = f"Did you mean {near[0]}?" if near else "A trait of your own is the path of its .json file."
        if "," in name:
            hint = "Give --trait once for each trait."
        if name.endswith(".jsonl"):
            hint = "Written answers are read in Python: pl.traits.load_written_examples, pl.read_persona_vector."
        raise InvalidArgumentError.of("--trait", f"be one of {', '.join(list_traits())}, or a .json file", name, hint)
    if not Path(name).is_file():
        raise InvalidArgumentError.of("--trait", "be a bundled trait's name or an existing file", name)
    return Trait.from_json(name)


def choose_sampling(model: HookedModel) -> Sampling:
    """Return how a model's own responses are drawn: the library's defaults, except for the embedded model."""
    return EMBEDDED_SAMPLING if describe_model(model).name == EMBEDDED_MODEL else Sampling()


def choose_source(trait: Trait, asked: Source | None = None) -> Source:
    """Return the source that is asked for; else written answers where there are some.

    Raises:
        InvalidArgumentError: Written answers are asked for and there are none.
    """
    written = list_written_traits()
    if asked == "written" and trait.name not in written:
        rule = f"be 'sampled' for a trait without written answers; there are some for {', '.join(written)}"
        raise InvalidArgumentError.of("--source", rule, asked)
    return asked or ("written" if trait.name in written else "sampled")


def make_vector(model: HookedModel, trait: Trait, source: Source, run: Run) -> PersonaVector:
    """Read written answers, or extract from the model's own responses."""
    if source == "written":
        return read_persona_vector(model, trait.name, load_written_examples(trait.name, "training"))
    return extract_persona_vector(model, trait, sampling=choose_sampling(model), run=run)


def find_vector(model: HookedModel, trait: Trait, folder: Path, say: Callable[[str], object] = print) -> PersonaVector:
    """Read a trait's vector from the folder, or make it and keep it there; say so, as it takes minutes."""
    path = folder / f"vector_{trait.name}.safetensors"
    if path.exists():
        vector = PersonaVector.load(path)
        vector.check_model(model)
        if vector.provenance.get("trait", trait.fingerprint) != trait.fingerprint:
            rule, hint = f"hold a vector of {trait.name} as it is now", f"Remove {path.name}, or choose another folder."
            raise InvalidArgumentError.of("--vectors", rule, "one of another version of it", hint)
        return vector
    say(f"making the vector of {trait.name}; {path} will keep it")
    config = {"trait": trait.fingerprint, "model": asdict(describe_model(model)), "versions": collect_versions()}
    store = ShardStore(folder / "unfinished", config)
    vector = make_vector(model, trait, choose_source(trait), Run(store))
    vector.save(path)
    shutil.rmtree(store.folder, ignore_errors=True)  # nothing is kept of a vector that is read
    with suppress(OSError):  # not empty: another command is at work on another trait
        store.folder.parent.rmdir()
    return vector


def find_way(
    trait: str | None, path: Path | None = None, layer: int | None = None, coefficient: float | None = None
) -> Way:
    """Return the vector of a file or the ready one of a trait, with the setting it was tried at where none is given.

    No model is needed: what is wrong is said before one is loaded.

    Raises:
        InvalidArgumentError: Neither or both of trait and file; or a vector that says nothing of where to steer.
    """
    if (trait is None) == (path is None):
        rule = f"be given, or --vector FILE, not both; ready ones: {', '.join(list_ready_vectors())}"
        raise InvalidArgumentError.of("--trait", rule, trait)
    if trait is not None and trait in list_traits() and trait not in list_ready_vectors():
        rule = f"have a ready vector: {', '.join(list_ready_vectors())}"
        hint = f"Make one: `persona-lens sweep --trait {trait} --out sweep`."
        raise InvalidArgumentError.of("--trait", rule, trait, hint)
    if path is not None and not path.is_file():
        rule = "be an existing file, from `persona-lens extract` or `sweep`"
        raise InvalidArgumentError.of("--vector", rule, str(path))
    vector = load_vector(trait) if trait is not None else PersonaVector.load(path or "")
    tried = vector.provenance.get("setting", {})
    chosen = tried.get("layer") if layer is None else layer
    strength = tried.get("coefficient") if coefficient is None else coefficient
    if chosen is None or strength is None:
        rule = "be given for a vector that was tried nowhere"
        middle = vector.model.n_layers // 2
        hint = f"`persona-lens sweep` finds where to steer; --layer {middle} --coefficient 1 is a beginning."
        missing = "--layer" if chosen is None else "--coefficient"
        raise InvalidArgumentError.of(missing, rule, None, hint)
    return Way(vector, check_layer(chosen, vector.model.n_layers), float(strength))
