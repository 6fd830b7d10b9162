"""steering-vectors: ``SteeringVector.layer_activations``, by block index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_lens.checking import checked
from persona_lens.vectors.exchange.directions import LayerDirections
from persona_lens.vectors.exchange.torch_files import (
    MAX_ROWS,
    describe,
    load_torch_file,
    name_origin,
    read_row,
    refuse,
    save_torch_file,
)
from persona_lens.vectors.persona_vector import TokenPosition

_KEY, _BLOCK = "layer_activations", "decoder_block"


class _StandIn:
    """Takes the place of their class, so that a saved object gives up its values without its code being run."""


STAND_IN = (_StandIn, "steering_vectors.steering_vector.SteeringVector")
"""For :func:`load_torch_file`."""


@checked
def read_steering_vector(
    path: str | Path, *, trait: str | None = None, position: TokenPosition = "response_mean"
) -> LayerDirections:
    """Read a vector of steering-vectors, which has no file format of its own: users give it to ``torch.save``.

    Read are a ``SteeringVector`` itself (its values alone; the package need not be there), a mapping with the key
    ``layer_activations``, and a bare mapping from block index to tensor. Layers keep their numbers.

    Args:
        path: The file.
        trait: The trait's name; None takes the file's.
        position: The token position; theirs is by default a text's last token, which none of ours is.

    Raises:
        FileNotFoundError: No such file.
        FileFormatError: Another content; activations of another place than the block's output (``layer_type``); NaN;
            or anything else that would have to be unpickled.

    Reference:
        steering-vectors/steering-vectors, ``steering_vectors/steering_vector.py``.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.read_steering_vector("vector.pt", trait="calm").to_vector(model)  # doctest: +SKIP
    """
    path = Path(path)
    content: Any = load_torch_file(path, [STAND_IN])
    content = vars(content) if isinstance(content, _StandIn) else content
    if not isinstance(content, Mapping):
        raise refuse(path, f"hold a SteeringVector, or its {_KEY}", describe(content))
    kind = content.get("layer_type", _BLOCK)
    if kind != _BLOCK:
        raise refuse(path, f"hold activations of {_BLOCK!r}, the residual stream", f"layer_type {kind!r:.60}")
    by_index = content.get(_KEY, content)
    if not isinstance(by_index, Mapping) or not by_index or not all(type(one) is int and one >= 0 for one in by_index):
        raise refuse(path, f"hold {_KEY}, from block index to tensor", describe(by_index))
    if len(by_index) > MAX_ROWS:
        raise refuse(path, f"hold at most {MAX_ROWS} layers", str(len(by_index)))
    rows = {layer: read_row(path, row, f"a direction at layer {layer}") for layer, row in by_index.items()}
    if len({row.shape for row in rows.values()}) > 1:
        raise refuse(path, "hold directions of one width", str(sorted({len(row) for row in rows.values()})))
    return LayerDirections(
        trait or path.stem, rows, position=position, provenance=name_origin("steering-vectors", path)
    )


@checked
def write_steering_vector(directions: LayerDirections, path: str | Path) -> tuple[int, ...]:
    """Write directions so that steering-vectors takes them: ``SteeringVector(**torch.load(path))``.

    Args:
        directions: What is written.
        path: Where to.

    Returns:
        The layers that the format has no place for: none.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.write_steering_vector(pl.vectors.LayerDirections.of(vector), "vector.pt")  # doctest: +SKIP
        ()
    """
    by_layer = {layer: directions.by_layer[layer].contiguous().clone() for layer in directions.layers}
    save_torch_file(Path(path), {_KEY: by_layer, "layer_type": _BLOCK})
    return ()
