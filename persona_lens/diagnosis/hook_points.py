"""Checks of the hooks: reached at every layer, and steering that adds exactly what it is told to."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.diagnosis.finding import Finding
from persona_lens.diagnosis.subject import Subject, keep_output, run_forward
from persona_lens.interventions.hooks import intervention_hooks
from persona_lens.models.engine.decoding import open_decoder
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import Intervention, Step
from persona_lens.models.hooks.points import HookFn, HookPair, attached
from persona_lens.models.hooks.sites import heads_hook_name, hook_name
from persona_lens.tensors.operations import Add

_COEFFICIENT = 1.5
_CURE = "Load the model with load_model, which keeps every hook point; or try the other backend."


def check_hooks(subject: Subject) -> Finding:
    """The hook point at each layer's output is reached, once and in order, with and without the cache."""
    name, model = "hooks", subject.model
    n_layers = int(model.cfg.n_layers)
    wanted = [hook_name(layer) for layer in range(n_layers)]
    missing = [one for one in wanted if one not in model.hook_dict]
    if missing:
        return Finding(name, False, f"There is no {_shorten(missing)}.", _CURE)
    heads = [one for one in map(heads_hook_name, range(n_layers)) if one in model.hook_dict]
    for way, run in {"an ordinary forward pass": _run_plainly, "sampling": _run_with_cache}.items():
        fired: list[str] = []
        pairs = [(one, _make_counter(one, fired)) for one in (*wanted, *heads)]
        with attached(model, pairs):
            run(model, subject.longest)
        idle = [one for one in (*wanted, *heads) if one not in fired]
        if idle:
            return Finding(name, False, f"In {way}, {_shorten(idle)} never fired.", _CURE)
        outputs = [one for one in fired if one in wanted]
        if outputs != wanted:
            return Finding(name, False, f"In {way} the layers' hooks fired in the order {_shorten(outputs)}.", _CURE)
    seen = f"All {n_layers} layers' outputs are reached, once each, with and without the cache; so are the heads' of "
    return Finding(name, True, seen + ("every layer." if len(heads) == n_layers else f"{len(heads)} layers."))


def check_steering(subject: Subject) -> Finding:
    """At each layer the residual stream afterwards is that before plus coefficient × vector; 0 changes no bit."""
    name, model, tokens = "steering", subject.model, subject.prompts[0]
    residuals, logits = run_forward(model, tokens)
    directions = _make_directions(residuals)
    nothing, same = run_forward(model, tokens, _steer(directions, 0.0))
    if not (torch.equal(nothing, residuals) and torch.equal(same, logits)):
        return Finding(name, False, "A coefficient of zero changes the model's numbers.", _CURE)
    before: dict[int, Tensor] = {}
    read_next: dict[int, Tensor] = {}
    inputs = {f"blocks.{layer + 1}.hook_resid_pre": layer for layer in range(len(residuals) - 1)}
    pairs: list[HookPair] = [(hook_name(layer), keep_output(before, layer)) for layer in range(len(residuals))]
    pairs += _steer(directions, _COEFFICIENT)
    pairs += [(one, keep_output(read_next, layer)) for one, layer in inputs.items() if one in model.hook_dict]
    after, steered = run_forward(model, tokens, pairs)
    for layer in range(len(residuals)):
        shift = _COEFFICIENT * directions[layer].double()
        expected = before[layer].double() + shift
        # Half a unit of the last place for each of the two roundings, and as much again.
        room = torch.finfo(after.dtype).eps * (before[layer].double().abs() + 2 * shift.abs())
        if bool(((after[layer].double() - expected).abs() > room).any()):
            off = float((after[layer].double() - expected).norm() / shift.norm())
            seen = f"At layer {layer} the change is off by {off:.1%} of coefficient × vector."
            return Finding(name, False, seen, _CURE)
        if layer in read_next and not torch.equal(read_next[layer], after[layer]):
            return Finding(name, False, f"Layer {layer + 1} does not read what was added at layer {layer}.", _CURE)
    if torch.equal(steered, logits):
        return Finding(name, False, "The next token does not depend on what is added at the last layer.", _CURE)
    seen = f"before + {_COEFFICIENT:g} × vector at each of {len(residuals)} layers, to a rounding; 0 changes no bit."
    return Finding(name, True, seen)


def _steer(directions: Float[Tensor, "layer d_model"], coefficient: float) -> list[HookPair]:
    steps = [Step(layer, Add(direction, coefficient)) for layer, direction in enumerate(directions)]
    return intervention_hooks(Intervention(tuple(steps)))


def _make_directions(residuals: Float[Tensor, "layer pos d_model"]) -> Float[Tensor, "layer d_model"]:
    """Return a vector for each layer, a tenth as long as its activations: of all signs and sizes, and no axis's own."""
    wave = torch.cos(torch.arange(residuals.shape[-1], device=residuals.device) * 1.7 + 0.3)
    lengths = 0.1 * residuals.float().norm(dim=-1).median(dim=-1).values
    directions: Tensor = lengths[:, None] * wave / wave.norm()
    return directions


def _make_counter(label: str, fired: list[str]) -> HookFn:
    def count(activations: Tensor, hook: object) -> None:
        fired.append(label)

    return count


def _run_plainly(model: HookedModel, tokens: tuple[int, ...]) -> None:
    row = torch.tensor([tokens], device=model.cfg.device)
    with torch.no_grad():
        model(row, attention_mask=torch.ones_like(row))


def _run_with_cache(model: HookedModel, tokens: tuple[int, ...]) -> None:
    with open_decoder(model) as decoder:
        cache = decoder.new_cache(1, len(tokens))
        device = cache.keys.device
        decoder.extend(torch.tensor([tokens], device=device), torch.zeros(1, dtype=torch.long, device=device), cache)


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
