"""What the benchmarks share: two or more ways of doing the same work, timed in turn in one process."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from persona_lens.files import write_json
from persona_lens.models.loading import ModelInfo, prepare_embedded_model
from persona_lens.storage import collect_versions

RESULTS = Path(__file__).parent / "results"
N_THREADS = 2
torch.set_num_threads(N_THREADS)


def time_in_turn(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return seconds of each way, run one after the other, ``repeats`` times, after one run that is not counted.

    In turn, so that a machine that slows down for a while slows all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in tqdm(range(repeats + 1), desc="rounds"):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize_ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """Return how many times faster ``fast`` is: the median over rounds, and the range."""
    ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


@dataclass(frozen=True)
class Memory:
    """Resident memory of this process, in MiB: before some work, and its peak during it."""

    before: float
    peak: float

    @property
    def growth(self) -> float:
        """The work's own: the peak over what was resident before."""
        return self.peak - self.before


def measure_memory(work: Callable[[], Any]) -> Memory:
    """Do some work and measure its memory; Linux only."""
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    # Loading peaks higher than the loaded model; the kernel forgets that peak when asked.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    work()
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
    return Memory(before, peak)


def write_benchmark(name: str, rows: list[dict[str, Any]], model: ModelInfo, details: dict[str, Any]) -> None:
    """Write results/NAME.json and print its ratios.

    Args:
        name: File name without ending.
        rows: One comparison each: ``what``, ``ratio`` (median, low, high), ``target``.
        model: The model.
        details: The work that was done, and each way's median seconds.
    """
    content = {
        "rows": rows,
        "details": details,
        "model": {"name": model.name, "dtype": model.dtype},
        "machine": {"threads": N_THREADS, "processor": platform.machine(), "versions": collect_versions()},
    }
    write_json(RESULTS / f"{name}.json", content)
    for row in rows:
        ratio = row["ratio"]
        print(f"{row['what']}: {ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f}), target {row['target']}")


class HuggingFaceWay:
    """The paper's procedure as its authors wrote it: Hugging Face ``generate`` in batches, and forward hooks."""

    BATCH_SIZE = 20

    def __init__(self, dtype: torch.dtype) -> None:
        folder = prepare_embedded_model()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def generate(
        self,
        prompts: list[tuple[int, ...]],
        max_new_tokens: int,
        *,
        min_new_tokens: int = 1,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[int]]:
        """Sample a response to each prompt, batch by batch; return them without their stop tokens."""
        responses = []
        stop = self.tokenizer.eos_token_id
        for at in range(0, len(prompts), batch_size):
            batch = self.tokenizer.pad(
                {"input_ids": [list(p) for p in prompts[at : at + batch_size]]}, return_tensors="pt"
            )
            with torch.no_grad():
                tokens = self.model.generate(
                    **batch, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                    min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens, eos_token_id=stop,
                )  # fmt: skip
            sampled = tokens[:, batch["input_ids"].shape[1] :].tolist()
            responses += [row[: row.index(stop)] if stop in row else row for row in sampled]
        return responses

    @contextmanager
    def steered(self, configuration: tuple[int, torch.Tensor] | None) -> Iterator[None]:
        """Add a direction to a layer's output at the last position of every forward pass, as the paper's code does."""
        if configuration is None:
            yield
            return
        layer, direction = configuration

        def add(module: Any, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, -1:] += direction.to(hidden.dtype)
            return output

        handle = self.model.model.layers[layer].register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()
