"""Where a vector was tried, as its provenance says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from persona_lens.errors import InvalidArgumentError
from persona_lens.vectors.persona_vector import PersonaVector


@dataclass(frozen=True)
class Tried:
    """The setting that a vector was tried at.

    Args:
        layer: Zero-based block index; None if nothing says.
        coefficient: Multiplies the raw vector; None if nothing says.
    """

    layer: int | None
    coefficient: float | None


def read_tried(vector: PersonaVector) -> Tried:
    """Read what ``provenance["setting"]`` says.

    Raises:
        InvalidArgumentError: A layer that is no whole number, or a coefficient that is no finite number.
    """
    setting = vector.provenance.get("setting")
    if not isinstance(setting, Mapping):
        return Tried(None, None)
    layer, coefficient = setting.get("layer"), setting.get("coefficient")
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int)):
        rule = f"say as whole number where the vector of {vector.trait!r} was tried"
        raise InvalidArgumentError.of("provenance['setting']['layer']", rule, layer)
    if coefficient is None:
        return Tried(layer, None)
    is_number = isinstance(coefficient, int | float) and not isinstance(coefficient, bool)
    if not is_number or not math.isfinite(coefficient):
        rule = f"say as finite number how strongly the vector of {vector.trait!r} was tried"
        raise InvalidArgumentError.of("provenance['setting']['coefficient']", rule, coefficient)
    return Tried(layer, float(coefficient))
