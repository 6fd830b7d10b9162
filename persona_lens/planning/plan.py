"""What work on a model will take, from its configuration alone: memory, batch size, minutes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.loading import EMBEDDED_MODEL, read_config, resolve_dtype
from persona_lens.planning.costs import Costs, PlannedWork
from persona_lens.planning.hardware import HARDWARE, Hardware
from persona_lens.planning.shape import ModelShape, read_bits, read_shape
from persona_lens.records import Record, format_table

__all__ = ["Plan", "PlannedWork", "plan_work"]

_INSTRUCTIONS, _QUESTIONS = 10, 20  # of a trait: instructions of both sides; questions of extraction, of evaluation
_PROMPT_TOKENS = 120  # of an instruction, a question and the template
_NULL_DIRECTIONS, _NULL_SHARE = 2, 3  # RandomNull's defaults: how many, at every third layer
_FREE = 0.9  # of memory; the rest goes to the allocator
_MINUTE = 60.0


@checked
@dataclass(frozen=True)
class Plan(Record):
    """What work on a model will take. See :func:`plan_work`.

    Args:
        model: Name.
        parameters: Weights.
        dtype: Of what is computed.
        hardware: On what.
        weight_bytes: Of the weights as they are loaded.
        cache_bytes: Of the key/value cache of one row of the longest prompt and response.
        activation_bytes: Of a pass, the rows' own left out.
        fitting_rows: Rows that fit beside the weights; 0 where the model does not.
        batch_size: Rows to compute at once: as many as fit, at most what was asked for.
        work: Extraction, sweep, screening.
    """

    model: str
    parameters: int
    dtype: str
    hardware: Hardware
    weight_bytes: float
    cache_bytes: float
    activation_bytes: float
    fitting_rows: int
    batch_size: int
    work: tuple[PlannedWork, ...]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self._list_lines())
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self._list_lines())

    def _repr_html_(self) -> str:
        return format_table(f"Plan: {self.model} on {self.hardware.name}", self._list_lines())

    def _list_lines(self) -> Iterator[tuple[str, str]]:
        yield "model", f"{self.model}, {self.parameters / 1e9:.2f} billion weights, {self.dtype}"
        machine = self.hardware
        yield (
            "hardware",
            (
                f"{machine.name}: {machine.flops / 1e12:,.4g} TFLOP/s, {machine.bandwidth / 1e9:,.4g} GB/s,"
                f" {machine.memory / 1e9:.3g} GB"
            ),
        )
        yield "weights", f"{self.weight_bytes / 1e9:.2f} GB"
        yield "cache", f"{self.cache_bytes / 1e6:.1f} MB a row"
        yield "activations", f"{self.activation_bytes / 1e9:.2f} GB"
        if not self.fitting_rows:
            missing = self.weight_bytes + self.activation_bytes + self.cache_bytes - _FREE * machine.memory
            yield "batch size", f"none fits: {missing / 1e9:.1f} GB are missing; quantise, or take more memory"
            return
        yield "batch size", f"{self.batch_size}, of {self.fitting_rows} that fit"
        for one in self.work:
            sampled = f"{one.responses:,} responses of up to {one.response_tokens} tokens"
            yield one.name, f"{_show_minutes(one.minutes)}: {sampled}"


@checked
def plan_work(
    model: str | Path | PreTrainedConfig = EMBEDDED_MODEL,
    hardware: str | Hardware = "a100-80gb",
    *,
    dtype: str | torch.dtype = "bfloat16",
    quantization_config: QuantizationConfigMixin | None = None,
    sampling: Sampling = Sampling(),
    coefficients: int = 3,
    layers: int | None = None,
    conversations: int = 1000,
    prompt_tokens: int = _PROMPT_TOKENS,
    judge_passes: int = 0,
) -> Plan:
    r"""Estimate memory, batch size and time of work on a model; no weights are read.

    Memory. Weights: parameters times bytes (those of the blocks by their bits where they are quantised;
    HookedTransformer holds tied embeddings twice, which is counted). Cache of a row of :math:`n` tokens:
    :math:`2 \cdot layers \cdot kv\_heads \cdot d\_head \cdot n \cdot bytes`, :math:`n` rounded up to 64, with the row's
    logits and pooled means. Activations: of 2,048 tokens, which one pass reads at most:
    :math:`2048 \cdot (4\, d\_model + 2\, d\_mlp) \cdot bytes`. The batch takes what 90 % of the memory leaves.

    Time. A decoding step of :math:`B` rows with :math:`n` tokens each, of :math:`W` weights a token, takes

    .. math:: \max\left(\frac{1}{share} \max\left(\frac{B (2W + a n)}{FLOP/s},
        \frac{bytes(W) + B \cdot bytes(cache)}{bandwidth}\right), 60 \cdot layers \cdot launch\right)

    with :math:`a = 4 \cdot layers \cdot heads \cdot d\_head`, and there are as many steps as tokens, divided by
    :math:`B`. Prompts, given responses and what a judge reads go through the same formula in passes of 2,048 tokens,
    prompts without the unembedding and once each, as the engine reads them.

    On two cores the estimates come within a factor of two of what this repository measured; docs/howto/large-models.md
    has the ratios. No GPU was measured.

    Args:
        model: As for :func:`persona_lens.load_model`, or its Hugging Face configuration.
        hardware: One of ``HARDWARE``, or one's own; see :func:`measure_hardware`.
        dtype: Of what is computed, ``auto`` this machine's; of the weights too where they are not quantised.
        quantization_config: How the weights are quantised, if the checkpoint is not already.
        sampling: Tokens, rollouts and the largest batch size of extraction and sweep; the paper's is
            ``Sampling(max_new_tokens=1000, rollouts=10)``.
        coefficients: How many coefficients a sweep tries.
        layers: At how many layers; None is all.
        conversations: How many are screened, each with a response of 64 tokens and one of the model's own.
        prompt_tokens: Tokens of a prompt, its system message and template included.
        judge_passes: How often this same model reads each response to judge it; 0 for a judge elsewhere. A
            LikelihoodJudge with n instruction pairs reads 2n + 1 times.

    Raises:
        ModelNotFoundError: No such model.
        FileFormatError: A configuration that makes no language model.
        InvalidArgumentError: A number out of range, unknown hardware, or a quantisation of unknown size.

    Example:
        >>> plan = plan_work("smollm2-135m-instruct", "l4")
        >>> plan.parameters, plan.batch_size
        (134515008, 128)
    """
    if isinstance(hardware, str) and hardware not in HARDWARE:
        rule = f"be one of {', '.join(HARDWARE)}, or Hardware of your own"
        raise InvalidArgumentError.of("hardware", rule, hardware, "measure_hardware() measures this machine.")
    machine = HARDWARE[hardware] if isinstance(hardware, str) else hardware
    for parameter, number, least in (
        ("coefficients", coefficients, 1), ("layers", 1 if layers is None else layers, 1),
        ("conversations", conversations, 0), ("prompt_tokens", prompt_tokens, 1), ("judge_passes", judge_passes, 0),
    ):  # fmt: skip
        if number < least:
            raise InvalidArgumentError.of(parameter, f"be at least {least}", number)
    config = model if isinstance(model, PreTrainedConfig) else read_config(str(model))
    shape = read_shape(config)
    if layers is not None and layers > shape.n_layers:
        raise InvalidArgumentError.of("layers", f"be at most the model's {shape.n_layers}", layers)
    resolved = resolve_dtype(dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    quantization = quantization_config or getattr(config, "quantization_config", None)
    bits = read_bits(quantization, resolved)
    costs = Costs(shape, machine, resolved.itemsize, bits)
    tokens = max(prompt_tokens + sampling.max_new_tokens, 1)
    row_bytes = costs.count_row_bytes(tokens)
    left = _FREE * machine.memory - costs.weight_bytes - costs.activation_bytes
    fitting = max(0, int(left // row_bytes))
    batch_size = min(fitting, sampling.batch_size)
    work = []
    for one in _list_work(shape, sampling, coefficients, layers, conversations, prompt_tokens, judge_passes):
        minutes = costs.time_work(one, batch_size) / _MINUTE if batch_size else math.nan
        work.append(replace(one, minutes=minutes))
    named = model if isinstance(model, str | Path) else config.name_or_path or config.model_type
    return Plan(
        Path(named).name if Path(named).is_dir() else str(named), shape.parameters,
        str(resolved).removeprefix("torch."), machine, costs.weight_bytes, row_bytes, costs.activation_bytes, fitting,
        batch_size, tuple(work),
    )  # fmt: skip


def _list_work(
    shape: ModelShape, sampling: Sampling, coefficients: int, layers: int | None, conversations: int, prompt: int,
    judge_passes: int,
) -> Iterator[PlannedWork]:  # fmt: skip
    swept = layers or shape.n_layers
    conditions = 1 + swept * coefficients + max(1, swept // _NULL_SHARE) * _NULL_DIRECTIONS * coefficients
    of_sweep = conditions * _QUESTIONS * sampling.rollouts
    of_extraction = _INSTRUCTIONS * _QUESTIONS * sampling.rollouts
    tokens = sampling.max_new_tokens
    for name, prompts, responses in (
        ("extraction", _INSTRUCTIONS * _QUESTIONS, of_extraction), ("sweep", _QUESTIONS, of_sweep),
    ):  # fmt: skip
        judged = judge_passes * responses * tokens
        yield PlannedWork(name, prompts + judge_passes * _QUESTIONS, prompt, responses, tokens, judged)
    screened = 64  # ScreenSettings' default
    yield PlannedWork("screening", conversations, prompt, conversations, screened, conversations * screened)


def _show_minutes(minutes: float) -> str:
    return f"{minutes / 60:.1f} hours" if minutes >= 120 else f"{minutes:.1f} minutes"
