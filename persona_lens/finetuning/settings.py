"""How a model is fine-tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError


@checked
@dataclass(frozen=True)
class FinetuneSettings:
    """How a model is fine-tuned; the defaults are the paper's.

    Args:
        rank: Of the LoRA matrices, on every linear layer of the blocks.
        alpha: Scale of the adapter; rank-stabilised, so it enters as ``alpha / sqrt(rank)``.
        learning_rate: Peak, after ``warmup_steps``; then linearly to 0.
        epochs: Passes over the data.
        batch_size: Rows of a forward pass on one device.
        accumulation: Forward passes of an optimiser step.
        warmup_steps: Optimiser steps in which the learning rate rises.
        weight_decay: Of AdamW.
        max_tokens: Longer conversations are left out and reported.
        dtype: ``auto`` trains in bfloat16 autocast where the hardware computes it, else in float32; the adapter's
            own weights are float32 in either case.
        save_steps: Optimiser steps between checkpoints, the last two of which are kept; None keeps none, so that a
            killed run begins anew.
        seed: Of the adapter's initial weights and of the rows' order.

    Reference:
        Persona Vectors (arXiv 2507.21509), appendix D.
    """

    rank: int = 32
    alpha: int = 64
    learning_rate: float = 1e-5
    epochs: int = 1
    batch_size: int = 2
    accumulation: int = 8
    warmup_steps: int = 5
    weight_decay: float = 0.01
    max_tokens: int = 2048
    dtype: str = "auto"
    save_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"rank": 1, "epochs": 1, "batch_size": 1, "accumulation": 1, "max_tokens": 1, "warmup_steps": 0}
        for name, lowest in least.items():
            if not _is_count(getattr(self, name), lowest):
                raise InvalidArgumentError.of(name, f"be an integer of at least {lowest}", getattr(self, name))
        if self.save_steps is not None and not _is_count(self.save_steps, 1):
            raise InvalidArgumentError.of("save_steps", "be an integer of at least 1, or None", self.save_steps)
        if not _is_count(self.seed, lowest=0) or self.seed >= 2**32:  # what NumPy's generator takes
            raise InvalidArgumentError.of("seed", "be an integer from 0 to 4,294,967,295", self.seed)
        for name in ("alpha", "learning_rate"):
            if not _is_finite(getattr(self, name)) or getattr(self, name) <= 0:
                raise InvalidArgumentError.of(name, "be positive and finite", getattr(self, name))
        if not _is_finite(self.weight_decay) or self.weight_decay < 0:
            raise InvalidArgumentError.of("weight_decay", "be at least 0 and finite", self.weight_decay)


def _is_count(value: object, lowest: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= lowest


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


@checked
@dataclass(frozen=True, eq=False)
class ProjectionPenalty:
    r"""A loss on how far the projection has moved from the base model's, added to the ordinary one.

    .. math:: L = L_\text{tokens} + w \, \operatorname{mean}_t \left(\frac{(h_t - h_t^\text{base}) \cdot v}
       {\lVert v \rVert^2}\right)^2

    over all tokens but padding, :math:`h^\text{base}` being the same token's activation with the adapter switched off
    (one more forward pass without gradient). A shift by the whole vector costs ``weight``.

    Args:
        layer: Zero-based block index.
        direction: Raw vector.
        weight: :math:`w`, in nats.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 5 and appendix J: there the trait stays.
    """

    layer: int
    direction: Float[Tensor, " d_model"]
    weight: float

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise InvalidArgumentError.of("weight", "be positive and finite", self.weight)
        if not bool(self.direction.any()):
            raise InvalidArgumentError.of("direction", "have a length above zero", self.direction)


def count_steps(n_rows: int, settings: FinetuneSettings, n_processes: int = 1) -> int:
    """Return the optimiser steps of a training."""
    n_batches = -(-n_rows // (settings.batch_size * n_processes))
    return -(-n_batches // settings.accumulation) * settings.epochs
