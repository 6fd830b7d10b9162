"""Bytes and seconds of work on a model, from its shape and its machine's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from persona_lens.checking import checked
from persona_lens.planning.hardware import Hardware
from persona_lens.planning.shape import ModelShape
from persona_lens.records import Record

_AT_ONCE = 2048  # tokens that the engine reads in one pass
_OPERATIONS = 60  # of a layer's pass over the cache
_FLOAT = 4  # bytes of logits and of means, which are float32
_BITS = 8  # a byte


@checked
@dataclass(frozen=True)
class PlannedWork(Record):
    """One kind of work.

    Args:
        name: Extraction, sweep or screening.
        prompts: Prompts that are read, each once.
        prompt_tokens: Tokens of each.
        responses: Responses that are sampled.
        response_tokens: Most tokens of each; those that end sooner cost less.
        read_tokens: Tokens of responses that are read without sampling: given ones, and a judge's.
        minutes: How long it takes; NaN where nothing fits.
    """

    name: str
    prompts: int
    prompt_tokens: int
    responses: int
    response_tokens: int
    read_tokens: int
    minutes: float = math.nan


@dataclass(frozen=True)
class Costs:
    """Bytes and seconds of a model on a machine; `size` is the bytes of a number that is computed with."""

    shape: ModelShape
    machine: Hardware
    size: int
    bits: float

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights as they are loaded."""
        shape = self.shape
        twice = shape.vocab * shape.d_model if shape.is_tied else 0
        return shape.block_weights * self.bits / _BITS + (shape.parameters - shape.block_weights + twice) * self.size

    @property
    def activation_bytes(self) -> float:
        """Bytes of the widest activations of a pass."""
        return float(_AT_ONCE * (4 * self.shape.d_model + 2 * self.shape.d_mlp) * self.size)

    def count_row_bytes(self, tokens: int) -> float:
        """Return the bytes of a row's cache, logits and pooled means."""
        shape = self.shape
        kept = -(-tokens // 64) * 64 * shape.cache_values * self.size
        return float(kept + _FLOAT * (2 * shape.vocab + 2 * shape.n_layers * shape.d_model))

    def time_work(self, work: PlannedWork, batch_size: int) -> float:
        """Return seconds, by the formula of :func:`plan_work`."""
        machine = self.machine
        mean_tokens = work.prompt_tokens + work.response_tokens / 2
        cached = batch_size * mean_tokens
        step = self._time_pass(batch_size, batch_size, mean_tokens, cached, machine.sampling_share)
        # A row that ends makes room for the next, so batches are full but for the last.
        sampling = step * work.response_tokens * max(1.0, work.responses / batch_size) if work.responses else 0.0
        seconds = sampling
        for tokens, unembedded in ((work.prompts * work.prompt_tokens, 0), (work.read_tokens, _AT_ONCE)):
            one = self._time_pass(_AT_ONCE, unembedded, work.prompt_tokens / 2, 0.0, machine.reading_share)
            seconds += one * tokens / _AT_ONCE
        return seconds

    def _time_pass(self, tokens: int, unembedded: int, seen: float, cached: float, share: float) -> float:
        """Return seconds of a pass over some tokens, each of which sees so many others."""
        shape, machine = self.shape, self.machine
        ends = shape.vocab * shape.d_model
        flops = tokens * (2 * shape.active_weights + shape.attention_flops * seen) + 2 * unembedded * ends
        # All experts are read as soon as a batch needs them all, which is soon.
        traffic = shape.block_weights * self.bits / _BITS + (ends if unembedded else 0) * self.size
        traffic += cached * shape.cache_values * self.size
        limit = max(flops / machine.flops, traffic / machine.bandwidth)
        return max(limit / share, _OPERATIONS * shape.n_layers * machine.launch)
