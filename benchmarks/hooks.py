"""What intervention hooks cost: a forward pass with them against the bare forward pass of the same model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _compare import summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.models.loading import resolve_dtype

ROWS, TOKENS, REPEATS, PASSES = 8, 160, 9, 2


def main() -> None:
    """Time the bare pass and each kind of hooks in turn; write the ratios."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    model = pl.load_model(backend="hooked", dtype=dtype, device="cpu")
    info = pl.describe_model(model)
    torch.manual_seed(0)
    # Speed does not depend on the direction.
    vector = pl.PersonaVector("any", info, {"response_mean": torch.randn(info.n_layers, info.d_model)})
    tokens = torch.randint(5, model.cfg.d_vocab, (ROWS, TOKENS))

    def run(hooks: Sequence[Any]) -> Callable[[], None]:
        def forward() -> None:
            with torch.no_grad():
                for _ in range(PASSES):
                    model.run_with_hooks(tokens, fwd_hooks=list(hooks))

        return forward

    response: Any = {"positions": "response", "prompt_length": TOKENS // 2}
    kinds = {
        "steering, one layer": (pl.steering_hooks(vector, layer=15, **response), "≤ 1.05"),
        "ablation, one layer": (pl.ablation_hooks(vector, layer=15), "≤ 1.05"),
        "capping, one layer": (pl.capping_hooks(vector, layer=15, ceiling=1.0), "≤ 1.05"),
        "steering, all layers": (pl.steering_hooks(vector, layers="all", **response), "≤ 1.1"),
        "ablation, all layers": (pl.ablation_hooks(vector), "≤ 1.1"),
        "capping, all layers": (pl.capping_hooks(vector, ceiling=1.0), "≤ 1.1"),
    }
    ways = {"bare": run([])} | {name: run(hooks) for name, (hooks, _) in kinds.items()}
    seconds = time_in_turn(ways, REPEATS)
    rows = [
        {
            "what": f"time of a forward pass with hooks ({name}), against the bare one",
            "ratio": summarize_ratio(seconds, name, "bare"),
            "target": target,
        }
        for name, (_, target) in kinds.items()
    ]
    details = {
        "rows": ROWS,
        "tokens": TOKENS,
        "rounds": REPEATS,
        "seconds": {name: statistics.median(values) / PASSES for name, values in seconds.items()},
    }
    write_benchmark("hooks", rows, info, details)


if __name__ == "__main__":
    main()
