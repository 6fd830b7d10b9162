"""Interventions that act only at tokens at which a probe fires."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.interventions.from_vectors import list_bounds
from persona_lens.models.hooks.intervention import Intervention, wrap_steps
from persona_lens.models.hooks.sites import Site, check_layer
from persona_lens.tensors.gating import Gate
from persona_lens.tensors.operations import Operation
from persona_lens.vectors.persona_vector import PersonaVector


@checked
def gate(
    intervention: Intervention,
    vector: PersonaVector,
    *,
    above: float | Float[Tensor, " layer"] | None = None,
    below: float | Float[Tensor, " layer"] | None = None,
) -> Intervention:
    """Return what does an intervention only at tokens whose projection on a vector passes a threshold.

    Each layer looks for itself, at the token that it changes and before it does: where the projection is higher than
    ``above`` and lower than ``below``, of those that are given. All that is done at a layer is behind one gate.

    Args:
        intervention: What is done where a gate is open.
        vector: The probe's, which may be another than those that the intervention was made from.
        above: In residual-stream units: one number, or one for each of the model's layers.
        below: Likewise.

    Returns:
        One gate for each of the intervention's layers.

    Raises:
        LayerOutOfRangeError: A layer of the intervention that the vector does not have.
        InvalidArgumentError: Neither bound, ``above`` not less than ``below``, bounds of another number of layers, or
            an intervention on heads.
        ModelMismatchError: A vector of another model than the intervention's.

    Reference:
        See :class:`persona_lens.tensors.Gate`.

    Example:
        >>> import persona_lens as pl
        >>> ordinary = pl.measure_ordinary_projections(model, vector)  # doctest: +SKIP
        >>> away = pl.steer(vector, layer=14, coefficient=-2.0)  # doctest: +SKIP
        >>> gated = pl.interventions.gate(away, vector, above=ordinary.quantile(0.95))  # doctest: +SKIP
    """
    if intervention.fingerprint not in (None, vector.model.fingerprint):
        rule = f"come from the intervention's model, fingerprint {intervention.fingerprint}"
        raise ModelMismatchError.of("vector", rule, vector.model.fingerprint)
    n_layers = vector.model.n_layers
    lower, upper = list_bounds("above", above, n_layers), list_bounds("below", below, n_layers)
    for site in intervention.sites:
        check_layer(site.layer, n_layers)
        if site.head is not None:
            rule = "act on the residual stream alone, as the vector's projections are read there"
            raise InvalidArgumentError.of("intervention", rule, str(site))

    def wrap(site: Site, operations: tuple[Operation, ...]) -> Gate:
        return Gate(operations, vector.direction(site.layer), above=lower[site.layer], below=upper[site.layer])

    return replace(wrap_steps(intervention, wrap), fingerprint=vector.model.fingerprint)
