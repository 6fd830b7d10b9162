"""The check that every layer computes what Hugging Face's does."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.diagnosis.comparing import block_tolerance_of, relative_difference
from persona_lens.diagnosis.finding import Finding
from persona_lens.diagnosis.subject import Subject, keep_output, run_forward
from persona_lens.models.hooks.points import HookFn, HookPair
from persona_lens.models.hooks.sites import hook_name


def check_layers(subject: Subject) -> Finding:
    """Every layer's output, and the logits, are those of Hugging Face's model.

    Each layer is given what Hugging Face's layer before it put out. What is rounded differently in one is then not
    carried through all that follow, and the layer that is wrong is named.
    """
    name, limit, reference = "layers", block_tolerance_of(subject.rounded_to), subject.reference
    if reference is None:
        cure = "Pass doctor(model, reference=NAME_OR_FOLDER); or load it with backend='bridge', which wraps its own."
        return Finding(name, None, subject.no_reference, cure)
    free, _ = run_forward(subject.model, subject.longest)
    if free.shape != reference.residuals.shape:
        seen = f"{tuple(free.shape)} activations (layer, pos, d_model) against {tuple(reference.residuals.shape)}."
        return Finding(name, False, seen, "Name the model that this one was loaded from as `reference`.")
    outputs: dict[int, Tensor] = {}
    pairs: list[HookPair] = []
    for layer, residual in enumerate(reference.residuals):
        pairs += [(hook_name(layer), keep_output(outputs, layer)), (hook_name(layer), _put(residual))]
    _, logits = run_forward(subject.model, subject.longest, pairs)
    off = [_find_worst(outputs[layer], expected) for layer, expected in enumerate(reference.residuals)]
    apart = _find_worst(logits, reference.logits)
    wrong = [layer for layer, one in enumerate(off) if one > limit]
    cure = "Load it anew with load_model, which changes no weight; or with backend='bridge'."
    if wrong:
        worst = max(wrong, key=off.__getitem__)
        layers = f"layer {worst}" if len(wrong) == 1 else f"{len(wrong)} layers, most at layer {worst}"
        seen = f"It differs from {reference.source} at {layers}, by {off[worst]:.2g} (at most {limit:g})."
        return Finding(name, False, seen, cure)
    if apart > limit:
        return Finding(name, False, f"All layers agree, the logits differ by {apart:.2g} (at most {limit:g}).", cure)
    carried = _find_worst(free, reference.residuals)
    seen = f"All {len(off)} differ from {reference.source} by at most {max(off):.1g}, the logits by {apart:.1g}; "
    return Finding(name, True, f"{seen}{carried:.1g} once carried through all.")


def _find_worst(found: Float[Tensor, "*batch width"], expected: Float[Tensor, "*batch width"]) -> float:
    """Return the largest relative difference of any token."""
    return float(relative_difference(found, expected).max())


def _put(residual: Float[Tensor, "pos d_model"]) -> HookFn:
    def put(activations: Tensor, hook: object) -> Tensor:
        return torch.broadcast_to(residual.to(activations), activations.shape)

    return put
