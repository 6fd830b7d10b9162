"""assistant-axis: ``axis.pt`` and the vectors of roles and traits, one row a block's output."""

from __future__ import annotations

from pathlib import Path

import torch

from persona_lens.checking import checked
from persona_lens.vectors.exchange.directions import LayerDirections
from persona_lens.vectors.exchange.paper import check_layer_count
from persona_lens.vectors.exchange.torch_files import (
    describe,
    load_torch_file,
    name_origin,
    read_rows,
    refuse,
    save_torch_file,
    split_rows,
)
from persona_lens.vectors.persona_vector import TokenPosition


@checked
def read_assistant_axis(
    path: str | Path, *, trait: str | None = None, position: TokenPosition = "response_mean"
) -> LayerDirections:
    """Read a file of assistant-axis: a tensor ``[n_layers, d_model]``, bare or under the key ``axis`` or ``vector``.

    Row l is the output of block l, so that layers keep their numbers and the last is a residual like the others. An
    axis points from roles towards the assistant. A role's ``vector`` is a mean of activations, not a difference: what
    steers is one such vector less another.

    Args:
        path: The file.
        trait: The trait's name; None takes the role's, or the file's.
        position: The token position; theirs are means over responses.

    Raises:
        FileNotFoundError: No such file.
        FileFormatError: Another content, such as a configuration for capping, or NaN, or anything that would have to
            be unpickled.

    Reference:
        safety-research/assistant-axis, ``assistant_axis/axis.py`` and ``pipeline/4_vectors.py``.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.read_assistant_axis("assistant_axis.pt").to_vector(model)  # doctest: +SKIP
    """
    path = Path(path)
    content = load_torch_file(path)
    role, kind = None, "rows"
    if isinstance(content, dict):
        kind = next((key for key in ("axis", "vector") if key in content), "")
        if not kind:
            raise refuse(path, "hold a tensor, alone or as 'axis' or 'vector'", describe(content))
        role, content = content.get("role"), content[kind]
    rows = read_rows(path, content, "one row a block")
    by_layer = split_rows(rows)
    if not by_layer:
        raise refuse(path, "hold a direction above zero", "zeros alone")
    name = trait or (role if isinstance(role, str) and role else path.stem)
    provenance = name_origin("assistant-axis", path) | {"kind": kind}
    return LayerDirections(name, by_layer, len(rows), position, provenance=provenance)


@checked
def write_assistant_axis(directions: LayerDirections, path: str | Path) -> tuple[int, ...]:
    """Write directions as assistant-axis' ``save_axis`` does: a tensor ``[n_layers, d_model]`` under ``axis``.

    Args:
        directions: What is written; rows of absent layers are zero.
        path: Where to.

    Returns:
        The layers that the format has no place for: none.

    Raises:
        InvalidArgumentError: Directions that do not say how many layers their model has.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.write_assistant_axis(pl.vectors.LayerDirections.of(vector), "axis.pt")  # doctest: +SKIP
        ()
    """
    rows = torch.zeros(check_layer_count(directions), directions.d_model)
    for layer, direction in directions.by_layer.items():
        rows[layer] = direction
    metadata = {"trait": directions.trait, "position": directions.position}
    if directions.model is not None:
        metadata["model"] = directions.model.name
    save_torch_file(Path(path), {"axis": rows, "metadata": metadata})
    return ()
