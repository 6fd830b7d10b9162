"""Extracts a vector again while the Trainer trains, and hands what follows it to the blocks; imported late."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from persona_lens.errors import InvalidArgumentError
from persona_lens.finetuning.blocks import TrainingInterventions, reading_residuals
from persona_lens.finetuning.vector_tracking import ModelShape, Reading, VectorTracker, follow_vector
from persona_lens.models.hooks.intervention import Intervention
from persona_lens.models.loading import ModelInfo
from persona_lens.models.text.chat import encode_conversation, warn_of_controls
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.spans import TokenSpans, check_parts
from persona_lens.storage import Shard, load_shard, save_shard

_TOKENS_AT_ONCE = 2048
_KEPT = "vector_readings.safetensors"


def encode_pairs(tracker: VectorTracker, tokenizer: Any, n_ctx: int) -> list[TokenSpans]:
    """Return a tracker's answers as token ids with the answers' spans: with and without the trait by turns.

    Raises:
        InvalidArgumentError: A conversation that does not end with an answer.
        ContextLengthError: One that is longer than the model's context.
    """
    encoded = [encode_conversation(tokenizer, side, n_ctx=n_ctx) for pair in tracker.pairs for side in pair]
    check_parts(encoded, "answer")
    warn_of_controls(encoded)
    return list(encoded)


class VectorCallback(TrainerCallback):
    """Reads a :class:`VectorTracker`'s answers; a Hugging Face Trainer callback.

    Args:
        tracker: What to read, and what to do with it.
        answers: From :func:`encode_pairs`.
        model: The model before training, which the vectors are said to be of.
        shape: What an intervention must fit.
        active: Interventions: switched off while reading, changed before the next step.
        given: What acts whatever the vector is.
        checkpoint: That the run goes on from, if any.
    """

    def __init__(
        self,
        tracker: VectorTracker,
        answers: Sequence[TokenSpans],
        model: ModelInfo,
        shape: ModelShape,
        active: TrainingInterventions,
        given: Intervention,
        checkpoint: str | None,
    ) -> None:
        self.tracker = tracker
        self.readings: list[Reading] = []
        self._answers, self._info, self._shape = answers, model, shape
        self._active, self._given, self._checkpoint = active, given, checkpoint
        self._next: Intervention | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Read before the first step; a resumed run goes on with what it had read, and with what followed it."""
        if self._checkpoint is None:
            self._read(args, given["model"], 0)
        else:
            kept = load_shard(Path(self._checkpoint) / _KEPT)
            n_pairs = len(self.tracker.pairs)
            self.readings = [
                Reading(step, sums, n_pairs) for step, sums in zip(kept.records, kept.tensors["sums"], strict=True)
            ]
        self._follow()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let what follows the latest reading act from this step on."""
        if self._next is not None:
            self._active.change_to(self._next)
            self._next = None

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Read after every few steps and after the last one, also where another callback stops training early."""
        is_last = state.global_step == state.max_steps or control.should_training_stop
        if state.global_step % self.tracker.every == 0 or is_last:
            self._active.check_fired()  # while what acted in this step is still there
            self._read(args, given["model"], state.global_step)
            self._follow()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep what was read in the checkpoint, before it is sealed."""
        if state.is_world_process_zero:
            steps, sums = zip(*((one.step, one.sums) for one in self.readings), strict=True)
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            save_shard(folder / _KEPT, Shard({"sums": torch.stack(sums)}, list(steps)))

    def _follow(self) -> None:
        if self.tracker.follow is not None:
            vector = self.readings[-1].make_vector(self.tracker.trait, self._info)
            self._next = self._given + follow_vector(self.tracker, vector, self._shape)

    def _read(self, args: Any, model: Any, step: int) -> None:
        was_training = model.training
        model.eval()
        with self._active.switched_off(), _autocasting(args, model):
            sums = _sum_halves(model, self._answers, self._info.n_layers)
        model.train(was_training)
        if not bool(sums.isfinite().all()):
            rule, hint = "keep activations finite", f"They broke by step {step}; no adapter was written."
            raise InvalidArgumentError.of("learning_rate", rule, "NaN or infinity in a vector that was read", hint)
        self.readings.append(Reading(step, sums, len(self.tracker.pairs)))


@contextmanager
def _autocasting(args: Any, model: Any) -> Iterator[None]:
    """Read in the precision that training computes in; PEFT would lift every input to float32 and slow it down."""
    is_mixed = args.bf16 or args.fp16
    dtype = torch.float16 if args.fp16 else torch.bfloat16
    inner = getattr(model, "module", model)  # on several devices the model stands in a wrapping
    with torch.autocast(args.device.type, dtype, enabled=is_mixed), disable_input_dtype_casting(inner, active=is_mixed):
        yield


@torch.no_grad()
def _sum_halves(model: Any, answers: Sequence[TokenSpans], n_layers: int) -> Float[Tensor, "half=2 layer d_model"]:
    """Add up, over every other pair and over the rest, what the answers' mean activations differ by."""
    device = next(model.parameters()).device
    order = sorted(range(len(answers)), key=lambda index: (answers[index].response_end, index))
    sums: list[list[Tensor | float]] = [[0.0, 0.0], [0.0, 0.0]]  # [half][side], in float64
    at = 0
    while at < len(order):
        size = 1  # lengths rise along the order, so that the last sets the padded size
        while at + size < len(order) and (size + 1) * answers[order[at + size]].response_end <= _TOKENS_AT_ONCE:
            size += 1
        batch, at = order[at : at + size], at + size
        rows = pad_right([answers[index].tokens[: answers[index].response_end] for index in batch])
        is_read = torch.zeros_like(rows.is_padding)
        for row, index in enumerate(batch):
            start, end = answers[index].find("answer")
            is_read[row, start:end] = True
        pool = partial(_pool_answers, is_read=is_read.to(device))
        with reading_residuals(model, range(n_layers), pool) as residuals:
            # One position's logits, as none are wanted; by its index: a slice would copy the unembedding for each row.
            model(
                input_ids=rows.tokens.to(device), attention_mask=(~rows.is_padding).long().to(device),
                logits_to_keep=torch.zeros(1, dtype=torch.long, device=device),
            )  # fmt: skip
        means = torch.stack([residuals[layer].double().cpu() for layer in range(n_layers)], dim=1)
        for row, index in enumerate(batch):
            sums[index // 2 % 2][index % 2] = sums[index // 2 % 2][index % 2] + means[row]
    return torch.stack([torch.as_tensor(with_trait - without) for with_trait, without in sums]).float()


def _pool_answers(
    residual: Float[Tensor, "row pos d_model"], is_read: Bool[Tensor, "row pos"]
) -> Float[Tensor, "row d_model"]:
    """Average the tokens that are read of each row, in float32."""
    weights = is_read.float()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    means: Tensor = torch.einsum("rp,rpd->rd", weights, residual.float())
    return means
