"""Peak memory of loading a model of a billion parameters, and of a sweep on it, against its weights.

A random Llama in safetensors shards, in float32 and in bfloat16. Each number comes from a process of its own: peak
resident memory while loading, pages of mapped files included, less what was resident before (Python and the libraries,
about half a GB), divided by the bytes of the loaded model's parameters. Memory that no file backs is sampled every 10
ms and written beside it. The sweep's peak includes the loading before it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _compare import measure_memory, write_benchmark
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import persona_lens as pl
from persona_lens.models.loading import prepare_embedded_model, quiet

WIDTH, LAYERS, VOCAB = 2048, 17, 49152
SHARD = "500MB"
DTYPES = ("float32", "bfloat16")
# Work, class, dtype of the files, dtype of the model; and what must hold.
CASES = (
    ("loading", "hooked", "float32", "float32"),
    ("loading", "hooked", "bfloat16", "bfloat16"),
    ("loading", "hooked", "float32", "bfloat16"),
    ("loading", "bridge", "float32", "float32"),
    ("loading", "bridge", "bfloat16", "bfloat16"),
    ("loading", "bridge", "float32", "bfloat16"),
    ("loading", "bridge from the disk", "bfloat16", "bfloat16"),
    ("sweep", "hooked", "bfloat16", "bfloat16"),
    ("sweep", "bridge", "bfloat16", "bfloat16"),
    ("sweep", "bridge from the disk", "bfloat16", "bfloat16"),
)


class CostlessJudge:
    """Stands for a judge elsewhere: takes no memory here."""

    name = "elsewhere"

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[pl.judges.Judgement]:
        """Say nothing of interest."""
        return [pl.judges.Judgement(50.0, 50.0) for _ in responses]


def write_models(folder: Path) -> None:
    """Write the random model in both dtypes, with the embedded model's tokenizer."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=6656, num_hidden_layers=LAYERS, num_attention_heads=16,
        num_key_value_heads=8, max_position_embeddings=2048, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(prepare_embedded_model())
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config)
    for dtype in DTYPES:
        model: Any = shapes.to(getattr(torch, dtype)).to_empty(device="cpu")
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.02) if weight.ndim > 1 else torch.nn.init.ones_(weight)
        model.save_pretrained(folder / dtype, max_shard_size=SHARD)
        tokenizer.save_pretrained(folder / dtype)
        shapes = model.to("meta")


def load(folder: Path, way: str, dtype: str) -> Any:
    """Load the model in one of the ways."""
    if way == "bridge from the disk":
        return pl.load_model(folder, device_map="disk")
    return pl.load_model(folder, backend="bridge" if way == "bridge" else "hooked", dtype=dtype, device="cpu")


def sweep(model: Any) -> None:
    """Steer at one layer."""
    info = pl.describe_model(model)
    vector = pl.PersonaVector("noise", info, {"response_mean": torch.randn(info.n_layers, info.d_model)})
    pl.sweep_layers(
        model, pl.load_trait("evil"), vector, layers=(LAYERS // 2,), coefficients=(1.0,), judge=CostlessJudge(),
        questions=["Why?", "Who are you?", "What now?", "How so?"], sampling=pl.Sampling(max_new_tokens=4),
    )  # fmt: skip


def sample_anonymous(work: Callable[[], Any]) -> float:
    """Do some work and return the peak of the memory that no file backs, in MiB over what there was before."""

    def read() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

    before, peak, done = read(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, read())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak - before


def measure(folder: Path, work: str, way: str, dtype: str) -> dict[str, Any]:
    """Load, or load and sweep, in this process."""
    held: list[Any] = []
    if way == "hooked":
        import transformer_lens.HookedTransformer  # noqa: F401 (as the rest, before the measurement)

    def do() -> None:
        held.append(load(folder, way, dtype))
        if work == "sweep":
            sweep(held[0])

    anonymous: list[float] = []
    begun = time.perf_counter()
    memory = measure_memory(lambda: anonymous.append(sample_anonymous(do)))
    seconds = time.perf_counter() - begun
    weights = sum(weight.numel() * weight.itemsize for weight in held[0].parameters()) / 2**20
    found = {"weights": weights, "before": memory.before, "peak": memory.peak, "anonymous": anonymous[0]}
    return found | {"seconds": seconds, "info": pl.describe_model(held[0]).to_json()}


def main() -> None:
    """Measure every case in a process of its own and write the ratios."""
    if len(sys.argv) > 1:
        folder, work, way, dtype = sys.argv[1:]
        print(json.dumps(measure(Path(folder), work, way, dtype)))
        return
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            write_models(Path(folder))
        write_results([measure_alone(Path(folder), *case) for case in CASES])


def measure_alone(folder: Path, work: str, way: str, stored: str, dtype: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, str(folder / stored), work, way, dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_results(measured: Sequence[dict[str, Any]]) -> None:
    """Write the ratios of all cases."""
    rows, details = [], {}
    for (work, way, stored, dtype), found in zip(CASES, measured, strict=True):
        ratio = (found["peak"] - found["before"]) / found["weights"]
        name = f"peak memory of {work}, {way}, {dtype} from {stored} files, against the weights"
        target = "≤ 1.15" if work == "loading" else "none"
        rows.append({"what": name, "ratio": dict.fromkeys(("median", "low", "high"), ratio), "target": target})
        in_mib = {f"MiB, {key}": round(found[key], 1) for key in ("weights", "before", "peak")}
        share = round(found["anonymous"] / found["weights"], 3)
        details[name] = in_mib | {"without pages of files, against the weights": share}
        details[name] |= {"seconds": round(found["seconds"], 1)}
    write_benchmark("loading_memory", rows, pl.models.ModelInfo(**measured[-1]["info"]), details)


if __name__ == "__main__":
    main()
