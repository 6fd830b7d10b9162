"""What two halves of a vector's questions say of it."""

from __future__ import annotations

import sys
import warnings

from persona_lens.errors import UnstableVectorWarning
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.quality.card import LEAST_COSINE

# Whose calls are not the user's: this package's, and those of what checks its types when it is tested.
_OWN = frozenset({__name__.partition(".")[0], "beartype", "jaxtyping"})


def warn_if_unstable(vector: PersonaVector) -> None:
    """Say, where the package was called, that a vector's two halves agree at no layer.

    Args:
        vector: As it was found; nothing is said of one without halves.

    Warns:
        UnstableVectorWarning: The cosine of the directions of its halves is under 0.5 at every layer.
    """
    cosines = vector.split_half_cosine.get(vector.position)
    if cosines is None or float(cosines.max()) >= LEAST_COSINE:
        return
    depth = 0  # counted here, as a function for it would be a call more, or several where types are checked
    while sys._getframe(depth).f_globals.get("__name__", "").partition(".")[0] in _OWN:
        depth += 1
    warnings.warn(
        f"The vector {vector.trait!r} depends on which questions were asked: the directions of two halves of its "
        f"{vector.counts.kept} pairs have a cosine of {float(cosines.max()):.2f} where they agree best, at layer "
        f"{int(cosines.argmax())}; at least about {LEAST_COSINE} says that they are one. Take more pairs, or such that "
        "differ in the trait alone.",
        UnstableVectorWarning,
        stacklevel=depth + 1,
    )
