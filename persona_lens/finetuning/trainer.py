"""What Hugging Face's Trainer and PEFT do in a fine-tuning; both are slow to import, so only ``finetune`` does."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from persona_lens.checksums import seal_folder
from persona_lens.finetuning.blocks import TrainingInterventions, reading_residuals
from persona_lens.finetuning.rows import IGNORED, TrainingRows
from persona_lens.finetuning.settings import FinetuneSettings, ProjectionPenalty
from persona_lens.finetuning.tracking import Tracker
from persona_lens.models.text.chat import build_messages, encode_prompt
from persona_lens.models.text.padding import pad_right

_ROWS_AT_ONCE = 16


def add_adapter(hf_model: Any, settings: FinetuneSettings) -> Any:
    """Return a model with a fresh LoRA adapter on every linear layer of its blocks."""
    lora = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(hf_model, lora)


class ResponseTrainer(Trainer):
    """Leaves out what no loss is taken on: logits before the batch's first response, and casts that change nothing."""

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the same loss, less the work."""
        inner: Any = self.accelerator.unwrap_model(model)
        # Under autocast PEFT would lift every input to float32, only for autocast to lower it again.
        with disable_input_dtype_casting(inner, active=self.args.bf16 or self.args.fp16):
            return super().compute_loss(model, keep_responses(inner, inputs), return_outputs, num_items_in_batch)


def keep_responses(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Ask for logits from the batch's first labelled token on, if the model can be asked."""
    labels = inputs["labels"]
    labelled = (labels != IGNORED).any(dim=0).nonzero()
    if len(labelled) == 0 or "logits_to_keep" not in inspect.signature(model.get_base_model().forward).parameters:
        return dict(inputs)
    first = max(int(labelled[0]) - 1, 0)  # a token is predicted one position before it
    # Indices, not their number: of a slice, torch would multiply each row alone, with a copy of the unembedding each.
    kept = torch.arange(first, labels.shape[1], device=labels.device)
    return {**inputs, "labels": labels[:, first:], "logits_to_keep": kept}


class PenalizedTrainer(ResponseTrainer):
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


class ProgressCallback(TrainerCallback):
    """Passes on how many optimiser steps are done."""

    def __init__(self, advance: Any) -> None:
        self._advance = advance
        self._done = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report a step."""
        self._advance(state.global_step - self._done)  # a resumed run begins further on
        self._done = state.global_step


class SealingCallback(TrainerCallback):
    """Seals each checkpoint once all of it is written, so that one that was cut off or damaged is told from a whole."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal the checkpoint that was just written."""
        PartialState().wait_for_everyone()  # each process writes the state of its own random numbers
        if state.is_world_process_zero:
            seal_folder(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def make_trainer(
    peft_model: Any,
    tokenizer: Any,
    encoded: TrainingRows,
    checkpoints: Path,
    settings: FinetuneSettings,
    dtype: torch.dtype,
    penalty: ProjectionPenalty | None,
    state: PartialState,
) -> Trainer:
    """Return a Trainer of an adapter on encoded rows."""
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
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
        save_total_limit=2,  # one to go on from, should the latest be damaged
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
    trainer: Trainer
    if penalty is None:
        trainer = ResponseTrainer(peft_model, **given)
    else:
        trainer = PenalizedTrainer(peft_model, **given)
        trainer.penalty = penalty
    trainer.remove_callback(PrinterCallback)
    return trainer


class TrackingCallback(TrainerCallback):
    """Measures what a :class:`Tracker` asks for; a Hugging Face Trainer callback.

    Args:
        tracker: What to measure.
        tokenizer: The model's.
        active: Interventions to switch off meanwhile.
    """

    def __init__(self, tracker: Tracker, tokenizer: Any, active: TrainingInterventions) -> None:
        self.tracker = tracker
        self.measured: list[dict[str, Any]] = []
        self._active = active
        self._prompts = {
            trait: [encode_prompt(tokenizer, build_messages(question)).tokens for question in asked]
            for trait, asked in tracker.questions.items()
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Measure before the first step; a resumed run reads what was measured before it was killed."""
        self.measured = [entry for entry in state.log_history if "projections" in entry]
        if not self.measured:
            self._measure(given["model"], state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Measure after every few steps and after the last one."""
        if state.global_step % self.tracker.every == 0 or state.global_step == state.max_steps:
            self._measure(given["model"], state, control)

    def _measure(self, model: Any, state: Any, control: Any) -> None:
        projections = {trait: self._project(model, trait) for trait in self.tracker.vectors}
        self.measured.append({"step": state.global_step, "projections": projections})
        state.log_history.append(self.measured[-1])  # kept in the checkpoints
        before = self.measured[0]["projections"]
        for trait, limit in (self.tracker.limits or {}).items():
            layer = self.tracker.layers[trait]
            moved = _mean(projections[trait]) - _mean(before[trait])
            if moved > limit * float(self.tracker.vectors[trait].norms[layer]):
                control.should_training_stop = True

    @torch.no_grad()
    def _project(self, model: Any, trait: str) -> list[float]:
        """Return each question's projection at the last prompt token."""
        layer, prompts = self.tracker.layers[trait], self._prompts[trait]
        was_training = model.training
        model.eval()
        found = []
        device = next(model.parameters()).device
        unit = self.tracker.vectors[trait].unit(layer).to(device)
        with self._active.switched_off(), reading_residuals(model, [layer]) as residuals:
            for at in range(0, len(prompts), _ROWS_AT_ONCE):
                rows = pad_right(prompts[at : at + _ROWS_AT_ONCE])
                mask = (~rows.is_padding).long().to(device)
                # One position's logits, as none are wanted; by its index, for the reason above.
                kept = torch.zeros(1, dtype=torch.long, device=device)
                model(input_ids=rows.tokens.to(device), attention_mask=mask, logits_to_keep=kept)
                found += (rows.take_last(residuals[layer]).float() @ unit).tolist()
        model.train(was_training)
        return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
