"""What interventions cost while training: an optimiser step's forward and backward pass with them and without."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from _compare import summarize_ratio, time_in_turn, write_benchmark
from peft import LoraConfig, get_peft_model

import persona_lens as pl
from persona_lens.finetuning.blocks import TrainingInterventions
from persona_lens.finetuning.rows import encode_training_rows
from persona_lens.models.loading import EMBEDDED_MODEL, load_hugging_face, resolve_dtype

ROWS, REPEATS = 8, 7


def main() -> None:
    """Time a step without hooks, with each kind of them, and in float32; write the ratios."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    info = pl.describe_model(pl.load_model(EMBEDDED_MODEL, dtype=dtype, device="cpu"))
    torch.manual_seed(0)
    # Speed does not depend on the direction.
    vector = pl.PersonaVector("any", info, {"response_mean": torch.randn(info.n_layers, info.d_model)})

    def prepare(dtype: torch.dtype) -> tuple[Any, dict[str, torch.Tensor]]:
        hf_model, tokenizer = load_hugging_face(EMBEDDED_MODEL, dtype)
        lora = LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
        rows = encode_training_rows(tokenizer, pl.finetuning.domain_dataset("opinions", "I", ROWS), max_tokens=160).rows
        n_pos = max(map(len, rows["input_ids"]))

        def pad(values: list[int], filler: int) -> list[int]:
            return values + [filler] * (n_pos - len(values))

        batch = {
            "input_ids": torch.tensor([pad(row, 0) for row in rows["input_ids"]]),
            "labels": torch.tensor([pad(row, -100) for row in rows["labels"]]),
            "attention_mask": torch.tensor([pad([1] * len(row), 0) for row in rows["input_ids"]]),
        }
        return get_peft_model(hf_model, lora).train(), batch

    def make_step(
        model: Any, batch: dict[str, torch.Tensor], intervention: pl.Intervention, autocast: bool
    ) -> Callable[[], None]:
        active = TrainingInterventions(model, intervention)

        def step() -> None:
            precision: AbstractContextManager[Any] = (
                torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
            )
            with active.attached():
                with precision:
                    loss = model(**batch).loss
                loss.backward()
            model.zero_grad()

        return step

    model, batch = prepare(dtype)
    is_half = dtype == torch.bfloat16
    kinds = {
        "preventative steering, one layer": (pl.steer(vector, layer=15), "≤ 1.05"),
        "preventative steering, all layers": (pl.steer(vector, layers="all"), "≤ 1.05"),
        "ablation, one layer": (pl.ablate(vector, layer=15), "≤ 1.05"),
        "ablation, all layers": (pl.ablate(vector), "≤ 1.05"),
    }
    ways = {"bare": make_step(model, batch, pl.Intervention(), is_half)}
    ways |= {name: make_step(model, batch, intervention, is_half) for name, (intervention, _) in kinds.items()}
    if is_half:
        ways["float32"] = make_step(*prepare(torch.float32), pl.Intervention(), False)
    seconds = time_in_turn(ways, REPEATS)
    rows: list[dict[str, Any]] = [
        {
            "what": f"time of a training step with hooks ({name}), against without",
            "ratio": summarize_ratio(seconds, name, "bare"),
            "target": target,
        }
        for name, (_, target) in kinds.items()
    ]
    if is_half:
        rows.append(
            {
                "what": "speed-up of a training step by bfloat16 autocast, against float32",
                "ratio": summarize_ratio(seconds, "float32", "bare"),
                "target": "none",
            }
        )
    details = {
        "rows": ROWS,
        "tokens": int(batch["attention_mask"].sum()),
        "rounds": REPEATS,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }
    write_benchmark("finetuning", rows, info, details)


if __name__ == "__main__":
    main()
