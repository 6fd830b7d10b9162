"""The one value that says what is done to a model's activations: operations on layers and heads, in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError, UnsupportedModelError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import Site, check_head, check_layer
from persona_lens.models.hooks.windows import Window
from persona_lens.models.loading import describe_model
from persona_lens.tensors.operations import Add, KeepNorm, Operation


@checked
@dataclass(frozen=True, eq=False)
class Step:
    """One operation on the output of one layer, or of one attention head.

    Args:
        layer: Zero-based block index.
        operation: What is done to the residual stream there; with ``head``, to that head's output.
        head: Zero-based index of a head of the block's attention; the operation then has the width ``d_head`` and acts
            at ``hook_z``, before the output projection.
        window: At which of the response's tokens; None for all of those that the caller's positions mean.
        label: How it is shown, such as ``Add 2 × evil``; None for the operation's kind. No result depends on it.
    """

    layer: int
    operation: Operation
    head: int | None = None
    window: Window | None = None
    label: str | None = None

    @cached_property
    def site(self) -> Site:
        """Where it acts."""
        return Site(self.layer, self.head)

    def describe(self) -> dict[str, Any]:
        """Return place and operation as JSON-able values, and the window where there is one."""
        place = {name: at for name, at in asdict(self.site).items() if at is not None}
        window = {} if self.window is None else {"window": asdict(self.window)}
        return place | describe_values(self.operation) | window

    @property
    def shown(self) -> str:
        """What it does, in a few words, but for where and when."""
        if self.label is not None:
            return self.label
        if isinstance(self.operation, Add):
            length = float(self.operation.direction.detach().norm())
            return f"Add {self.operation.coefficient:g} × a vector of length {length:.3g}"
        return type(self.operation).__name__

    def __repr__(self) -> str:
        return self.shown + ("" if self.window is None else f" during {self.window}")


@checked
@dataclass(frozen=True, eq=False)
class Intervention:
    """What is done to the residual stream and to heads' outputs, layer by layer, in order.

    ``a + b`` does what ``a`` does and then, where both act on one layer or head, what ``b`` does. Sampling, hooks,
    ``with`` blocks and training all take it as it is.

    Args:
        steps: Operations with their layers.
        fingerprint: Of the model whose vectors it was made from; None fits every model of its width.

    Example:
        >>> import torch
        >>> from persona_lens.tensors.operations import Ablate, Add
        >>> Intervention.of(3, Add(torch.ones(8), 2.0)) + Intervention.of(3, Ablate(torch.ones(8)))
        Intervention(layer 3: Add 2 × a vector of length 2.83, Ablate)
    """

    steps: tuple[Step, ...] = ()
    fingerprint: str | None = None

    @classmethod
    def of(cls, layer: int, *operations: Operation, head: int | None = None) -> Intervention:
        """Return what does some operations at one layer, or at one of its heads, in order."""
        return cls(tuple(Step(layer, operation, head) for operation in operations))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The layers and heads that it acts on, in the order in which a forward pass reaches them."""
        return tuple(sorted({step.site for step in self.steps}, key=lambda site: site.order))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that it acts on, ascending."""
        return tuple(sorted({step.layer for step in self.steps}))

    @property
    def has_windows(self) -> bool:
        """Whether any step acts during a window alone: see :meth:`during`."""
        return any(step.window is not None for step in self.steps)

    def at(self, layer: int, head: int | None = None) -> tuple[Operation, ...]:
        """Return what is done to a layer's output, or to a head's, in order."""
        return tuple(step.operation for step in self.steps_at(Site(layer, head)))

    def steps_at(self, site: Site) -> tuple[Step, ...]:
        """Return the steps at a layer's output, or at a head's, in order."""
        return tuple(step for step in self.steps if step.site == site)

    def keeping_norm(self) -> Intervention:
        """Return the same with each changed activation scaled back to the norm that it had at its layer or head."""
        return wrap_steps(self, lambda site, operations: KeepNorm(operations))

    def during(self, window: Window) -> Intervention:
        """Return the same at some of the response's tokens alone, and never at the prompt before its last token.

        Sampling and hooks count each row's own tokens; training, which knows no beginning of a response, refuses it.

        Raises:
            InvalidArgumentError: A step has a window already.

        Example:
            >>> import torch
            >>> from persona_lens.tensors.operations import Add
            >>> first = Intervention.of(3, Add(torch.ones(8), 2.0)).during(Window(stop=8))
            >>> first
            Intervention(layer 3: Add 2 × a vector of length 2.83 during Window(start=0, stop=8, every=1))
        """
        if self.has_windows:
            hint = "Give the parts their windows before adding them up."
            raise InvalidArgumentError.of("window", "be the only one of its steps", repr(self), hint)
        return replace(self, steps=tuple(replace(step, window=window) for step in self.steps))

    def at_token(self, token: int) -> Intervention:
        """Return what is done at a token by its number in the response; see :class:`Window`, negative before it."""
        if not self.has_windows:
            return self
        steps = tuple(one for one in self.steps if one.window is None or token in one.window)
        return self if len(steps) == len(self.steps) else replace(self, steps=steps)

    def describe(self) -> list[dict[str, Any]]:
        """Return what is done as JSON-able values, tensors as hashes: what a result depends on."""
        return [step.describe() for step in self.steps]

    @property
    def digest(self) -> str:
        """A hash that tells this intervention from others."""
        return hashlib.sha256(json.dumps(self.describe()).encode()).hexdigest()[:16]

    def __add__(self, other: Intervention) -> Intervention:
        if not isinstance(other, Intervention):
            return NotImplemented
        known = {one.fingerprint for one in (self, other)} - {None}
        if len(known) > 1:
            rule = f"be made from vectors of the same model, fingerprint {self.fingerprint}"
            raise ModelMismatchError.of("other", rule, other.fingerprint)
        return Intervention(self.steps + other.steps, next(iter(known), None))

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __repr__(self) -> str:
        done = [(at, ", ".join(map(repr, self.steps_at(at)))) for at in self.sites]
        groups = groupby(done, lambda one: (one[0] if one[0].head is not None else None, one[1]))
        parts = [f"{_write_places([at for at, _ in alike])}: {what}" for (_, what), alike in groups]
        return f"Intervention({'; '.join(parts) or 'nothing'})"


NOTHING = Intervention()
"""Leaves all activations alone."""


def _write_places(sites: Sequence[Site]) -> str:
    """Return places in a few words: neighbouring layers as a range, such as ``layers 0-29``."""
    if len(sites) == 1:
        return str(sites[0])
    spans: list[list[int]] = []
    for at in sites:
        if spans and at.layer == spans[-1][-1] + 1:
            spans[-1].append(at.layer)
        else:
            spans.append([at.layer])
    return "layers " + ", ".join(f"{one[0]}-{one[-1]}" if len(one) > 2 else ", ".join(map(str, one)) for one in spans)


def describe_values(value: Any) -> dict[str, Any]:
    """Return a dataclass's kind and fields as JSON-able values, tensors as hashes."""

    def describe(one: Any) -> Any:
        if isinstance(one, Tensor):
            raw = one.detach().cpu().float().contiguous().numpy().tobytes()
            return hashlib.sha256(raw).hexdigest()[:16]
        if is_dataclass(one):
            return describe_values(one)
        return [describe(part) for part in one] if isinstance(one, tuple) else one

    return {"kind": type(value).__name__} | {
        field.name: describe(getattr(value, field.name)) for field in fields(value)
    }


def wrap_steps(intervention: Intervention, wrap: Callable[[Site, tuple[Operation, ...]], Operation]) -> Intervention:
    """Put the operations at each layer or head into one around them, those of one window together.

    Args:
        intervention: Whose steps.
        wrap: Makes the one operation of a place and what is done there, in order.
    """
    steps = []
    for site in intervention.sites:
        for window, alike in groupby(intervention.steps_at(site), key=lambda step: step.window):
            inner = tuple(alike)
            operation = wrap(site, tuple(step.operation for step in inner))
            label = f"{type(operation).__name__}({', '.join(step.shown for step in inner)})"
            steps.append(Step(site.layer, operation, site.head, window, label))
    return replace(intervention, steps=tuple(steps))


def check_no_windows(name: str, intervention: Intervention, why: str) -> None:
    """Refuse windows of a response where nothing says where responses begin.

    Raises:
        InvalidArgumentError: A step has one.
    """
    if intervention.has_windows:
        rule, hint = f"have no window here: {why}", "Leave out `.during(...)`."
        raise InvalidArgumentError.of(name, rule, repr(intervention), hint)


def check_steps(steps: Iterable[Step], n_layers: int, d_model: int, n_heads: int, d_head: int) -> None:
    """Refuse steps that do not fit a model.

    Raises:
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: A head that it does not have, or a direction of another width.
    """
    for step in steps:
        check_layer(step.layer, n_layers)
        rule, width = f"have the model's width d_model={d_model}", d_model
        if step.head is not None:
            check_head(step.head, n_heads)
            rule, width = f"have the width of a head's output, d_head={d_head}", d_head
        if step.operation.d_model != width:
            hint = "Was the vector extracted from another model?"
            raise InvalidArgumentError.of("direction", rule, step.operation.d_model, hint)


def check_interventions(model: HookedModel, interventions: Iterable[Intervention]) -> None:
    """Refuse interventions that do not fit a model, before it runs; a fine-tuned one passes for those of its base.

    Raises:
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: A head that it does not have, or a direction of another width.
        UnsupportedModelError: A step on a head of a layer that forms no heads' outputs.
        ModelMismatchError: Made from vectors of another model.
    """
    distinct = list({id(one): one for one in interventions}.values())
    for one in distinct:
        check_steps(one.steps, model.cfg.n_layers, model.cfg.d_model, model.cfg.n_heads, model.cfg.d_head)
    headless = sorted({at.hook_name for one in distinct for at in one.sites} - model.hook_dict.keys())
    if headless:
        rule = "have the hook points of the layers and heads that an intervention acts on"
        raise UnsupportedModelError.of("model", rule, f"none at {', '.join(headless)}")
    made_for = {one.fingerprint for one in distinct} - {None}
    if made_for:
        info = describe_model(model)
        foreign = made_for - {info.fingerprint, info.base_fingerprint}
        if foreign:
            rule = f"be made from vectors of this model, {info.name} (fingerprint {info.fingerprint})"
            hint = "Extract the vector from this model with extract_persona_vector(model, trait)."
            raise ModelMismatchError.of("intervention", rule, sorted(map(str, foreign)), hint)
