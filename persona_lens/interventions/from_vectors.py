"""Interventions made from persona vectors: steering, rotation, ablation and capping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.models.hooks.intervention import Intervention, Step
from persona_lens.models.hooks.sites import check_layer, resolve_layers
from persona_lens.tensors.directions import layer_increments
from persona_lens.tensors.operations import Ablate, Add, Cap, plain_number
from persona_lens.tensors.rotation import Rotate
from persona_lens.tensors.subspace import AblateSubspace
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.persona_vector import PersonaVector

Layers = int | Sequence[int] | str
"""One zero-based block index, several, or ``"all"``."""


@checked
def steer(
    vector: PersonaVector | Sequence[PersonaVector],
    *,
    layer: int | None = None,
    layers: Layers | None = None,
    coefficient: float | Sequence[float] = 1.0,
    unit: Literal["raw", "sigma"] = "raw",
    ordinary: OrdinaryProjections | Sequence[OrdinaryProjections] | None = None,
) -> Intervention:
    """Return what adds multiples of persona vectors to the residual stream.

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

    Returns:
        One addition a layer and vector, for sampling, hooks, ``with`` blocks and training.

    Raises:
        LayerOutOfRangeError: A layer that the vectors do not have.
        InvalidArgumentError: Both or neither of ``layer`` and ``layers``; lists of unequal length; ``sigma`` without
            ``ordinary``; a coefficient that is not finite; a vector that is zero at all of the layers.
        ModelMismatchError: Vectors, or ``ordinary``, of different models.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.2; all layers: appendix J; in training: section 5.2.

    Example:
        >>> import persona_lens as pl
        >>> away = pl.steer(vector, layer=14, coefficient=-2.0)  # doctest: +SKIP
        >>> with pl.hooked(model, away + pl.ablate(other)):  # doctest: +SKIP
        ...     model.generate("Hello", max_new_tokens=20)
    """
    vectors = list_vectors(vector)
    chosen = choose_layers(layer, layers, vectors[0].model.n_layers)
    if isinstance(coefficient, Sequence):
        coefficients = [plain_number(one) for one in coefficient]
    else:
        coefficients = [float(coefficient)] * len(vectors)
    if len(coefficients) != len(vectors):
        rule = f"be one number, or a list of {len(vectors)}: one for each vector"
        raise InvalidArgumentError.of("coefficient", rule, coefficient)
    scales = _list_scales(vectors, unit, ordinary)
    rows = torch.tensor(chosen)
    steps = []
    for one, its_coefficient, scale in zip(vectors, coefficients, scales, strict=True):
        for index in chosen:
            one.check_layer(index)
        name = name_direction(one) if unit == "raw" else f"sd of {name_direction(one)}"
        label = f"Add {its_coefficient:g} × {name}" + ("'s increment" if len(chosen) > 1 else "")
        increments = layer_increments(one.directions[rows] * scale[rows, None])
        if not bool(increments.any()):
            rule = f"have a length above zero at one of the layers {list(chosen)}"
            raise InvalidArgumentError.of("vector", rule, f"{one.trait}, which is zero there")
        # A direction that does not change from one layer to the next has nothing to add there.
        steps += [
            Step(index, Add(increment, its_coefficient), label=label)
            for index, increment in zip(chosen, increments, strict=True)
            if bool(increment.any())
        ]
    return Intervention(tuple(steps), vectors[0].model.fingerprint)


@checked
def rotate(
    vector: PersonaVector, *, degrees: float, layer: int | None = None, layers: Layers | None = None
) -> Intervention:
    """Return what turns activations towards a persona vector, at the norm that they have and never past it.

    Args:
        vector: The vector.
        degrees: The angle, in [-180, 180]; negative turns away from it.
        layer: One zero-based block index.
        layers: Instead of ``layer``: several, or ``"all"``. Each layer turns by the angle, so that they pile up.

    Returns:
        One rotation a layer.

    Raises:
        LayerOutOfRangeError: A layer that the vector does not have.
        InvalidArgumentError: Both or neither of ``layer`` and ``layers``, or an angle out of range.

    Reference:
        See :class:`persona_lens.tensors.Rotate`.

    Example:
        >>> import persona_lens as pl
        >>> turned = pl.interventions.rotate(vector, layer=14, degrees=-20)  # doctest: +SKIP
    """
    chosen = choose_layers(layer, layers, vector.model.n_layers)
    label = f"Rotate {plain_number(degrees):g}° to {name_direction(vector)}"
    steps = (Step(at, Rotate(vector.direction(at), degrees), label=label) for at in chosen)
    return Intervention(tuple(steps), vector.model.fingerprint)


@checked
def ablate(
    vector: PersonaVector | Sequence[PersonaVector], *, layer: int | None = None, layers: Layers | None = None
) -> Intervention:
    """Return what removes the component along persona vectors: ``h <- h - (h · u) u``.

    Args:
        vector: One vector, or several, removed one after the other.
        layer: One zero-based block index.
        layers: Instead of ``layer``: several; ``"all"`` if neither is given. Each layer loses its own direction.

    Returns:
        One ablation a layer and vector.

    Raises:
        LayerOutOfRangeError: A layer that the vectors do not have.
        InvalidArgumentError: Both ``layer`` and ``layers``.
        ModelMismatchError: Vectors of different models.

    Reference:
        Persona Vectors (arXiv 2507.21509), appendix J; in training it is CAFT.

    Example:
        >>> import persona_lens as pl
        >>> pl.finetune("smollm2-135m-instruct", rows, "out", intervention=pl.ablate(vector))  # doctest: +SKIP
    """
    vectors = list_vectors(vector)
    chosen = choose_layers(layer, "all" if layer is None and layers is None else layers, vectors[0].model.n_layers)
    labelled = [(one, f"Ablate {name_direction(one)}") for one in vectors]
    steps = (Step(index, Ablate(one.direction(index)), label=label) for index in chosen for one, label in labelled)
    return Intervention(tuple(steps), vectors[0].model.fingerprint)


@checked
def ablate_span(
    vectors: Sequence[PersonaVector], *, layer: int | None = None, layers: Layers | None = None
) -> Intervention:
    """Return what removes all that persona vectors span, whatever their order.

    Where vectors are not orthogonal, :func:`ablate` leaves part of those removed first.

    Args:
        vectors: Of one model, none a combination of the others.
        layer: One zero-based block index.
        layers: Instead of ``layer``: several; ``"all"`` if neither is given. Each layer loses its own directions.

    Returns:
        One ablation a layer.

    Raises:
        LayerOutOfRangeError: A layer that the vectors do not have.
        InvalidArgumentError: Both ``layer`` and ``layers``; vectors that depend on one another at a layer.
        ModelMismatchError: Vectors of different models.

    Reference:
        See :class:`persona_lens.tensors.AblateSubspace`.

    Example:
        >>> import persona_lens as pl
        >>> removed = pl.interventions.ablate_span([evil, sycophantic], layer=14)  # doctest: +SKIP
    """
    listed = list_vectors(vectors)
    chosen = choose_layers(layer, "all" if layer is None and layers is None else layers, listed[0].model.n_layers)
    label = f"AblateSubspace {', '.join(name_direction(one) for one in listed)}"
    steps = (Step(at, AblateSubspace(torch.stack([one.direction(at) for one in listed])), label=label) for at in chosen)
    return Intervention(tuple(steps), listed[0].model.fingerprint)


@checked
def cap(
    vector: PersonaVector,
    *,
    layer: int | None = None,
    layers: Layers | None = None,
    ceiling: float | Float[Tensor, " layer"] | None = None,
    floor: float | Float[Tensor, " layer"] | None = None,
) -> Intervention:
    """Return what keeps the projection on a persona vector between bounds.

    Args:
        vector: The vector.
        layer: One zero-based block index.
        layers: Instead of ``layer``: several; ``"all"`` if neither is given.
        ceiling: Highest projection allowed, in residual-stream units: one number, or one for each of the model's
            layers.
        floor: Lowest projection allowed, likewise.

    Returns:
        One cap a layer.

    Raises:
        LayerOutOfRangeError: A layer that the vector does not have.
        InvalidArgumentError: No bound, a floor above the ceiling, or bounds of another number of layers.

    Example:
        >>> import persona_lens as pl
        >>> ordinary = pl.measure_ordinary_projections(model, vector)  # doctest: +SKIP
        >>> capped = pl.cap(vector, layer=14, ceiling=ordinary.quantile(0.99))  # doctest: +SKIP
    """
    n_layers = vector.model.n_layers
    chosen = choose_layers(layer, "all" if layer is None and layers is None else layers, n_layers)
    ceilings, floors = list_bounds("ceiling", ceiling, n_layers), list_bounds("floor", floor, n_layers)
    label = f"Cap {name_direction(vector)}"
    steps = (Step(at, Cap(vector.direction(at), floor=floors[at], ceiling=ceilings[at]), label=label) for at in chosen)
    return Intervention(tuple(steps), vector.model.fingerprint)


def list_vectors(vector: PersonaVector | Sequence[PersonaVector]) -> list[PersonaVector]:
    """Return one or several vectors as a list; refuse none, and vectors of different models."""
    vectors = [vector] if isinstance(vector, PersonaVector) else list(vector)
    if not vectors:
        raise InvalidArgumentError.of("vector", "be a PersonaVector, or several", vector)
    fingerprints = {one.model.fingerprint for one in vectors}
    if len(fingerprints) > 1:
        raise ModelMismatchError.of("vector", "come from one model", sorted({one.model.name for one in vectors}))
    return vectors


def name_direction(vector: PersonaVector) -> str:
    """Return how a vector is called in what is shown; a sum or multiple of others in parentheses."""
    return f"({vector.trait})" if " " in vector.trait else vector.trait


def choose_layers(layer: int | None, layers: Layers | None, n_layers: int) -> tuple[int, ...]:
    """Return the layers that ``layer`` or ``layers`` mean, ascending; refuse both, neither, and absent layers."""
    if (layer is None) == (layers is None):
        rule = 'be given, or `layers` (several, or "all"), but not both'
        raise InvalidArgumentError.of("layer", rule, layer)
    if layer is not None:
        return (check_layer(layer, n_layers),)
    assert layers is not None
    return tuple(sorted(resolve_layers(layers, n_layers)))


def _list_scales(
    vectors: Sequence[PersonaVector], unit: str, ordinary: OrdinaryProjections | Sequence[OrdinaryProjections] | None
) -> list[Float[Tensor, " layer"]]:
    """Return what multiplies each vector's layers: 1, or standard deviations over norm."""
    if unit == "raw":
        return [torch.ones(one.model.n_layers) for one in vectors]
    if unit != "sigma":
        raise InvalidArgumentError.of("unit", "be 'raw' or 'sigma'", unit)
    measured = [ordinary] if isinstance(ordinary, OrdinaryProjections) else list(ordinary or ())
    if len(measured) != len(vectors):
        raise InvalidArgumentError.of(
            "ordinary",
            f"hold {len(vectors)} OrdinaryProjections, one for each vector, for unit='sigma'",
            len(measured),
            "Measure them with measure_ordinary_projections(model, vector).",
        )
    for one, its_ordinary in zip(vectors, measured, strict=True):
        its_ordinary.check_vector(one)
    return [m.std / one.norms for m, one in zip(measured, vectors, strict=True)]


def list_bounds(name: str, bound: float | Tensor | None, n_layers: int) -> list[float | None]:
    """Return a bound for each layer; refuse bounds of another number of layers."""
    if not isinstance(bound, Tensor):
        return [plain_number(bound)] * n_layers
    if bound.shape != (n_layers,):
        rule = f"be one number, or {n_layers}, one for each of the model's layers"
        raise InvalidArgumentError.of(name, rule, tuple(bound.shape))
    return [float(value) for value in bound]
