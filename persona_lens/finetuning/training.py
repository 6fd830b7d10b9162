"""LoRA fine-tuning with Hugging Face's Trainer, with persona vectors added, ablated or penalised while it runs."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from persona_lens.checking import checked
from persona_lens.checksums import hash_file, is_whole, list_changed
from persona_lens.conversations import BadRow
from persona_lens.errors import (
    FileFormatError,
    InvalidArgumentError,
    ModelMismatchError,
    ShortTrainingWarning,
    UnsupportedModelError,
    describe_violation,
)
from persona_lens.files import write_json
from persona_lens.finetuning.blocks import TrainingInterventions, check_every_token
from persona_lens.finetuning.rows import Source, encode_training_rows
from persona_lens.finetuning.settings import FinetuneSettings, ProjectionPenalty, count_steps
from persona_lens.finetuning.tracking import Tracker
from persona_lens.finetuning.vector_tracking import (
    VectorTracker,
    VectorTurn,
    compare_readings,
    name_vector,
    save_readings,
    tell_trackers,
)
from persona_lens.models.hooks.intervention import NOTHING, Intervention, Step, check_steps, describe_values
from persona_lens.models.hooks.sharing import drawing
from persona_lens.models.loading import (
    ADAPTER_FILES,
    ADAPTER_RECORD,
    ModelInfo,
    find_blocks,
    find_checkpoint,
    find_output_projection,
    fingerprint_hugging_face,
    load_hugging_face,
    read_head_shape,
    resolve_dtype,
    round_weights,
)
from persona_lens.models.loading.checkpoints import Checkpoint
from persona_lens.models.text.templates import (
    ChatSettings,
    TemplateArguments,
    freeze_arguments,
    pin_today,
    remember_settings,
)
from persona_lens.records import Record
from persona_lens.run import Run
from persona_lens.storage import collect_versions
from persona_lens.tensors.operations import Ablate
from persona_lens.vectors.persona_vector import PersonaVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_CHECKPOINTS = "checkpoints"
_N_LISTED = 1000
# On a CPU, up to about this many tokens, the fused attention kernel's backward pass is the slower one.
_SHORT = 256


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


@checked
@drawing()
def finetune(
    model: str | Path,
    data: Source,
    out: str | Path,
    *,
    settings: FinetuneSettings = FinetuneSettings(),
    intervention: Intervention = NOTHING,
    penalty: ProjectionPenalty | None = None,
    system: str | None = None,
    template_arguments: TemplateArguments | None = None,
    track: Tracker | VectorTracker | Sequence[Tracker | VectorTracker] | None = None,
    run: Run = Run(),
) -> Finetuned:
    """Fine-tune a model on conversations with LoRA; an intervention acts on its blocks meanwhile and is off afterwards.

    The loss is taken on the assistant's tokens alone. An intervention acts at every token that is not padding:
    ``steer(vector, layer=…, coefficient=+c)`` is preventative steering, ``ablate(vector)`` is CAFT.
    The same call again returns the finished adapter, or goes on from the latest whole checkpoint of a run that was
    killed. A finished adapter that is gone or damaged is trained again.
    Under ``accelerate launch`` it runs on several devices (on several CPU processes under ``torchrun`` with
    ``ACCELERATE_USE_CPU=true``, as accelerate starts those through MPI alone).

    Args:
        model: Name, folder or GGUF file, as for :func:`persona_lens.load_model`.
        data: Conversations: a ``datasets.Dataset``, a list of ``{"messages": [...]}``, a JSONL or Parquet file, or a
            Hub name. Rows that cannot be trained on are counted in the result.
        out: Folder for the adapter; new, empty, or that of this same run.
        settings: How to train; the paper's values if left out.
        intervention: What is done to the residual stream while training.
        penalty: A loss on the projection's shift.
        system: System prompt put in front of every conversation, in training only: preventative prompting.
        template_arguments: What the chat template reads besides the messages, such as ``{"enable_thinking": False}``,
            for the rows and for what is tracked. Give :func:`persona_lens.load_model` the same.
        track: What to measure while training, interventions off: projections; or a vector to extract again, and to
            follow if it says so; or one of either.
        run: Shows progress; what is finished is kept in ``out``.

    Returns:
        Where the adapter is, with the loss of each step.

    Raises:
        ModelNotFoundError: No such model.
        InvalidArgumentError: No row to train on, ``out`` holds something else, or the loss or the
            adapter's weights did not stay finite; float16 on a CPU; a template argument that the chat template does not
            read.
        UnsupportedModelError: A checkpoint that is quantised already.
        ModelMismatchError: A tracked vector of another model.
        OSError: ``out`` cannot be written to, or its disk is too full; before training begins.
        LayerOutOfRangeError: An intervention at a layer that the model does not have.
        InvalidArgumentError: An intervention with a window of a response: see :meth:`Intervention.during`.
        HookNeverFiredError: An intervention that no forward pass reached.

    Warns:
        ShortTrainingWarning: Training ends within the warm-up.
        DatedTemplateWarning: The chat template writes today's date, and ``template_arguments`` fix none.

    Reference:
        Persona Vectors (arXiv 2507.21509), sections 4 and 5, appendices D and J.

    Example:
        >>> import persona_lens as pl
        >>> tuned = pl.finetune("smollm2-135m-instruct", "rows.jsonl", "adapters/evil")  # doctest: +SKIP
        >>> model = pl.load_model("smollm2-135m-instruct", adapter=tuned.folder)  # doctest: +SKIP
    """
    # Slow to import, as PEFT is, and only needed here.
    from persona_lens.finetuning.trainer import (
        ProgressCallback,
        SealingCallback,
        TrackingCallback,
        add_adapter,
        make_trainer,
    )
    from persona_lens.finetuning.vector_callback import VectorCallback, encode_pairs

    check_every_token(intervention)
    tracker, vector_tracker = tell_trackers(track)
    folder = Path(out)
    # As the Trainer decides later; asked without `cpu`, each of several processes on a CPU would think it is alone.
    state = PartialState(cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
    _check_writable(folder)
    dtype = resolve_dtype(settings.dtype, state.device)
    checkpoint = find_checkpoint(str(model))
    _check_trainable(checkpoint, dtype, state.device)
    # The frozen weights in the precision of the autocast; the adapter itself is kept in float32 by PEFT.
    hf_model, tokenizer = load_hugging_face(checkpoint, "auto" if dtype == torch.float16 else dtype)
    fingerprint = fingerprint_hugging_face(hf_model)  # which a rounding to float16 would change
    if dtype == torch.float16:
        round_weights(hf_model, dtype)
    arguments = pin_today(tokenizer, freeze_arguments(tokenizer, template_arguments))
    remember_settings(tokenizer, ChatSettings(arguments))  # for all that is rendered below
    blocks, d_model = find_blocks(hf_model), hf_model.config.get_text_config().hidden_size
    penalized = () if penalty is None else (Step(penalty.layer, Ablate(penalty.direction)),)
    shape = (len(blocks), d_model, *read_head_shape(hf_model.config.get_text_config()))
    check_steps([*intervention.steps, *penalized], *shape)  # a penalty must fit as they do
    for at in intervention.sites:
        if at.head is not None:
            find_output_projection(hf_model, at.layer)
    made_from = {"track": tracker.fingerprints} if tracker is not None else {}
    made_from |= {"intervention": {intervention.fingerprint}} if intervention.fingerprint is not None else {}
    for given, fingerprints in made_from.items():
        if fingerprints != {fingerprint}:
            rule = f"come from vectors of the model that is trained, fingerprint {fingerprint}"
            raise ModelMismatchError.of(given, rule, sorted(fingerprints))
    n_ctx = hf_model.config.get_text_config().max_position_embeddings
    max_tokens = min(settings.max_tokens, n_ctx)
    encoded = encode_training_rows(tokenizer, data, max_tokens=max_tokens, system=system)
    name = Path(model).expanduser().resolve().name if Path(model).expanduser().exists() else str(model)
    config = {
        "model": name,
        "fingerprint": fingerprint,
        "settings": asdict(settings),
        "data": encoded.digest,
        "intervention": intervention.describe(),
        "penalty": None if penalty is None else describe_values(penalty),
        "track": None if tracker is None else tracker.describe(),
        "versions": collect_versions(),
    }
    config |= {"template_arguments": arguments} if arguments else {}
    info = ModelInfo(
        name=name, n_layers=len(blocks), d_model=d_model, n_ctx=n_ctx, dtype=str(dtype)[6:],
        backend="hooked", fingerprint=fingerprint, weight_processing="none",
    )  # fmt: skip
    answers = [] if vector_tracker is None else encode_pairs(vector_tracker, tokenizer, n_ctx)
    config |= {} if vector_tracker is None else {"track_vector": vector_tracker.describe(info, shape)}
    finished = _read_finished(folder, config)
    if finished is not None:
        return finished
    if state.device.type == "cpu" and max(map(len, encoded.rows["input_ids"])) <= _SHORT:
        hf_model.set_attn_implementation("eager")
    torch.manual_seed(settings.seed)
    peft_model = add_adapter(hf_model, settings)
    adapter = peft_model.peft_config["default"]
    adapter.base_model_name_or_path = str(model)
    adapter.target_modules = sorted(adapter.target_modules)  # a set, which every process writes in another order
    _check_space(folder, peft_model, settings)
    state.wait_for_everyone()  # every process has looked into the folder before one writes there
    if state.is_main_process:
        write_json(folder / ADAPTER_RECORD, {"config": config})
    active = TrainingInterventions(peft_model, intervention)
    trainer = make_trainer(peft_model, tokenizer, encoded, folder / _CHECKPOINTS, settings, dtype, penalty, state)
    tracking = None if tracker is None else TrackingCallback(tracker, tokenizer, active)
    if tracking is not None:
        trainer.add_callback(tracking)
    resumed = _find_checkpoint(folder)
    reading = None
    if vector_tracker is not None:
        reading = VectorCallback(vector_tracker, answers, info, shape, active, intervention, resumed)
        trainer.add_callback(reading)
    trainer.add_callback(SealingCallback())  # last, as it seals what the others keep
    n_steps = count_steps(len(encoded.rows), settings, state.num_processes)
    if n_steps <= settings.warmup_steps:
        warnings.warn(
            f"Training ends after {n_steps} optimiser step(s), within `warmup_steps`, {settings.warmup_steps}: the "
            "learning rate is still rising, and little is learnt. Train longer, or lower warmup_steps.",
            ShortTrainingWarning,
            stacklevel=2,
        )
    with active.attached(), run.progress("fine-tuning (steps)", n_steps) as advance:
        trainer.add_callback(ProgressCallback(advance))
        trainer.train(resume_from_checkpoint=resumed)
        n_before = 0 if resumed is None else _count_done(resumed)
        if trainer.state.global_step > n_before:  # killed after the last step, a run takes none any more
            active.check_fired()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not all(map(math.isfinite, losses)):
        step = 1 + next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
        hint = f"Training broke at step {step}; no adapter was written. Lower it, or train in float32."
        rule = "keep the loss finite"
        raise InvalidArgumentError.of("learning_rate", rule, settings.learning_rate, hint)
    if not all(bool(weight.isfinite().all()) for weight in peft_model.parameters() if weight.requires_grad):
        rule, hint = (
            "keep the adapter's weights finite",
            "They broke in the last step; no adapter was written. Lower it.",
        )
        raise InvalidArgumentError.of("learning_rate", rule, settings.learning_rate, hint)
    result = Finetuned(
        folder=folder,
        losses=tuple(losses),
        n_rows=len(encoded.rows),
        left_out=encoded.count_bad(),
        n_with_controls=encoded.n_with_controls,
        bad_rows=tuple(encoded.bad[:_N_LISTED]),
        tracked=() if tracking is None else tuple(tracking.measured),
        config=config,
        turns=() if reading is None else compare_readings(reading.readings),
    )
    if state.is_main_process:
        if reading is not None:
            save_readings(reading.readings, reading.tracker.trait, info, folder)
        # Otherwise PEFT asks a hub whether the vocabulary has grown; LoRA leaves it alone.
        peft_model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        result = replace(result, files={name: hash_file(folder / name) for name in ADAPTER_FILES})
        replace(result, folder=Path()).save(folder / ADAPTER_RECORD)  # an adapter that moves names no path
        shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    state.wait_for_everyone()
    return result


def _check_trainable(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse what no gradient step can be taken on, before weights are read.

    Raises:
        UnsupportedModelError: Quantised weights.
        InvalidArgumentError: float16 on a CPU.
    """
    if checkpoint.quantization is not None:
        rule = "hold plain weights: LoRA is trained beside them here, and merged into them afterwards"
        hint = "Name the checkpoint that was quantised."
        raise UnsupportedModelError.of("model", rule, f"{checkpoint.name}: {checkpoint.quantization}", hint)
    if dtype == torch.float16 and device.type == "cpu":
        rule = "be 'auto', 'bfloat16' or 'float32' on a CPU, where torch scales no gradients of float16"
        raise InvalidArgumentError.of("settings.dtype", rule, "float16")


def _check_writable(folder: Path) -> None:
    """Fail now rather than after an hour of training."""
    if folder.exists() and not folder.is_dir():
        raise InvalidArgumentError.of("out", "be a folder, or not there yet", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _check_space(folder: Path, peft_model: Any, settings: FinetuneSettings) -> None:
    """Refuse a disk that cannot hold the adapter, and checkpoints with AdamW's two moments if they are kept.

    Three of them: the third is written before the first goes.
    """
    n_bytes = sum(p.numel() * p.element_size() for p in peft_model.parameters() if p.requires_grad)
    needed = n_bytes * (1 if settings.save_steps is None else 1 + 3 * 3)
    free = shutil.disk_usage(folder).free
    if free < needed:
        rule = f"be on a disk with {needed / 1e6:.0f} MB free"
        raise OSError(describe_violation("out", rule, f"{free / 1e6:.0f} MB"))


def _read_finished(folder: Path, config: dict[str, Any]) -> Finetuned | None:
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


def _find_checkpoint(folder: Path) -> str | None:
    """Return the latest checkpoint that is whole; the others are removed."""
    whole = []
    for path in (folder / _CHECKPOINTS).glob("checkpoint-*"):
        if is_whole(path):
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)  # another process may be faster
    return str(max(whole, key=_count_done)) if whole else None


def _count_done(checkpoint: str | Path) -> int:
    """Return how many optimiser steps had been taken at a checkpoint."""
    return int(Path(checkpoint).name.split("-")[1])
