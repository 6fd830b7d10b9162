"""LoRA fine-tuning with Hugging Face's Trainer, with persona vectors added, ablated or penalised while it runs."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from persona_lens.conversations import BadRow
from persona_lens.errors import InvalidArgumentError, ModelMismatchError, ShortTrainingWarning, describe_violation
from persona_lens.finetuning.blocks import TrainingInterventions, reading_residuals
from persona_lens.finetuning.rows import IGNORED, Source, TrainingRows, encode_training_rows
from persona_lens.finetuning.tracking import Tracker, TrackingCallback
from persona_lens.models.hooks.intervention import NOTHING, Intervention, Step, check_steps, describe_values
from persona_lens.models.loading import (
    ADAPTER_RECORD,
    find_blocks,
    fingerprint_hugging_face,
    load_hugging_face,
    resolve_dtype,
)
from persona_lens.records import Record
from persona_lens.run import Run
from persona_lens.storage import collect_versions, write_json
from persona_lens.tensors.operations import Ablate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_CHECKPOINTS = "checkpoints"
_N_LISTED = 1000


@dataclass(frozen=True)
class FinetuneSettings:
    """How a model is fine-tuned; the defaults are the paper's.

    Args:
        rank: Of the LoRA matrices, on every linear layer of the blocks.
        alpha: Scale of the adapter; rank-stabilised, so it enters as ``alpha / sqrt(rank)``.
        learning_rate: Peak, after ``warmup_steps``; then linearly to 0.
        epochs: Passes over the data.
        batch_size: Rows of a forward pass on one device.
        accumulation: Forward passes of an optimiser step.
        warmup_steps: Optimiser steps in which the learning rate rises.
        weight_decay: Of AdamW.
        max_tokens: Longer conversations are left out and reported.
        dtype: ``auto`` trains in bfloat16 autocast where the hardware computes it, else in float32; the adapter's
            own weights are float32 in either case.
        save_steps: Optimiser steps between checkpoints; None keeps none, so that a killed run begins anew.
        seed: Of the adapter's initial weights and of the rows' order.

    Reference:
        Persona Vectors (arXiv 2507.21509), appendix D.
    """

    rank: int = 32
    alpha: int = 64
    learning_rate: float = 1e-5
    epochs: int = 1
    batch_size: int = 2
    accumulation: int = 8
    warmup_steps: int = 5
    weight_decay: float = 0.01
    max_tokens: int = 2048
    dtype: str = "auto"
    save_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("rank", "epochs", "batch_size", "accumulation", "max_tokens")
        for name, least in [*((name, 1) for name in counts), ("warmup_steps", 0)]:
            if getattr(self, name) < least:
                raise InvalidArgumentError(describe_violation(name, f"be at least {least}", getattr(self, name)))
        for name in ("alpha", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidArgumentError(describe_violation(name, "be positive and finite", getattr(self, name)))
        if self.save_steps is not None and self.save_steps < 1:
            raise InvalidArgumentError(describe_violation("save_steps", "be at least 1 or None", self.save_steps))


@dataclass(frozen=True, eq=False)
class ProjectionPenalty:
    r"""A loss on how far the projection has moved from the base model's, added to the ordinary one.

    .. math:: L = L_\text{tokens} + w \, \operatorname{mean}_t \left(\frac{(h_t - h_t^\text{base}) \cdot v}
       {\lVert v \rVert^2}\right)^2

    over all tokens but padding, :math:`h^\text{base}` being the same token's activation with the adapter switched off
    (one more forward pass without gradient). A shift by the whole vector costs ``weight``.

    Args:
        layer: Zero-based block index.
        direction: Raw vector.
        weight: :math:`w`, in nats.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 5 and appendix J: there the trait stays.
    """

    layer: int
    direction: Float[Tensor, " d_model"]
    weight: float

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise InvalidArgumentError(describe_violation("weight", "be positive and finite", self.weight))
        if not bool(self.direction.any()):
            raise InvalidArgumentError(describe_violation("direction", "have a length above zero", self.direction))


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
    """

    folder: Path
    losses: tuple[float, ...]
    n_rows: int
    left_out: dict[str, int]
    bad_rows: tuple[BadRow, ...] = ()
    tracked: tuple[dict[str, Any], ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    def plot(self) -> Figure:
        """Draw the loss over optimiser steps; returns a plotly Figure."""
        from persona_lens.plots.loss import plot_loss  # plotly is imported only when drawing

        return plot_loss(self)

    def __repr__(self) -> str:
        left_out = f", left out: {self.left_out}" if self.left_out else ""
        loss = f"loss {self.losses[0]:.3f} → {self.losses[-1]:.3f}" if self.losses else "no step"
        return f"Finetuned({self.folder.name!r}, {self.n_rows} rows, {len(self.losses)} steps, {loss}{left_out})"


def finetune(
    model: str | Path,
    data: Source,
    out: str | Path,
    *,
    settings: FinetuneSettings | None = None,
    intervention: Intervention = NOTHING,
    penalty: ProjectionPenalty | None = None,
    system: str | None = None,
    track: Tracker | None = None,
    run: Run = Run(),
) -> Finetuned:
    """Fine-tune a model on conversations with LoRA; an intervention acts on its blocks meanwhile and is off afterwards.

    The loss is taken on the assistant's tokens alone. An intervention acts at every token that is not padding:
    ``steer(vector, layer=…, coefficient=+c)`` is preventative steering, ``ablate(vector)`` is CAFT.
    The same call again returns the finished adapter, or goes on from the latest checkpoint of a run that was killed.
    Under ``accelerate launch`` it runs on several devices (on several CPU processes under ``torchrun`` with
    ``ACCELERATE_USE_CPU=true``, as accelerate starts those through MPI alone).

    Args:
        model: Name, folder or GGUF file, as for :func:`persona_lens.load_model`.
        data: Conversations: a ``datasets.Dataset``, a list of ``{"messages": [...]}``, a JSONL or Parquet file, or a
            Hub name. Rows that cannot be trained on are counted in the result.
        out: Folder for the adapter; new, empty, or that of this same run.
        settings: How to train; :class:`FinetuneSettings` with the paper's values if left out.
        intervention: What is done to the residual stream while training.
        penalty: A loss on the projection's shift.
        system: System prompt put in front of every conversation, in training only: preventative prompting.
        track: Projections to measure while training, interventions off.
        run: Shows progress; what is finished is kept in ``out``.

    Returns:
        Where the adapter is, with the loss of each step.

    Raises:
        ModelNotFoundError: No such model.
        InvalidArgumentError: No row to train on, ``out`` holds something else, or the loss did not stay finite.
        ModelMismatchError: A tracked vector of another model.
        OSError: ``out`` cannot be written to, or its disk is too full; before training begins.
        LayerOutOfRangeError: An intervention at a layer that the model does not have.
        HookNeverFiredError: An intervention that no forward pass reached.

    Warns:
        ShortTrainingWarning: Training ends within the warm-up.

    Reference:
        Persona Vectors (arXiv 2507.21509), sections 4 and 5, appendices D and J.

    Example:
        >>> import persona_lens as pl
        >>> tuned = pl.finetune("smollm2-135m-instruct", "rows.jsonl", "adapters/evil")  # doctest: +SKIP
        >>> model = pl.load_model("smollm2-135m-instruct", adapter=tuned.folder)  # doctest: +SKIP
    """
    settings = settings or FinetuneSettings()
    folder = Path(out)
    # As the Trainer decides later; asked without `cpu`, each of several processes on a CPU would think it is alone.
    state = PartialState(cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
    _check_writable(folder)
    dtype = resolve_dtype(settings.dtype, state.device)
    # The frozen weights in the precision of the autocast; the adapter itself is kept in float32 by PEFT.
    hf_model, tokenizer = load_hugging_face(str(model), dtype)
    blocks, d_model = find_blocks(hf_model), hf_model.config.get_text_config().hidden_size
    penalized = () if penalty is None else (Step(penalty.layer, Ablate(penalty.direction)),)
    check_steps([*intervention.steps, *penalized], len(blocks), d_model)  # a penalty must fit as they do
    fingerprint = fingerprint_hugging_face(hf_model)
    made_from = {"track": track.fingerprints} if track is not None else {}
    made_from |= {"intervention": {intervention.fingerprint}} if intervention.fingerprint is not None else {}
    for name, fingerprints in made_from.items():
        if fingerprint is not None and fingerprints != {fingerprint}:
            rule = f"come from vectors of the model that is trained, fingerprint {fingerprint}"
            raise ModelMismatchError(describe_violation(name, rule, sorted(fingerprints)))
    max_tokens = min(settings.max_tokens, hf_model.config.get_text_config().max_position_embeddings)
    encoded = encode_training_rows(tokenizer, data, max_tokens=max_tokens, system=system)
    config = {
        "model": Path(model).name if Path(model).expanduser().exists() else str(model),
        "fingerprint": fingerprint,
        "settings": asdict(settings),
        "data": encoded.digest,
        "intervention": intervention.describe(),
        "penalty": None if penalty is None else describe_values(penalty),
        "track": None if track is None else track.describe(),
        "versions": collect_versions(),
    }
    finished = _read_finished(folder, config)
    if finished is not None:
        return finished
    torch.manual_seed(settings.seed)
    lora = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        peft_model = get_peft_model(hf_model, lora)
    peft_model.peft_config["default"].base_model_name_or_path = str(model)
    _check_space(folder, peft_model, settings)
    state.wait_for_everyone()  # every process has looked into the folder before one writes there
    if state.is_main_process:
        write_json(folder / ADAPTER_RECORD, {"config": config})
    active = TrainingInterventions(peft_model, intervention)
    trainer = _make_trainer(peft_model, tokenizer, encoded, folder, settings, dtype, penalty, state)
    trainer.remove_callback(PrinterCallback)
    tracking = None if track is None else TrackingCallback(track, tokenizer, active)
    if tracking is not None:
        trainer.add_callback(tracking)
    n_steps = count_steps(len(encoded.rows), settings, state.num_processes)
    if n_steps <= settings.warmup_steps:
        warnings.warn(
            f"Training ends after {n_steps} optimiser step(s), within `warmup_steps`, {settings.warmup_steps}: the "
            "learning rate is still rising, and little is learnt. Train longer, or lower warmup_steps.",
            ShortTrainingWarning,
            stacklevel=2,
        )
    with active.attached(), run.progress("fine-tuning (steps)", n_steps) as advance:
        trainer.add_callback(_Progress(advance))
        trainer.train(resume_from_checkpoint=_find_checkpoint(folder))
        active.check_fired()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not all(map(math.isfinite, losses)):
        step = 1 + next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
        hint = f"Training broke at step {step}; no adapter was written. Lower it, or train in float32."
        rule = "keep the loss finite"
        raise InvalidArgumentError(describe_violation("learning_rate", rule, settings.learning_rate, hint))
    result = Finetuned(
        folder=folder,
        losses=tuple(losses),
        n_rows=len(encoded.rows),
        left_out=encoded.count_bad(),
        bad_rows=tuple(encoded.bad[:_N_LISTED]),
        tracked=() if tracking is None else tuple(tracking.measured),
        config=config,
    )
    if state.is_main_process:
        # Otherwise PEFT asks a hub whether the vocabulary has grown; LoRA leaves it alone.
        peft_model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        replace(result, folder=Path()).save(folder / ADAPTER_RECORD)  # an adapter that moves names no path
        shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    state.wait_for_everyone()
    return result


class _PenalizedTrainer(Trainer):
    """Adds the projection's squared shift to the loss."""

    penalty: ProjectionPenalty

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the ordinary loss plus the penalty."""
        penalty = self.penalty
        along = (penalty.direction / penalty.direction.square().sum()).to(self.args.device, torch.float32)
        is_token = inputs["attention_mask"].bool()
        inner: Any = self.accelerator.unwrap_model(model)
        with reading_residuals(inner, [penalty.layer]) as residuals:
            with torch.no_grad(), inner.disable_adapter():
                inner(**{key: value for key, value in inputs.items() if key != "labels"})
                base = residuals[penalty.layer].float()
            loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
            moved = (residuals[penalty.layer].float() - base) @ along
        extra = penalty.weight * moved[is_token].square().mean()
        if num_items_in_batch is not None:  # then the Trainer adds up the losses of a step, and averages them not
            extra = extra / self.current_gradient_accumulation_steps
        loss = loss + extra
        return (loss, outputs) if return_outputs else loss


class _Progress(TrainerCallback):
    def __init__(self, advance: Any) -> None:
        self._advance = advance
        self._done = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance(state.global_step - self._done)  # a resumed run begins further on
        self._done = state.global_step


def _make_trainer(
    peft_model: Any,
    tokenizer: Any,
    encoded: TrainingRows,
    folder: Path,
    settings: FinetuneSettings,
    dtype: torch.dtype,
    penalty: ProjectionPenalty | None,
    state: PartialState,
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder / _CHECKPOINTS),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="linear",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=state.device.type == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no" if settings.save_steps is None else "steps",
        save_steps=settings.save_steps or 500,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=state.device.type == "cuda",
        remove_unused_columns=False,
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED, pad_to_multiple_of=8)
    given: dict[str, Any] = {"args": arguments, "train_dataset": encoded.rows, "data_collator": collator}
    if penalty is None:
        return Trainer(peft_model, **given)
    trainer = _PenalizedTrainer(peft_model, **given)
    trainer.penalty = penalty
    return trainer


def count_steps(n_rows: int, settings: FinetuneSettings, n_processes: int = 1) -> int:
    """Return the optimiser steps of a training."""
    n_batches = -(-n_rows // (settings.batch_size * n_processes))
    return -(-n_batches // settings.accumulation) * settings.epochs


def _check_writable(folder: Path) -> None:
    """Fail now rather than after an hour of training."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _check_space(folder: Path, peft_model: Any, settings: FinetuneSettings) -> None:
    """Refuse a disk that cannot hold the adapter, and two checkpoints with AdamW's two moments if they are kept."""
    n_bytes = sum(p.numel() * p.element_size() for p in peft_model.parameters() if p.requires_grad)
    needed = n_bytes * (1 if settings.save_steps is None else 1 + 2 * 3)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            describe_violation("out", f"be on a disk with {needed / 1e6:.0f} MB free", f"{free / 1e6:.0f} MB")
        )


def _read_finished(folder: Path, config: dict[str, Any]) -> Finetuned | None:
    """Return the result if the run is finished; refuse a folder that holds another run or foreign files."""
    record = folder / ADAPTER_RECORD
    hint = "Choose a new folder, or remove this one."
    if not record.is_file():
        others = sorted(path.name for path in folder.iterdir())
        if others:
            raise InvalidArgumentError(describe_violation("out", "be empty, or hold this run", others[:5], hint))
        return None
    content = json.loads(record.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(config))
    if content["config"] != wanted:
        changed = sorted(key for key in wanted if content["config"].get(key) != wanted[key])
        raise InvalidArgumentError(
            describe_violation("out", "hold this run and no other", f"a run with other {', '.join(changed)}", hint)
        )
    if "format" not in content:
        return None  # begun, not finished
    return replace(Finetuned.from_json(content), folder=folder)


def _find_checkpoint(folder: Path) -> str | None:
    """Return the latest whole checkpoint; the Trainer writes trainer_state.json last, so one without it is cut off."""
    whole = []
    for path in (folder / _CHECKPOINTS).glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path, ignore_errors=True)  # another process may be faster
            continue
        whole.append(path)
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None
