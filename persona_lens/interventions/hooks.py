"""Steering, ablation and capping as TransformerLens hooks, and a context that holds them on a model.

The functions return plain ``(name, fn)`` lists: they concatenate with one another and with a user's own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.interventions.from_vectors import Layers, ablate, cap, list_vectors, steer
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import Intervention, check_interventions
from persona_lens.models.hooks.points import FiringWatch, HookPair, held
from persona_lens.models.hooks.positions import PositionedHook, Positions, TokenSelector, following_generate
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.persona_vector import PersonaVector

Where: TypeAlias = Positions | Bool[Tensor, "batch pos"]
"""Tokens by name, or a mask over the text's positions."""


@checked
def intervention_hooks(
    intervention: Intervention, *, positions: Where = "all", prompt_length: int | Sequence[int] | None = None
) -> list[HookPair]:
    """Make hooks that do what an intervention says, one a layer or head; what is done at one of them keeps its order.

    Args:
        intervention: From :func:`persona_lens.steer` and its like, or a sum of them.
        positions: ``all``; ``response``, the last prompt token and everything after it, as in the paper's inference
            time steering; ``prompt``; or a boolean mask ``[batch, pos]`` over the text's positions.
        prompt_length: For ``response``, ``prompt`` and windows: number of prompt tokens, left padding included, one for
            all rows or one each. Around ``generate`` (see :func:`hooked`) it is known and left out.

    Returns:
        ``(name, fn)`` pairs for ``run_with_hooks``, ``hooks`` or :func:`hooked`.

    Raises:
        InvalidArgumentError: Positions that are not known, or that do not fit ``prompt_length``; ``prompt``, or a mask,
            for an intervention with a window of the response.

    Example:
        >>> import torch
        >>> import persona_lens as pl
        >>> removal = pl.Intervention.of(3, pl.tensors.Ablate(torch.ones(8)))
        >>> [name for name, _ in pl.interventions.intervention_hooks(removal)]
        ['blocks.3.hook_resid_post']
    """
    windows = [step.window for step in intervention.steps if step.window is not None]
    where = TokenSelector(positions, prompt_length, windows)
    hooks: list[HookPair] = where.hook_pairs()
    hooks += [(at.hook_name, PositionedHook(at, intervention.steps_at(at), where)) for at in intervention.sites]
    return hooks


@checked
def steering_hooks(
    vector: PersonaVector | Sequence[PersonaVector],
    *,
    layer: int | None = None,
    layers: Layers | None = None,
    coefficient: float | Sequence[float] = 1.0,
    unit: Literal["raw", "sigma"] = "raw",
    ordinary: OrdinaryProjections | Sequence[OrdinaryProjections] | None = None,
    positions: Where = "all",
    prompt_length: int | Sequence[int] | None = None,
    preserve_norm: bool = False,
) -> list[HookPair]:
    """Make hooks that steer along persona vectors: :func:`intervention_hooks` of :func:`persona_lens.steer`.

    The arguments are those of these two; ``preserve_norm`` lets each steered activation keep the norm it had.

    Example:
        >>> import persona_lens as pl
        >>> model.run_with_hooks(  # doctest: +SKIP
        ...     tokens, fwd_hooks=pl.steering_hooks(vector, layer=14, coefficient=2.0) + my_own_hooks
        ... )
    """
    done = steer(vector, layer=layer, layers=layers, coefficient=coefficient, unit=unit, ordinary=ordinary)
    return _make_hooks(done, positions, prompt_length, preserve_norm)


@checked
def ablation_hooks(
    vector: PersonaVector | Sequence[PersonaVector],
    *,
    layer: int | None = None,
    layers: Layers | None = None,
    positions: Where = "all",
    prompt_length: int | Sequence[int] | None = None,
    preserve_norm: bool = False,
) -> list[HookPair]:
    """Make hooks that remove the component along persona vectors: those of :func:`persona_lens.ablate`.

    The arguments are its own and those of :func:`steering_hooks`.

    Example:
        >>> import persona_lens as pl
        >>> model.run_with_hooks(tokens, fwd_hooks=pl.ablation_hooks(vector, layers="all"))  # doctest: +SKIP
    """
    return _make_hooks(ablate(vector, layer=layer, layers=layers), positions, prompt_length, preserve_norm)


@checked
def capping_hooks(
    vector: PersonaVector,
    *,
    layer: int | None = None,
    layers: Layers | None = None,
    ceiling: float | Float[Tensor, " layer"] | None = None,
    floor: float | Float[Tensor, " layer"] | None = None,
    positions: Where = "all",
    prompt_length: int | Sequence[int] | None = None,
    preserve_norm: bool = False,
) -> list[HookPair]:
    """Make hooks that keep the projection on a persona vector between bounds: those of :func:`persona_lens.cap`.

    The arguments are its own and those of :func:`steering_hooks`.

    Example:
        >>> import persona_lens as pl
        >>> ordinary = pl.measure_ordinary_projections(model, vector)  # doctest: +SKIP
        >>> hooks = pl.capping_hooks(vector, layer=14, ceiling=ordinary.quantile(0.99))  # doctest: +SKIP
    """
    done = cap(vector, layer=layer, layers=layers, ceiling=ceiling, floor=floor)
    return _make_hooks(done, positions, prompt_length, preserve_norm)


def _make_hooks(
    intervention: Intervention, positions: Where, prompt_length: int | Sequence[int] | None, preserve_norm: bool
) -> list[HookPair]:
    done = intervention.keeping_norm() if preserve_norm else intervention
    return intervention_hooks(done, positions=positions, prompt_length=prompt_length)


@checked
@contextmanager
def hooked(model: HookedModel, hooks: Intervention | Sequence[HookPair]) -> Iterator[HookedModel]:
    """Hold hooks on a model for the length of a ``with`` block.

    Works around ``generate``, ``run_with_cache`` and plain calls, and inside other such blocks. Afterwards, and by
    exception too, none of these hooks remains.

    Args:
        model: HookedTransformer or TransformerBridge.
        hooks: An intervention, done at every token, or where its windows say, around ``generate``; or ``(name, fn)``
            pairs, this package's and a user's own.

    Yields:
        The model.

    Raises:
        ModelMismatchError: An intervention made from vectors of another model.
        InvalidArgumentError: A name that is none of the model's hook points.
        HookNeverFiredError: At the end, if one of this package's hooks was never reached.
        ModelBusyError: The model does something else; or, inside the block, another thread runs it.

    Example:
        >>> import persona_lens as pl
        >>> with pl.hooked(model, pl.ablate(evil) + pl.steer(kind, layer=9)):  # doctest: +SKIP
        ...     model.generate("Hello", max_new_tokens=20)
    """
    if isinstance(hooks, Intervention):
        check_interventions(model, [hooks])
        hooks = intervention_hooks(hooks)
    _check_names(model, [name for name, _ in hooks])
    watch = FiringWatch()
    pairs: list[HookPair] = []
    selectors: list[TokenSelector] = []
    for name, fn in hooks:
        if isinstance(fn, PositionedHook):
            selectors += [fn.positions] if fn.positions not in selectors else []
            fn = watch.watch(repr(fn), fn)
        pairs.append((name, fn))
    with held(model, pairs), following_generate(model, selectors):
        yield model
    watch.check("Run the model inside the `with` block, through all of the hooks' layers.")


def _check_names(model: HookedModel, names: Sequence[str]) -> None:
    """Refuse a name that the model has no hook point of: a HookedTransformer says less, a bridge nothing at all."""
    points = model.hook_dict
    for name in names:
        if name not in points:
            near = difflib.get_close_matches(name, points, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else ""
            raise InvalidArgumentError.of("hooks", "name hook points in model.hook_dict", name, hint)


@checked
@contextmanager
def steering(
    model: HookedModel,
    vector: PersonaVector | Sequence[PersonaVector],
    *,
    layer: int | None = None,
    layers: Layers | None = None,
    coefficient: float | Sequence[float] = 1.0,
    unit: Literal["raw", "sigma"] = "raw",
    ordinary: OrdinaryProjections | Sequence[OrdinaryProjections] | None = None,
    positions: Where = "all",
    prompt_length: int | Sequence[int] | None = None,
    preserve_norm: bool = False,
) -> Iterator[HookedModel]:
    """Steer whatever the model does inside a ``with`` block: :func:`hooked` with :func:`steering_hooks`.

    The arguments are theirs; around ``generate``, ``positions="response"`` needs no ``prompt_length``.

    Yields:
        The model.

    Raises:
        ModelMismatchError: A vector of another model.
        HookNeverFiredError: Nothing ran inside the block.

    Example:
        >>> import persona_lens as pl
        >>> with pl.steering(model, vector, layer=14, coefficient=-2.0, positions="response"):  # doctest: +SKIP
        ...     model.generate("Hello", max_new_tokens=20)
    """
    for one in list_vectors(vector):
        one.check_model(model)
    hooks = steering_hooks(
        vector, layer=layer, layers=layers, coefficient=coefficient, unit=unit, ordinary=ordinary,
        positions=positions, prompt_length=prompt_length, preserve_norm=preserve_norm,
    )  # fmt: skip
    with hooked(model, hooks):
        yield model
