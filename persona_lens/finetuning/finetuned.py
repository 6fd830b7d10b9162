"""What a fine-tuning run leaves in its folder, and what is still there of one that was killed."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lens.checking import checked
from persona_lens.checksums import hash_file, is_whole, list_changed
from persona_lens.conversations import BadRow
from persona_lens.errors import FileFormatError, InvalidArgumentError, describe_violation
from persona_lens.finetuning.settings import FinetuneSettings
from persona_lens.finetuning.vector_tracking import VectorTurn, name_vector
from persona_lens.models.loading import ADAPTER_FILES, ADAPTER_RECORD
from persona_lens.records import Record
from persona_lens.vectors.persona_vector import PersonaVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CHECKPOINTS = "checkpoints"


@checked
@dataclass(frozen=True, eq=False)
class Finetuned(Record):
    """What a fine-tuning run left.

    Args:
        folder: The adapter, for ``load_model(base, adapter=folder)`` or for PEFT.
        losses: Loss of each optimiser step, in nats a token.
        n_rows: Rows trained on.
        left_out: Rows left out, by reason.
        bad_rows: The first thousand of these, with their places.
        tracked: What was measured during training, if anything; see :class:`persona_lens.Tracker`.
        config: Everything that the run depended on.
        files: SHA-256 of each of the adapter's files; :func:`persona_lens.load_model` refuses others.
        n_with_controls: Rows whose texts spell control tokens, such as ``<|im_end|>``; trained on as text.
        turns: How far a vector turned that was extracted again, if one was; see
            :class:`persona_lens.finetuning.VectorTracker`.
    """

    folder: Path
    losses: tuple[float, ...]
    n_rows: int
    left_out: dict[str, int]
    bad_rows: tuple[BadRow, ...] = ()
    tracked: tuple[dict[str, Any], ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    n_with_controls: int = 0
    turns: tuple[VectorTurn, ...] = ()

    def load_vector(self, step: int) -> PersonaVector:
        """Return the vector as it was read after so many optimiser steps.

        It fits the model before training and the trained one.

        Raises:
            InvalidArgumentError: None was read then.
            FileFormatError: A file that is damaged.
        """
        steps = [turn.step for turn in self.turns]
        if step not in steps:
            raise InvalidArgumentError.of("step", "be one at which a vector was read", step, f"They are {steps}.")
        return PersonaVector.load(name_vector(self.folder, step))

    def plot(self) -> Figure:
        """Draw the loss over optimiser steps; returns a plotly Figure."""
        from persona_lens.plots.loss import plot_loss  # plotly is imported only when drawing

        return plot_loss(self)

    def __repr__(self) -> str:
        left_out = f", left out: {self.left_out}" if self.left_out else ""
        left_out += f", {self.n_with_controls} rows spell control tokens" if self.n_with_controls else ""
        loss = f"loss {self.losses[0]:.3f} → {self.losses[-1]:.3f}" if self.losses else "no step"
        return f"Finetuned({self.folder.name!r}, {self.n_rows} rows, {len(self.losses)} steps, {loss}{left_out})"


def check_writable(folder: Path) -> None:
    """Fail now rather than after an hour of training."""
    if folder.exists() and not folder.is_dir():
        raise InvalidArgumentError.of("out", "be a folder, or not there yet", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_space(folder: Path, peft_model: Any, settings: FinetuneSettings) -> None:
    """Refuse a disk that cannot hold the adapter, and checkpoints with AdamW's two moments if they are kept.

    Three of them: the third is written before the first goes.
    """
    n_bytes = sum(p.numel() * p.element_size() for p in peft_model.parameters() if p.requires_grad)
    needed = n_bytes * (1 if settings.save_steps is None else 1 + 3 * 3)
    free = shutil.disk_usage(folder).free
    if free < needed:
        rule = f"be on a disk with {needed / 1e6:.0f} MB free"
        raise OSError(describe_violation("out", rule, f"{free / 1e6:.0f} MB"))


def write_finished(result: Finetuned, peft_model: Any) -> Finetuned:
    """Write the adapter and, last of all, the record that says that it is finished; the checkpoints go.

    Returns:
        The result with its files' hashes.
    """
    folder = result.folder
    # Otherwise PEFT asks a hub whether the vocabulary has grown; LoRA leaves it alone.
    peft_model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    result = replace(result, files={name: hash_file(folder / name) for name in ADAPTER_FILES})
    replace(result, folder=Path()).save(folder / ADAPTER_RECORD)  # an adapter that moves names no path
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return result


def read_finished(folder: Path, config: dict[str, Any]) -> Finetuned | None:
    """Return the result if the run is finished and whole; refuse a folder that holds another run or foreign files."""
    record = folder / ADAPTER_RECORD
    hint = "Choose a new folder, or remove this one."
    if not record.is_file():
        others = sorted(path.name for path in folder.iterdir())
        if others:
            raise InvalidArgumentError.of("out", "be empty, or hold this run", others[:5], hint)
        return None
    rule = "hold this run and no other"
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        found = dict(content["config"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        got = f"a record that cannot be read, {record.name}"
        raise InvalidArgumentError.of("out", rule, got, hint) from error
    wanted = json.loads(json.dumps(config))
    if found != wanted:
        changed = sorted(key for key in {**wanted, **found} if found.get(key) != wanted.get(key))
        raise InvalidArgumentError.of("out", rule, f"a run with other {', '.join(changed)}", hint)
    try:
        finished = Finetuned.from_json(content)
    except FileFormatError:
        return None  # begun and not finished, or damaged since
    are_there = finished.files.keys() == set(ADAPTER_FILES) and not list_changed(folder, finished.files)
    finished = replace(finished, folder=folder)
    return finished if are_there and _has_vectors(finished) else None


def _has_vectors(finished: Finetuned) -> bool:
    """Whether each vector that was read is there and whole."""
    try:
        return all(finished.load_vector(turn.step) for turn in finished.turns)
    except (FileNotFoundError, FileFormatError):
        return False


def find_latest(folder: Path) -> str | None:
    """Return the latest checkpoint that is whole; the others are removed."""
    whole = []
    for path in (folder / CHECKPOINTS).glob("checkpoint-*"):
        if is_whole(path):
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)  # another process may be faster
    return str(max(whole, key=count_done)) if whole else None


def count_done(checkpoint: str | Path) -> int:
    """Return how many optimiser steps had been taken at a checkpoint."""
    return int(Path(checkpoint).name.split("-")[1])
