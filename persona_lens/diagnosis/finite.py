"""The check that a model's numbers are finite in its dtype."""

from __future__ import annotations

from typing import Any

import torch

from persona_lens.diagnosis.finding import Finding
from persona_lens.diagnosis.subject import Subject, run_forward

_OVERFLOW = "Load the model in bfloat16 or float32, which hold larger numbers."


def check_finite(subject: Subject) -> Finding:
    """No weight, no layer's output and no logit is infinite or NaN."""
    name = "finite"
    model: Any = subject.model
    broken = [
        key for key, weight in model.named_parameters() if _can_overflow(weight) and not bool(weight.isfinite().all())
    ]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        seen = f"Infinite or NaN among the weights: {', '.join(broken[:3])}{more}."
        return Finding(name, False, seen, "Get the model's files again; or load them in the dtype they are in.")
    largest = 0.0
    for tokens in subject.prompts:
        residuals, logits = run_forward(model, tokens)
        layers = (~residuals.isfinite().flatten(1).all(dim=1)).nonzero()[:, 0].tolist()
        if layers:
            return Finding(name, False, f"The residual stream is not finite from layer {layers[0]} on.", _OVERFLOW)
        if not bool(logits.isfinite().all()):
            return Finding(name, False, "The logits are not finite; every layer is.", _OVERFLOW)
        largest = max(largest, float(residuals.abs().max()))
    dtype = str(residuals.dtype).removeprefix("torch.")
    limit = torch.finfo(residuals.dtype).max
    seen = f"Weights, layers and logits; the largest activation is {largest:.3g}, {dtype} holds {limit:.3g}."
    return Finding(name, True, seen)


def _can_overflow(weight: torch.Tensor) -> bool:
    """Whether a weight's numbers may be infinite or NaN; quantised ones are whole numbers."""
    return weight.is_floating_point() and weight.element_size() > 1
