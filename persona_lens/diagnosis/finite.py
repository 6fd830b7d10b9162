"""The check that a model's numbers are finite in its dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from persona_lens.diagnosis.finding import Finding
from persona_lens.diagnosis.subject import Subject, run_forward

_OVERFLOW = "Load the model in bfloat16 or float32, which hold larger numbers."


def check_finite(subject: Subject) -> Finding:
    """No weight, no layer's output and no logit is infinite or NaN."""
    name = "finite"
    model: Any = subject.model
    broken = [key for key, weight in model.named_parameters() if not _is_finite(weight)]
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


def _is_finite(weight: Any) -> bool:
    """Whether no number of a weight is infinite or NaN; codes of quantised ones are whole numbers."""
    if is_traceable_wrapper_subclass(weight):  # torchao's: codes, and scales that may be broken
        return all(_is_finite(getattr(weight, name)) for name in weight.__tensor_flatten__()[0])
    return not weight.is_floating_point() or weight.element_size() == 1 or bool(weight.isfinite().all())
