"""Checks that a text's numbers depend neither on its neighbours in a batch nor on the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from persona_lens.diagnosis.comparing import greedy_shortfall, relative_difference, tolerance_of
from persona_lens.diagnosis.finding import Finding
from persona_lens.diagnosis.subject import N_NEW_TOKENS, Subject, run_forward
from persona_lens.interventions.hooks import intervention_hooks
from persona_lens.models.engine.activations import cache_residual_stream
from persona_lens.models.engine.requests import SampledResponse, SampleRequest, Sampling
from persona_lens.models.engine.sampling import sample_recorded_stream
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.tensors.operations import Add

_GREEDY = Sampling(max_new_tokens=N_NEW_TOKENS, temperature=0.0)


def check_padding(subject: Subject) -> Finding:
    """Activations and greedy tokens are the same beside other rows as alone, padded on either side."""
    name, limit = "padding", tolerance_of(subject.rounded_to)
    model, rows = subject.model, [subject.prompts[0], subject.longest]
    alone = [run_forward(model, row)[0] for row in rows]
    n_pos = len(rows[1])
    worst: dict[str, float] = {}
    for side in ("left", "right"):
        # What is padded with means nothing, so it may be any token: here one of the text's own.
        tokens = torch.full((2, n_pos), rows[1][-1])
        is_padding = torch.ones(2, n_pos, dtype=torch.bool)
        places = [slice(n_pos - len(row), n_pos) if side == "left" else slice(0, len(row)) for row in rows]
        for index, (row, place) in enumerate(zip(rows, places, strict=True)):
            tokens[index, place], is_padding[index, place] = torch.tensor(row), False
        padded = cache_residual_stream(model, tokens, is_padding=is_padding)
        worst[side] = max(
            float(relative_difference(padded[:, index, place], alone[index]).max())
            for index, place in enumerate(places)
        )
    shown = ", ".join(f"{off:.1g} padded {side}" for side, off in worst.items())
    if max(worst.values()) > limit:
        seen = f"Activations differ from those of the text alone: {shown} (at most {limit:g})."
        cure = "Give an attention mask and position ids that leave padding out; or run texts one by one."
        return Finding(name, False, seen, cure)
    singly = [_sample(subject, [row])[0].tokens for row in rows]
    together = [one.tokens for one in _sample(subject, [*rows, *subject.prompts[1:-1]])]
    ties = [index for index, (one, other) in enumerate(zip(singly, together, strict=False)) if one != other]
    for index in ties:
        if (off := _measure_shortfall(subject, rows[index], together[index])) > limit:
            seen = f"Greedy tokens depend on the rows beside them: one falls {off:.2g} deviations short of the best."
            return Finding(name, False, seen, "Sample with Sampling(batch_size=1).")
    tied = f", but for ties in {len(ties)}" if ties else ""
    seen = f"Activations differ by {shown} of their length; greedy tokens are the same in a batch{tied}."
    return Finding(name, True, seen)


def check_cache(subject: Subject) -> Finding:
    """Sampling with the cache, steered and not, computes what a forward pass over the whole text does."""
    name, limit = "cache", tolerance_of(subject.rounded_to)
    prompt = subject.longest
    middle = int(subject.model.cfg.n_layers) // 2
    residuals, _ = run_forward(subject.model, prompt)
    direction = residuals[middle].float().mean(dim=0)
    cure = "Try the other backend: load_model(..., backend='bridge' or 'hooked')."
    drawn = {"unsteered": NOTHING, "steered": Intervention.of(middle, Add(direction, 1.0))}
    worst = 0.0
    for way, intervention in drawn.items():
        (response,) = _sample(subject, [prompt], intervention)
        if response.residuals is None or not response.tokens:
            return Finding(name, False, f"Sampling, {way}, gives numbers that are not finite.", cure)
        whole, logits = _run_whole(subject, prompt, response.tokens, intervention)
        mean = whole[:, len(prompt) :].float().mean(dim=1)
        off = relative_difference(response.residuals.response_mean, mean)
        worst = max(worst, float(off.max()))
        if worst > limit:
            seen = f"Sampling, {way}, differs from a whole forward pass by {worst:.2g} at layer {int(off.argmax())}"
            return Finding(name, False, f"{seen} (at most {limit:g}).", cure)
        short = greedy_shortfall(logits[len(prompt) - 1 : -1], response.tokens)
        if short > limit:
            seen = f"Sampling, {way}, takes a token that is {short:.2g} deviations short of a whole pass' best."
            return Finding(name, False, seen, cure)
    seen = f"{N_NEW_TOKENS} tokens, unsteered and steered: activations differ by {worst:.1g}, tokens are the same."
    return Finding(name, True, seen)


def _sample(
    subject: Subject, prompts: list[tuple[int, ...]], intervention: Intervention = NOTHING
) -> list[SampledResponse]:
    requests = [SampleRequest(prompt, (0,), intervention) for prompt in prompts]
    sampled = dict(sample_recorded_stream(subject.model, requests, _GREEDY))
    return [sampled[index] for index in range(len(requests))]


def _run_whole(
    subject: Subject, prompt: tuple[int, ...], response: tuple[int, ...], intervention: Intervention
) -> tuple[Tensor, Tensor]:
    hooks = intervention_hooks(intervention, positions="response", prompt_length=len(prompt)) if intervention else []
    return run_forward(subject.model, prompt + response, hooks)


def _measure_shortfall(subject: Subject, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    _, logits = _run_whole(subject, prompt, response, NOTHING)
    return greedy_shortfall(logits[len(prompt) - 1 : -1], response)
