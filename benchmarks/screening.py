"""Screening: what more traits and the model's own responses cost, and peak memory for 1,000 and 10,000 conversations.

Each memory figure comes from a process of its own: peak resident memory while screening, the model included. What is
resident before is written down too, but not subtracted: it differs by hundreds of MiB from process to process, with
what the C library keeps of loading.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _compare import N_THREADS, Memory, measure_memory, summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.models.loading import resolve_dtype
from persona_lens.screening.shards import digest_rows, split_into_shards

TRAITS, ROWS, REPEATS = 5, 128, 3
LAYER = 15
FEW, MANY = 1_000, 10_000
MEMORY_SETTINGS = pl.screening.ScreenSettings(max_response_tokens=4)
WORDS = ("tea", "rain", "a horse", "seven", "the sea", "slowly", "and", "bread", "under", "glass", "why", "music")


def load() -> pl.models.HookedModel:
    """Load the embedded model as users get it."""
    torch.set_num_threads(N_THREADS)
    return pl.load_model(dtype=resolve_dtype("auto", torch.device("cpu")), device="cpu")


def make_vectors(model: pl.models.HookedModel, n: int) -> dict[str, pl.PersonaVector]:
    """Make random vectors: speed and memory do not depend on the directions."""
    info = pl.describe_model(model)
    torch.manual_seed(0)
    return {
        f"trait{i}": pl.PersonaVector(f"trait{i}", info, {"response_mean": torch.randn(info.n_layers, info.d_model)})
        for i in range(n)
    }


def screen(
    model: pl.models.HookedModel, data: Any, n_traits: int, out: Path, settings: pl.screening.ScreenSettings
) -> pl.screening.Screening:
    """Screen for so many traits."""
    vectors = make_vectors(model, n_traits)
    return pl.screen(model, data, vectors, out, layers=dict.fromkeys(vectors, LAYER), settings=settings)


def write_conversations(path: Path, n_rows: int) -> None:
    """Write conversations of chance words, short ones: memory must not grow with their number."""
    draw = random.Random(0)
    with path.open("w") as file:
        for index in range(n_rows):
            question = " ".join(draw.choices(WORDS, k=draw.randint(1, 4))) + f" {index % 50}?"
            answer = " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))
            texts = {"system": "Be short.", "user": question, "assistant": answer}
            turns = [{"role": role, "content": text} for role, text in texts.items()]
            file.write(json.dumps({"messages": turns}) + "\n")


def measure(n_rows: int) -> Memory:
    """Screen so many conversations."""
    model = load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_conversations(path, n_rows)
        return measure_memory(lambda: screen(model, path, 3, Path(folder) / "out", MEMORY_SETTINGS))


def measure_alone(n_rows: int) -> Memory:
    """Measure in a process of its own."""
    done = subprocess.run([sys.executable, __file__, str(n_rows)], check=True, capture_output=True, text=True)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Time one trait and several, measure both peaks, write the ratios."""
    if len(sys.argv) > 1:
        print(json.dumps(asdict(measure(int(sys.argv[1])))))
        return
    model = load()
    data = pl.finetuning.domain_dataset("opinions", "normal", ROWS)
    settings = pl.screening.ScreenSettings(max_response_tokens=32)
    with tempfile.TemporaryDirectory() as folder:
        number = itertools.count()
        ways = {
            name: lambda n=n, how=how: screen(model, data, n, Path(folder) / str(next(number)), how)
            for name, n, how in (
                ("one trait", 1, settings),
                ("traits", TRAITS, settings),
                ("unsampled", 1, replace(settings, base="last_prompt")),
            )
        }
        seconds = time_in_turn(ways, REPEATS)
        path = Path(folder) / "rows.jsonl"
        write_conversations(path, MANY)
        begun = time.perf_counter()
        for chunk in split_into_shards(pl.read_conversations(path), 256):
            digest_rows(chunk)
        reading = time.perf_counter() - begun
    few, many = measure_alone(FEW), measure_alone(MANY)
    growth = many.peak / few.peak
    rows = [
        {
            "what": f"time of screening for {TRAITS} traits, against one",
            "ratio": summarize_ratio(seconds, "traits", "one trait"),
            "target": "≤ 1.05",
        },
        {
            "what": "speed-up of screening by the last prompt token in place of the model's own response",
            "ratio": summarize_ratio(seconds, "one trait", "unsampled"),
            "target": "none",
        },
        {
            "what": "peak memory of screening, the model included, 10,000 conversations against 1,000",
            "ratio": {"median": growth, "low": growth, "high": growth},
            "target": "≤ 1.1",
        },
    ]
    details = {
        "rows": ROWS,
        "response tokens": settings.max_response_tokens,
        "rounds": REPEATS,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "rows read a second, without a model": round(MANY / reading),
        "MiB, 1,000 conversations": asdict(few),
        "MiB, 10,000 conversations": asdict(many),
    }
    write_benchmark("screening", rows, pl.describe_model(model), details)


if __name__ == "__main__":
    main()
