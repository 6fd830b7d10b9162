"""What several commands choose alike: the trait, its vector, where to steer, how responses are drawn."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from persona_lens.cli.arguments import App, Chat, Extract, Screen, Source, Steer, Sweep, Validate
from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.default import fit_reading_judge
from persona_lens.judges.judgement import Judge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import EMBEDDED_MODEL, describe_model, load_model
from persona_lens.run import Run
from persona_lens.storage import ShardStore, collect_versions
from persona_lens.traits.library import list_traits, load_trait
from persona_lens.traits.trait import Trait
from persona_lens.traits.written import Half, WrittenExample, list_written_traits, load_written_examples
from persona_lens.vectors.extraction import extract_persona_vector
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.ready import list_ready_vectors, load_vector
from persona_lens.vectors.tried import read_tried
from persona_lens.vectors.written import read_persona_vector

# As in the experiments' quick profile: cool enough for a model of 135 million parameters.
EMBEDDED_SAMPLING = Sampling(max_new_tokens=48, temperature=0.7)


@dataclass(frozen=True)
class Way:
    """How a question is steered."""

    vector: PersonaVector
    layer: int
    coefficient: float


@dataclass(frozen=True)
class Origin:
    """What a vector is made of, as the command's arguments say it.

    Args:
        name: The trait's name.
        trait: The trait; None where there are written answers alone.
        source: Whether the vector is read from written answers or from the model's own responses.
        examples: File of written answers of one's own; None for those that come with the package.
    """

    name: str
    trait: Trait | None
    source: Source
    examples: Path | None = None

    @property
    def is_bundled_written(self) -> bool:
        """Whether there are written answers that come with the package."""
        return self.examples is None and self.name in list_written_traits()

    @property
    def has_examples(self) -> bool:
        """Whether there are written answers at all."""
        return self.examples is not None or self.is_bundled_written

    @property
    def fingerprint(self) -> str:
        """Changes with all that the vector is made of."""
        written = [asdict(one) for one in self.load_examples("training")] if self.source == "written" else []
        parts = [self.name, self.source, self.trait.fingerprint if self.trait else None, written]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def load_examples(self, half: Half) -> tuple[WrittenExample, ...]:
        """Load half of the written answers."""
        return load_written_examples(self.examples or self.name, half)

    def require_trait(self) -> Trait:
        """Return the trait.

        Raises:
            InvalidArgumentError: There are written answers alone.
        """
        if self.trait is None:
            hint = "Give its .json file as --trait, and the answers as --examples."
            raise InvalidArgumentError.of("--trait", "have questions and a rubric", str(self.examples), hint)
        return self.trait


def choose_origin(name: str, examples: Path | None = None, source: Source | None = None) -> Origin:
    """Return what a vector is made of: written answers where there are some, unless another source is asked for.

    Every file is read, so that what is wrong is said before any model runs.

    Raises:
        InvalidArgumentError: No such trait; or written answers are asked for and there are none.
    """
    for option, path in (("--trait", name), ("--examples", examples)):
        if path is not None and str(path).endswith(".jsonl") and not os.path.isfile(path):
            raise InvalidArgumentError.of(option, "be an existing file of written answers", str(path))
    if name.endswith(".jsonl"):
        if examples is not None:
            raise InvalidArgumentError.of("--examples", "be left out where --trait has the answers", str(examples))
        if source == "sampled":
            hint = "Give its .json file."
            raise InvalidArgumentError.of("--trait", "be a trait, to sample under its instructions", name, hint)
        load_written_examples(Path(name), "training")
        return Origin(Path(name).stem, None, "written", Path(name))
    if examples is not None:
        for half in get_args(Half):
            load_written_examples(examples, half)
    trait = read_trait(name)
    is_written = examples is not None or trait.name in list_written_traits()
    if source == "written" and not is_written:
        rule = (
            f"be 'sampled' for a trait without written answers; there are some for {', '.join(list_written_traits())}"
        )
        raise InvalidArgumentError.of("--source", rule, source, "Give answers of your own as --examples FILE.jsonl.")
    if source == "sampled" and examples is not None:
        raise InvalidArgumentError.of("--examples", "be left out with --source sampled", str(examples))
    return Origin(trait.name, trait, source or ("written" if is_written else "sampled"), examples)


def list_read(arguments: Extract | Sweep) -> dict[str, Path | str]:
    """Return the files that a command reads, by the options that name them."""
    named = {f"--{name}": getattr(arguments, name, None) for name in ("trait", "examples", "vector", "model")}
    return {name: path for name, path in named.items() if path is not None and os.path.isfile(path)}


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
        raise InvalidArgumentError.of("--trait", f"be one of {', '.join(list_traits())}, or a .json file", name, hint)
    if not Path(name).is_file():
        raise InvalidArgumentError.of("--trait", "be a bundled trait's name or an existing file", name)
    return Trait.from_json(name)


def read_screened(name: str, folder: Path) -> tuple[str, Trait | PersonaVector]:
    """Return a trait's name with the trait, or with the vector that lies in the folder where that is all there is.

    Raises:
        InvalidArgumentError: Neither.
        FileFormatError: The vector's file is none.
    """
    if name in list_traits() or name.endswith(".json"):
        trait = read_trait(name)
        return trait.name, trait
    path = name_vector(folder, name)
    if os.path.isfile(path):
        return name, PersonaVector.load(path)
    kept = (one.stem.removeprefix("vector_") for one in folder.glob("vector_*.safetensors"))
    near = difflib.get_close_matches(name, [*list_traits(), *kept], n=1)
    hint = f"Did you mean {near[0]}?" if near else f"A vector of your own must lie at {path}."
    if "," in name:
        hint = "Give --trait once for each trait."
    if name.endswith(".jsonl"):
        own = name_vector(folder, Path(name).stem)
        hint = f"Read a vector from written answers first, `persona-lens extract --trait {name} --out {own}`, and give "
        hint += f"--trait {Path(name).stem} --vectors {folder}."
    rule = f"be one of {', '.join(list_traits())}, a .json file, or NAME of a vector_NAME.safetensors in --vectors"
    raise InvalidArgumentError.of("--trait", rule, name, hint)


def name_vector(folder: Path, trait: str) -> Path:
    """Return where a trait's vector lies in a folder of them."""
    return folder / f"vector_{trait}.safetensors"


def load(arguments: Steer | Chat | App | Extract | Sweep | Validate | Screen) -> HookedModel:
    """Load the model that a command's arguments name, with the template arguments that they give.

    Raises:
        InvalidArgumentError: The template arguments are no JSON object, or the chat template does not read one.
    """
    given = read_template_arguments(arguments.template_arguments)
    return load_model(arguments.model, template_arguments=given)


def read_template_arguments(given: str | None) -> dict[str, Any] | None:
    """Read ``--template-arguments``.

    Raises:
        InvalidArgumentError: No JSON object.
    """
    if given is None:
        return None
    try:
        arguments = json.loads(given)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        rule = "be one JSON object, such as '{\"enable_thinking\": false}'"
        raise InvalidArgumentError.of("--template-arguments", rule, given, "Quote it for the shell.")
    return arguments


def choose_sampling(model: HookedModel) -> Sampling:
    """Return how a model's own responses are drawn: the library's defaults, except for the embedded model."""
    return EMBEDDED_SAMPLING if describe_model(model).name == EMBEDDED_MODEL else Sampling()


def make_vector(model: HookedModel, origin: Origin, run: Run) -> PersonaVector:
    """Read written answers, or extract from the model's own responses."""
    if origin.source == "written":
        return read_persona_vector(model, origin.name, origin.load_examples("training"))
    return extract_persona_vector(model, origin.require_trait(), sampling=choose_sampling(model), run=run)


def make_judge(model: HookedModel, origin: Origin, run: Run) -> Judge | None:
    """Return the judge that answers of one's own are fitted to; None leaves it to the default."""
    if origin.examples is None:
        return None
    return fit_reading_judge(model, origin.require_trait(), origin.load_examples("training"), run)


@contextmanager
def keep_unfinished(folder: Path, config: Mapping[str, Any]) -> Iterator[Run]:
    """Keep finished shards in a folder until the work is done; then nothing is left of it.

    Args:
        folder: Removed at the end, unless another command is at work in it.
        config: What the work depends on.
    """
    store = ShardStore(folder, {**config, "versions": collect_versions()})
    yield Run(store)
    shutil.rmtree(store.folder, ignore_errors=True)
    with suppress(OSError):  # not empty
        folder.rmdir()


def find_vector(model: HookedModel, trait: Trait, folder: Path, say: Callable[[str], object] = print) -> PersonaVector:
    """Read a trait's vector from the folder, or make it and keep it there; say so, as it takes minutes."""
    path = name_vector(folder, trait.name)
    if path.exists():
        vector = PersonaVector.load(path)
        vector.check_model(model)
        if vector.provenance.get("trait", trait.fingerprint) != trait.fingerprint:
            rule, hint = f"hold a vector of {trait.name} as it is now", f"Remove {path.name}, or choose another folder."
            raise InvalidArgumentError.of("--vectors", rule, "one of another version of it", hint)
        return vector
    say(f"making the vector of {trait.name}; {path} will keep it")
    origin = Origin(trait.name, trait, "written" if trait.name in list_written_traits() else "sampled")
    with keep_unfinished(
        folder / "unfinished", {"trait": trait.fingerprint, "model": describe_model(model).to_json()}
    ) as run:
        vector = make_vector(model, origin, run)
        vector.save(path)
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
    if trait is not None and trait not in list_ready_vectors():
        near = difflib.get_close_matches(trait, list_ready_vectors(), n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        hint += "--vector FILE reads one of your own, which `persona-lens extract` makes."
        raise InvalidArgumentError.of("--trait", f"be one of {', '.join(list_ready_vectors())}", trait, hint)
    if path is not None and not path.is_file():
        rule = "be an existing file, from `persona-lens extract` or `sweep`"
        raise InvalidArgumentError.of("--vector", rule, str(path))
    vector = load_vector(trait) if trait is not None else PersonaVector.load(path or "")
    tried = read_tried(vector)
    chosen = tried.layer if layer is None else layer
    strength = tried.coefficient if coefficient is None else coefficient
    if chosen is None or strength is None:
        rule = "be given for a vector that was tried nowhere"
        middle = vector.model.n_layers // 2
        options = f"--layer {middle}" + (" --coefficient 1" if coefficient is None else "")
        hint = f"`persona-lens sweep` finds where to steer; {options} is a beginning."
        missing = "--layer" if chosen is None else "--coefficient"
        raise InvalidArgumentError.of(missing, rule, None, hint)
    return Way(vector, check_layer(chosen, vector.model.n_layers), float(strength))


def find_ways(arguments: Chat | App) -> dict[str, Way]:
    """Return each trait's vector with where it acts; the ready ones of the embedded model if none was asked for.

    Raises:
        InvalidArgumentError: No vectors for another model, two of one trait, or what :func:`find_way` refuses.
    """
    names = arguments.trait
    if not names and not arguments.vector:
        if arguments.model != EMBEDDED_MODEL:
            rule, hint = f"be given for another model than {EMBEDDED_MODEL}", "Make one: `persona-lens extract`."
            raise InvalidArgumentError.of("--vector", rule, None, hint)
        names = tuple(list_ready_vectors())
    # 0.0: how strongly is said later, on the page or in the chat.
    found = [find_way(name, None, arguments.layer, 0.0) for name in names]
    found += [find_way(None, path, arguments.layer, 0.0) for path in arguments.vector]
    ways = {one.vector.trait: one for one in found}
    if len(ways) < len(found):
        raise InvalidArgumentError.of("--vector", "be of different traits", [one.vector.trait for one in found])
    return ways
