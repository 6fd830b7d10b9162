"""Peak memory of an extraction over the loaded model, for 100 and for 1,000 responses.

Each number comes from a process of its own: peak resident memory after the extraction less resident memory before.
"""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from _compare import N_THREADS, measure_memory, write_benchmark

import persona_lens as pl
from persona_lens.models.loading import resolve_dtype

TOKENS = 16


def measure(rollouts: int) -> float:
    """Return the peak over the loaded model of an extraction of 100 responses times ``rollouts``, in MiB."""
    torch.set_num_threads(N_THREADS)
    model = pl.load_model(dtype=resolve_dtype("auto", torch.device("cpu")), device="cpu")
    trait = pl.load_trait("evil")
    trait = pl.Trait(**(vars(trait) | {"extraction_questions": trait.extraction_questions[:10]}))
    memory = measure_memory(
        lambda: pl.extract_persona_vector(model, trait, judge="none", rollouts=rollouts, max_new_tokens=TOKENS)
    )
    return memory.growth


def main() -> None:
    """Measure both and write the ratio."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    peaks = {}
    for rollouts in (1, 10):
        runs = []
        for _ in range(3):
            done = subprocess.run([sys.executable, __file__, str(rollouts)], check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        peaks[rollouts] = sorted(runs)
    ratios = [b / a for a, b in zip(peaks[1], peaks[10], strict=True)]
    rows = [
        {
            "what": "peak memory over the loaded model, 1,000 responses against 100",
            "ratio": {"median": ratios[1], "low": min(ratios), "high": max(ratios)},
            "target": "≤ 1.1",
        }
    ]
    details = {"tokens": TOKENS, "MiB, 100 responses": peaks[1], "MiB, 1,000 responses": peaks[10]}
    write_benchmark("memory", rows, pl.describe_model(pl.load_model()), details)


if __name__ == "__main__":
    main()
