"""The paper's code: ``{trait}_response_avg_diff.pt``, one row for each of Hugging Face's hidden states."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.vectors.exchange.directions import LayerDirections
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

_POSITIONS: dict[str, TokenPosition] = {
    "response_avg": "response_mean", "prompt_avg": "prompt_mean", "prompt_last": "last_prompt",
}  # fmt: skip
_NAME = re.compile(rf"(?P<trait>.+)_(?P<position>{'|'.join(_POSITIONS)})_diff")
_WHY = (
    "The paper's row {row} is Hugging Face's last hidden state, which is taken after the final norm and is no residual "
    "stream."
)


@checked
def read_paper_vector(
    path: str | Path, *, trait: str | None = None, position: TokenPosition | None = None
) -> LayerDirections:
    """Read a vector of the paper's code, a bare tensor ``[n_layers + 1, d_model]``.

    Row L is Hugging Face's ``hidden_states[L]``: row 0 the embeddings, row L the output of block L - 1, the last row
    that of the last block after the final norm. Rows 1 to ``n_layers - 1`` become layers 0 to ``n_layers - 2``. The
    last layer is left out: a direction between normed states is none of the residual stream, though it has its width.

    Args:
        path: The file.
        trait: The trait's name; None takes it from the file's.
        position: The token position; None takes it from the file's name, which ends in ``_response_avg_diff``,
            ``_prompt_avg_diff`` or ``_prompt_last_diff``; the response mean if it ends in none.

    Raises:
        FileNotFoundError: No such file.
        FileFormatError: No bare floating-point matrix, NaN or infinity in it, or anything that would have to be
            unpickled.

    Reference:
        Persona Vectors (arXiv 2507.21509); ``generate_vec.py`` of safety-research/persona_vectors.

    Example:
        >>> import persona_lens as pl
        >>> found = pl.vectors.read_paper_vector("evil_response_avg_diff.pt")  # doctest: +SKIP
        >>> vector = found.to_vector(model)  # doctest: +SKIP
        >>> pl.steer(vector, layer=19, coefficient=2.0)  # the paper's layer 20 # doctest: +SKIP
    """
    path = Path(path)
    content = load_torch_file(path)
    if isinstance(content, dict):
        raise refuse(path, "hold a bare tensor [n_layers + 1, d_model]", describe(content), "Is it another program's?")
    rows = read_rows(path, content, "one row for each hidden state")
    n_layers = len(rows) - 1
    by_layer = split_rows(rows[1:n_layers])
    if not by_layer:
        raise refuse(path, "hold a direction between the first row and the last", f"{len(rows)} rows, zero there")
    named = _NAME.fullmatch(path.stem)
    provenance = name_origin("paper", path) | {"left_out": {str(n_layers - 1): _WHY.format(row=n_layers)}}
    return LayerDirections(
        trait or (named["trait"] if named else path.stem),
        by_layer,
        n_layers,
        position or (_POSITIONS[named["position"]] if named else "response_mean"),
        provenance=provenance,
    )


@checked
def write_paper_vector(directions: LayerDirections, path: str | Path) -> tuple[int, ...]:
    """Write a vector as the paper's code does: layer ``l`` becomes row ``l + 1`` of ``[n_layers + 1, d_model]``.

    Row 0 (the embeddings) and the last row (a state after the final norm) are zero, as is that of an absent layer.

    Args:
        directions: What is written; ``LayerDirections.of(vector)`` for a persona vector.
        path: Where to; the paper's code looks for ``{trait}_response_avg_diff.pt``.

    Returns:
        The layers that the format has no place for: the last one.

    Raises:
        InvalidArgumentError: Directions that do not say how many layers their model has, or of the last layer alone.

    Example:
        >>> import persona_lens as pl
        >>> directions = pl.vectors.LayerDirections.of(vector)  # doctest: +SKIP
        >>> pl.vectors.write_paper_vector(directions, "evil_response_avg_diff.pt")  # doctest: +SKIP
        (29,)
    """
    n_layers = check_layer_count(directions)
    rows = torch.zeros(n_layers + 1, directions.d_model)
    kept = [layer for layer in directions.layers if layer < n_layers - 1]
    if not kept:
        raise InvalidArgumentError.of("directions", "have a layer before the model's last", directions.layers)
    for layer in kept:
        rows[layer + 1] = directions.by_layer[layer]
    save_torch_file(Path(path), rows)
    return tuple(layer for layer in directions.layers if layer not in kept)


def check_layer_count(directions: LayerDirections) -> int:
    """Return the number of the model's layers, which a file with one row a layer needs.

    Raises:
        InvalidArgumentError: It is not known.
    """
    if directions.n_layers is None:
        rule = "know how many layers their model has, for a file of one row a layer"
        hint = "Make a vector of them first: directions.to_vector(model)."
        raise InvalidArgumentError.of("directions", rule, "directions without", hint)
    return directions.n_layers
