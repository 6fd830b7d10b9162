"""What a machine can do: operations, memory traffic and memory, from its data sheet or measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.loading import resolve_dtype
from persona_lens.models.loading.spreading import read_available_memory
from persona_lens.records import Record

__all__ = ["HARDWARE", "Hardware", "measure_hardware"]

_ROWS, _WIDTH = 512, 2048  # of the product that is timed
_COPIED = 2**26  # bytes, well past a processor's caches
_REPEATS = 5


@checked
@dataclass(frozen=True)
class Hardware(Record):
    """What a machine can do.

    Args:
        name: For tables.
        flops: Operations a second in matrix products of the model's dtype; a multiplication and an addition are two.
        bandwidth: Bytes a second read from memory.
        memory: Bytes that weights, cache and activations may take.
        launch: Seconds that it takes to begin an operation, however small; 0 where that is part of its shares.
        sampling_share: Of what products and traffic alone would take, how much sampling reaches: measured on two cores
            (docs/developing/speed.md); no GPU was measured.
        reading_share: The same of reading texts.

    Raises:
        InvalidArgumentError: A number out of range.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    launch: float = 0.0
    sampling_share: float = 0.5
    reading_share: float = 0.7

    def __post_init__(self) -> None:
        for name in ("flops", "bandwidth", "memory"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidArgumentError.of(name, "be positive and finite", getattr(self, name))
        if not 0 <= self.launch < 1:
            raise InvalidArgumentError.of("launch", "be from 0 to 1 second", self.launch)
        for name in ("sampling_share", "reading_share"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidArgumentError.of(name, "be in (0, 1]", getattr(self, name))


_LAUNCH = 5e-6  # seconds; of PyTorch's usual mode, operation by operation

# From the makers' data sheets: dense bfloat16 products (float16 for the T4), without sparsity.
HARDWARE: Mapping[str, Hardware] = {
    one.name: one
    for one in (
        Hardware("t4", 65e12, 0.32e12, 16e9, _LAUNCH),
        Hardware("l4", 121e12, 0.30e12, 24e9, _LAUNCH),
        Hardware("rtx-4090", 165e12, 1.01e12, 24e9, _LAUNCH),
        Hardware("a100-40gb", 312e12, 1.56e12, 40e9, _LAUNCH),
        Hardware("a100-80gb", 312e12, 2.04e12, 80e9, _LAUNCH),
        Hardware("h100", 989e12, 3.35e12, 80e9, _LAUNCH),
        Hardware("h200", 989e12, 4.80e12, 141e9, _LAUNCH),
    )
}
"""GPUs by name, with what their makers state: dense products in bfloat16 (float16 for the T4), and memory."""


@checked
def measure_hardware(dtype: str = "auto", device: str | None = None) -> Hardware:
    """Measure this machine: a matrix product, a copy, and the memory that is free; under a second.

    Args:
        dtype: As for :func:`persona_lens.load_model`.
        device: None takes a GPU if there is one.

    Raises:
        InvalidArgumentError: An unknown dtype or device.

    Example:
        >>> measure_hardware("float32", "cpu").flops > 1e9
        True
    """
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        bytes_moved = torch.zeros(_COPIED, dtype=torch.uint8, device=where)
    except (RuntimeError, AssertionError) as error:  # unknown, or not there
        raise InvalidArgumentError.of("device", "be None or a device of this machine", device) from error
    resolved = resolve_dtype(dtype, where)
    rows, weight = torch.randn(_ROWS, _WIDTH).to(where, resolved), torch.randn(_WIDTH, _WIDTH).to(where, resolved)
    target = torch.empty_like(bytes_moved)

    def multiply() -> Any:
        return torch.nn.functional.linear(rows, weight)

    def copy() -> Any:
        return target.copy_(bytes_moved)

    flops = 2 * _ROWS * _WIDTH**2 / _time_best(multiply, where)
    # A copy reads and writes.
    bandwidth = 2 * _COPIED / _time_best(copy, where)
    if where.type == "cuda":
        return Hardware(torch.cuda.get_device_name(where), flops, bandwidth, torch.cuda.mem_get_info(where)[0], _LAUNCH)
    name = f"this machine, {torch.get_num_threads()} threads"
    return Hardware(name, flops, bandwidth, float(read_available_memory()))


def _time_best(work: Callable[[], Any], device: torch.device) -> float:
    """Return seconds of the fastest of some runs: what the machine can do where nothing is in its way."""
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times)
