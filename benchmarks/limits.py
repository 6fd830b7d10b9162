"""How far sampling, scoring and training are from the machine: against their matrix products alone.

The limit is the time that the same matrix products take with nothing between them: every linear layer of every block
and the unembedding, in the same dtype, each on weights of its own, on as many rows at once as the work has (128 when
sampling, 2,048 when scoring, a step's 848 when training). Only products of tokens that were asked for are counted, so
padding, idle rows, prompts and an adapter's own products are losses too.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _compare import summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.finetuning.rows import encode_training_rows
from persona_lens.judges.likelihood import LikelihoodCalibration
from persona_lens.models import RolloutRequest
from persona_lens.models.loading import EMBEDDED_MODEL, resolve_dtype
from persona_lens.reproduction.training import TRAINING, read_trait_rows

N_CONDITIONS, TOKENS, REPEATS = 12, 48, 3


def main() -> None:
    """Time each work and its products in turn; write the shares."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    model = pl.load_model(backend="hooked", dtype=dtype, device="cpu")
    weights = list_weights(model, dtype)
    trait = pl.load_trait("evil")
    sampling = pl.Sampling(TOKENS, 0.7)
    requests = [
        RolloutRequest(question, (condition, q), intervention=pl.steer(pl.load_vector("evil"), layer=condition))
        for condition in range(N_CONDITIONS)
        for q, question in enumerate(trait.evaluation_questions)
    ]
    sampled = pl.models.sample_rollouts(model, requests, sampling)
    asked, answers = [one.request.question for one in sampled], [one.response for one in sampled]
    n_sampled = sum(len(model.tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers)
    # Speed does not depend on the calibration.
    judge = pl.judges.LikelihoodJudge(model, trait, 1, LikelihoodCalibration(1.0, 0.0, -2.0, -3.0, -1.0, 1, 1, 1, 0))
    profile = TRAINING["quick"]
    settings = replace(profile.settings, epochs=1, dtype=str(dtype).removeprefix("torch."))
    rows = read_trait_rows("evil", "II", "training", profile.n_rows)
    trained_on = [encode_training_rows(model.tokenizer, rows.select(range(n)), max_tokens=settings.max_tokens)
                  for n in (profile.n_rows, settings.batch_size)]  # fmt: skip
    n_trained, n_answered = (
        getattr(trained_on[0], name) - getattr(trained_on[1], name) for name in ("n_tokens", "n_response_tokens")
    )

    def train(n_rows: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            pl.finetune(EMBEDDED_MODEL, rows.select(range(n_rows)), Path(folder) / "a", settings=settings)

    ways: dict[str, Callable[[], Any]] = {
        "sampling": lambda: pl.models.sample_rollouts(model, requests, sampling),
        "products of 128 rows": lambda: multiply(weights, 128),
        "scoring": lambda: judge.score(asked, answers),
        "products of 2048 rows": lambda: multiply(weights, 2048),
        "training": lambda: train(profile.n_rows),
        # Loading, and whatever else comes before the second step.
        "training, first step": lambda: train(settings.batch_size),
        "products of 848 rows": lambda: multiply(weights, 848),
    }
    seconds = time_in_turn(ways, REPEATS)
    blocks, unembedding = (sum(w.numel() for w in some) for some in (weights[:-1], weights[-1:]))
    # A frozen layer's backward pass is one product of the forward pass's size; the adapter's own are left out.
    flops = {
        "sampling": 2 * n_sampled * (blocks + unembedding),
        "scoring": 2 * 3 * n_sampled * (blocks + unembedding),
        "training": 4 * (n_trained * blocks + n_answered * unembedding),
    }
    seconds["steps after the first"] = [
        a - b for a, b in zip(seconds["training"], seconds["training, first step"], strict=True)
    ]
    rows_of = {"sampling": ("sampling", 128), "scoring": ("scoring", 2048), "training": ("steps after the first", 848)}
    found, details = [], {}
    for work, (timed, height) in rows_of.items():
        alone = [
            one * flops[work] / (2 * height * (blocks + unembedding)) for one in seconds[f"products of {height} rows"]
        ]
        both = {"alone": alone, "work": seconds[timed]}
        found.append({"what": f"{work}: share of the matrix-product limit",
 "ratio": summarize_ratio(both, "alone", "work"),
                      "target": "≥ 0.55"})  # fmt: skip
        details[work] = {
            f"{name} GFLOP/s": flops[work] / statistics.median(spent) / 1e9
            for name, spent in (("achieved", both["work"]), ("limit", both["alone"]))
        }
    write_benchmark("limits", found, pl.describe_model(model), details)


def list_weights(model: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return random weights of the shapes of the blocks' linear layers, and last of the unembedding."""
    cfg = model.cfg
    queries, keys = cfg.n_heads * cfg.d_head, (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    block = [(queries, cfg.d_model), (keys, cfg.d_model), (keys, cfg.d_model), (cfg.d_model, queries)]
    block += [(cfg.d_mlp, cfg.d_model), (cfg.d_mlp, cfg.d_model), (cfg.d_model, cfg.d_mlp)]
    return [torch.randn(shape).to(dtype) for shape in [*block * cfg.n_layers, (cfg.d_vocab, cfg.d_model)]]


def multiply(weights: Sequence[torch.Tensor], height: int) -> None:
    """Multiply rows of activations with each weight."""
    rows = {width: torch.randn(height, width).to(weights[0].dtype) for width in {w.shape[1] for w in weights}}
    for weight in weights:
        torch.nn.functional.linear(rows[weight.shape[1]], weight)


if __name__ == "__main__":
    main()
