"""Steering, ablation and capping as TransformerLens hooks, and a context that holds them on a model.

The functions return plain ``(name, fn)`` lists: they concatenate with one another and with a user's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.errors import HookNeverFiredError
from persona_lens.evaluation.ordinary import OrdinaryProjections
from persona_lens.interventions.making import (
    Layers,
    ablation_sites,
    capping_sites,
    list_vectors,
    steering_sites,
)
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.pairs import HookPair, Positions, SiteIntervention, attached
from persona_lens.models.hooks.positions import PositionedHook, TokenPositions, following_generate
from persona_lens.models.hooks.sites import hook_name
from persona_lens.tensors.operations import Intervention
from persona_lens.vectors import PersonaVector

Where = Positions | Bool[Tensor, "batch pos"]


def intervention_hooks(
    sites: Sequence[SiteIntervention],
    *,
    positions: Where = "all",
    prompt_length: int | Sequence[int] | None = None,
    preserve_norm: bool = False,
) -> list[HookPair]:
    """Make hooks that do what ``sites`` say, one hook a layer; what is done at one layer keeps its order.

    Args:
        sites: From :func:`persona_lens.steering_sites` and its like, or of one's own.
        positions: As for :func:`steering_hooks`.
        prompt_length: As for :func:`steering_hooks`.
        preserve_norm: Whether each changed activation keeps the norm it had.

    Returns:
        ``(name, fn)`` pairs.

    Raises:
        InvalidArgumentError: Positions that are not known, or that do not fit ``prompt_length``.

    Example:
        >>> import torch
        >>> import persona_lens as pl
        >>> sites = [pl.SiteIntervention(3, pl.Ablate(torch.ones(8)))]
        >>> [name for name, _ in pl.intervention_hooks(sites)]
        ['blocks.3.hook_resid_post']
    """
    where = TokenPositions(positions, prompt_length)
    by_layer: dict[int, list[Intervention]] = {}
    for site in sites:
        by_layer.setdefault(site.layer, []).append(site.intervention)
    hooks: list[HookPair] = where.hook_pairs()
    for layer, interventions in sorted(by_layer.items()):
        hooks.append((hook_name(layer), PositionedHook(layer, interventions, where, preserve_norm)))
    return hooks


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
    """Make hooks that add multiples of persona vectors to the residual stream.

    At one layer ``h <- h + coefficient * v``. At several, the increments of the vector from each of them to the next
    are added, so that the additions sum up to ``coefficient * v`` at the last instead of piling up.

    Args:
        vector: One vector, or several to add at once.
        layer: One zero-based block index.
        layers: Instead of ``layer``: several, or ``"all"``.
        coefficient: Multiplies the raw vector; one for all vectors, or one each. Negative steers away. 0 changes
            nothing at all.
        unit: ``raw``; or ``sigma``, where coefficient 1 moves each layer's projection by one standard deviation of
            the unsteered model's, as ``ordinary`` measured it.
        ordinary: From :func:`persona_lens.measure_ordinary_projections`, one for each vector; for ``unit="sigma"``.
        positions: ``all``; ``response``, the last prompt token and everything after it, as in the paper's inference
            time steering; ``prompt``; or a boolean mask ``[batch, pos]`` over the text's positions.
        prompt_length: For ``response`` and ``prompt``: number of prompt tokens, left padding included, one for all
            rows or one each. Around ``generate`` (see :func:`hooked`) it is known and left out.
        preserve_norm: Whether each steered activation keeps the norm it had.

    Returns:
        ``(name, fn)`` pairs for ``run_with_hooks``, ``hooks`` or :func:`hooked`.

    Raises:
        LayerOutOfRangeError: A layer that the vectors do not have.
        InvalidArgumentError: Both or neither of ``layer`` and ``layers``; lists of unequal length; ``sigma`` without
            ``ordinary``; a coefficient that is not finite.
        ModelMismatchError: Vectors, or ``ordinary``, of different models.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.2; all layers: appendix J.

    Example:
        >>> import persona_lens as pl
        >>> model.run_with_hooks(  # doctest: +SKIP
        ...     tokens, fwd_hooks=pl.steering_hooks(vector, layer=14, coefficient=2.0) + my_own_hooks
        ... )
    """
    sites = steering_sites(vector, layer=layer, layers=layers, coefficient=coefficient, unit=unit, ordinary=ordinary)
    return intervention_hooks(sites, positions=positions, prompt_length=prompt_length, preserve_norm=preserve_norm)


def ablation_hooks(
    vector: PersonaVector | Sequence[PersonaVector],
    *,
    layer: int | None = None,
    layers: Layers | None = None,
    positions: Where = "all",
    prompt_length: int | Sequence[int] | None = None,
    preserve_norm: bool = False,
) -> list[HookPair]:
    """Make hooks that remove the component along persona vectors: ``h <- h - (h · u) u``.

    Args:
        vector: One vector, or several, removed one after the other.
        layer: One zero-based block index.
        layers: Instead of ``layer``: several; ``"all"`` if neither is given. Each layer loses its own direction.
        positions: As for :func:`steering_hooks`.
        prompt_length: As for :func:`steering_hooks`.
        preserve_norm: Whether each activation keeps the norm it had.

    Returns:
        ``(name, fn)`` pairs.

    Raises:
        LayerOutOfRangeError: A layer that the vectors do not have.
        InvalidArgumentError: Both ``layer`` and ``layers``.
        ModelMismatchError: Vectors of different models.

    Reference:
        Persona Vectors (arXiv 2507.21509), appendix J.

    Example:
        >>> import persona_lens as pl
        >>> model.run_with_hooks(tokens, fwd_hooks=pl.ablation_hooks(vector, layers="all"))  # doctest: +SKIP
    """
    sites = ablation_sites(vector, layer=layer, layers=layers)
    return intervention_hooks(sites, positions=positions, prompt_length=prompt_length, preserve_norm=preserve_norm)


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
    """Make hooks that keep the projection on a persona vector between bounds.

    Bounds that leave an ordinary response alone are quantiles of ordinary projections:
    ``ceiling=pl.measure_ordinary_projections(model, vector).quantile(0.99)``.

    Args:
        vector: The vector.
        layer: One zero-based block index.
        layers: Instead of ``layer``: several; ``"all"`` if neither is given.
        ceiling: Highest projection allowed, in residual-stream units: one number, or one for each of the model's
            layers.
        floor: Lowest projection allowed, likewise.
        positions: As for :func:`steering_hooks`.
        prompt_length: As for :func:`steering_hooks`.
        preserve_norm: Whether each activation keeps the norm it had.

    Returns:
        ``(name, fn)`` pairs.

    Raises:
        LayerOutOfRangeError: A layer that the vector does not have.
        InvalidArgumentError: No bound, a floor above the ceiling, or bounds of another number of layers.

    Example:
        >>> import persona_lens as pl
        >>> ordinary = pl.measure_ordinary_projections(model, vector)  # doctest: +SKIP
        >>> hooks = pl.capping_hooks(vector, layer=14, ceiling=ordinary.quantile(0.99))  # doctest: +SKIP
    """
    sites = capping_sites(vector, layer=layer, layers=layers, ceiling=ceiling, floor=floor)
    return intervention_hooks(sites, positions=positions, prompt_length=prompt_length, preserve_norm=preserve_norm)


@contextmanager
def hooked(model: HookedModel, hooks: Sequence[HookPair]) -> Iterator[HookedModel]:
    """Hold hooks on a model for the length of a ``with`` block.

    Works around ``generate``, ``run_with_cache`` and plain calls, and inside other such blocks. Afterwards, and by
    exception too, none of these hooks remains.

    Args:
        model: HookedTransformer or TransformerBridge.
        hooks: ``(name, fn)`` pairs, this package's and a user's own.

    Yields:
        The model.

    Raises:
        HookNeverFiredError: At the end, if one of this package's hooks was never reached.

    Example:
        >>> import persona_lens as pl
        >>> with pl.hooked(model, pl.ablation_hooks(evil) + pl.steering_hooks(kind, layer=9)):  # doctest: +SKIP
        ...     model.generate("Hello", max_new_tokens=20)
    """
    ours = [fn for _, fn in hooks if isinstance(fn, PositionedHook)]
    before = [fn.n_fired for fn in ours]
    distinct = list({id(fn.positions): fn.positions for fn in ours}.values())
    with attached(model, hooks), following_generate(model, distinct):
        yield model
    idle = [fn for fn, count in zip(ours, before, strict=True) if fn.n_fired == count]
    if idle:
        raise HookNeverFiredError(
            f"Hooks must be reached by a forward pass inside the block. Never reached: {idle}. Run the model inside "
            "the `with` block, through all of the hooks' layers."
        )


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

    Args:
        model: The model that the vectors were extracted from.
        vector: As for :func:`steering_hooks`, as is the rest.
        layer: One zero-based block index.
        layers: Instead of ``layer``: several, or ``"all"``.
        coefficient: Multiplies the vector.
        unit: ``raw`` or ``sigma``.
        ordinary: For ``unit="sigma"``.
        positions: Where to steer; around ``generate``, ``"response"`` needs no ``prompt_length``.
        prompt_length: Number of prompt tokens, for plain calls.
        preserve_norm: Whether each steered activation keeps the norm it had.

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
