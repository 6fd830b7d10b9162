"""The command ``persona-lens``: screening for people who will not write Python."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from persona_lens.conversations import read_conversations
from persona_lens.errors import InvalidArgumentError, PersonaLensError, describe_violation
from persona_lens.models.loading import EMBEDDED_MODEL, load_model
from persona_lens.models.sites import check_layer
from persona_lens.plots.screening import report_screening
from persona_lens.progress import show_progress
from persona_lens.screening.scores import ScreenSettings
from persona_lens.screening.screen import screen
from persona_lens.screening.splitting import split_rows
from persona_lens.storage import write_bytes_atomically
from persona_lens.traits.library import list_traits, load_trait
from persona_lens.traits.trait import Trait
from persona_lens.vectors import PersonaVector, extract_persona_vector

ABOVE_LIMIT = 3


@dataclass(frozen=True)
class Screen:
    """Screen conversations for persona traits before anyone trains on them.

    Reads DATA, lets the model answer every prompt itself, and measures how far the answers in the data lie from its
    own along each trait's vector (projection difference). Writes scores of every row, a report.html, and with --clean
    also kept.jsonl and held.jsonl. Killed at any point, the same command goes on where it was.

    Exit status: 0 done; 3 a trait's projection difference is surely above --fail-above; 2 a wrong argument or file.

    Examples:
      persona-lens screen chats.jsonl --trait evil --trait sycophancy --out screened
      persona-lens screen chats.jsonl.zst --trait evil --out screened --clean trusted.jsonl
      persona-lens screen chats.parquet --trait evil --out screened --max-rows 2000 --fail-above 0.1
    """

    data: Annotated[str, tyro.conf.Positional]
    """JSONL (also .gz, .zst), JSON or Parquet file with `messages` or ShareGPT's `conversations`; or a Hub name (its
    split `train`)."""
    trait: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Bundled trait's name, or path of a trait's JSON file; may be repeated."""
    out: Path
    """Folder for everything that is written."""
    model: str = EMBEDDED_MODEL
    """The model that is to be trained: bundled, Hugging Face name, folder or GGUF file."""
    vectors: Path | None = None
    """Folder with vector_TRAIT.safetensors; a vector that is not there is extracted, which takes minutes, and kept. A
    vector is known by its trait's name: after editing a trait, remove its vector."""
    layer: int | None = None
    """Zero-based block index of the projections; the middle one if left out."""
    clean: str | None = None
    """Data that are called clean: a row above their 95th percentile on any trait is held back."""
    quantile: float = 0.95
    """The percentile, as a fraction."""
    max_rows: int | None = None
    """Read only so many rows."""
    turn: Literal["first", "last"] = "first"
    """Which answer of a longer conversation counts."""
    fail_above: float | None = None
    """Exit with 3 if a trait's whole interval lies above this many lengths of its vector."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    chosen = tyro.extras.subcommand_cli_from_dict({"screen": Screen}, prog="persona-lens", args=arguments)
    try:
        status = run(chosen)
    except (PersonaLensError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        status = 2
    sys.exit(status)


def run(arguments: Screen) -> int:
    """Screen, split, report; return the exit status."""
    if not arguments.trait:
        print(f"--trait is missing: one of {', '.join(list_traits())}, or a file.", file=sys.stderr)
        return 2
    traits = [Trait.from_json(name) if name.endswith(".json") else load_trait(name) for name in arguments.trait]
    # Before minutes of work: the files open, and the numbers are possible.
    for source in filter(None, (arguments.data, arguments.clean)):
        read_conversations(source)
    if not 0 < arguments.quantile < 1:
        raise InvalidArgumentError(describe_violation("--quantile", "be in (0, 1)", arguments.quantile))
    if arguments.max_rows is not None and arguments.max_rows < 1:
        raise InvalidArgumentError(describe_violation("--max-rows", "be at least 1", arguments.max_rows))
    model: Any = load_model(arguments.model)
    layer = check_layer(model.cfg.n_layers // 2 if arguments.layer is None else arguments.layer, model.cfg.n_layers)
    folder = arguments.vectors or arguments.out / "vectors"
    vectors = {trait.name: find_vector(model, trait, folder) for trait in traits}
    layers = dict.fromkeys(vectors, layer)
    settings = ScreenSettings(turn=arguments.turn)

    def screen_into(data: str, name: str) -> Any:
        return screen(
            model, data, vectors, arguments.out / name, layers=layers, settings=settings, max_rows=arguments.max_rows,
            progress=show_progress,
        )  # fmt: skip

    thresholds: dict[str, float] = {}
    held: dict[str, int] = {}
    if arguments.clean is not None:
        clean = screen_into(arguments.clean, "clean")
        thresholds = {trait: clean.threshold(trait, arguments.quantile) for trait in vectors}
    found = screen_into(arguments.data, "scores")
    if thresholds:
        split = split_rows(
            found, arguments.data, thresholds, arguments.out / "kept.jsonl", arguments.out / "held.jsonl"
        )
        held = split.held
        print(f"kept {split.kept} rows, held back {sum(held.values())}: {held}")
    report = arguments.out / "report.html"
    write_bytes_atomically(report, report_screening(found, thresholds, held).encode())
    print(f"rows: {found.counts}")
    above = []
    for trait in vectors:
        interval, length = found.measure(trait), found.config["norms"][trait]
        print(f"{trait}: ΔP {interval} at layer {layer}, {interval.estimate / length:.3f} lengths of the vector")
        if arguments.fail_above is not None and interval.low / length > arguments.fail_above:
            above.append(trait)
    print(f"read {report}")
    if above:
        print(f"surely above {arguments.fail_above:g} lengths of the vector: {', '.join(above)}", file=sys.stderr)
    return ABOVE_LIMIT if above else 0


def find_vector(model: Any, trait: Trait, folder: Path) -> PersonaVector:
    """Read a trait's vector from the folder, or extract it and keep it there."""
    path = folder / f"vector_{trait.name}.safetensors"
    if path.exists():
        vector = PersonaVector.load(path)
        vector.check_model(model)
        return vector
    print(f"extracting the vector of {trait.name}; {path} will keep it")
    vector = extract_persona_vector(model, trait, max_new_tokens=24, temperature=0.7, progress=show_progress)
    vector.save(path)
    return vector
