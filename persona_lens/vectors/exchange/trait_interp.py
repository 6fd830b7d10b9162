"""trait-interp: a folder with ``layer{N}.pt`` for each block and ``metadata.json``."""

from __future__ import annotations

import re
from pathlib import Path

from persona_lens.checking import checked
from persona_lens.checksums import hash_tensors
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.files import check_folder_or_nothing, write_json
from persona_lens.traits.reading import read_json_object
from persona_lens.vectors.exchange.directions import LayerDirections
from persona_lens.vectors.exchange.torch_files import MAX_ROWS, load_torch_file, read_row, refuse, save_torch_file
from persona_lens.vectors.persona_vector import TokenPosition

_POSITIONS: dict[str, TokenPosition] = {
    "response[:]": "response_mean", "prompt[:]": "prompt_mean", "prompt[-1]": "last_prompt",
}  # fmt: skip
_METADATA = "metadata.json"
_KEPT = ("model", "trait", "method", "component", "position")
# Where else theirs are read: each a folder's name, and `component` in metadata.json.
_ELSEWHERE = {"attn_out", "mlp_out", "attn_contribution", "mlp_contribution", "k_proj", "v_proj"}


@checked
def read_trait_interp(
    path: str | Path, *, trait: str | None = None, position: TokenPosition | None = None
) -> LayerDirections:
    """Read a folder of trait-interp, ``…/{trait}/{variant}/vectors/{position}/residual/{method}``.

    ``layer{N}.pt`` is a bare tensor ``[d_model]`` of block N's output, so that layers keep their numbers.

    Args:
        path: The folder that holds the ``layer{N}.pt`` files of one method.
        trait: The trait's name; None takes that of ``metadata.json``, or the file's name.
        position: The token position; None takes that of ``metadata.json``. To be given where theirs is none of ours,
            such as ``response[:5]``; theirs is kept in the provenance.

    Raises:
        FileNotFoundError: No such folder.
        FileFormatError: No such file in it, one that is no bare vector or has NaN in it, directions of another
            component than the residual stream, or a token position that is none of ours.

    Reference:
        ewernn/trait-interp, ``utils/extract_vectors.py`` and ``utils/paths.py``.

    Example:
        >>> import persona_lens as pl
        >>> folder = "experiments/mine/extraction/evil/instruct/vectors/response_all/residual/mean_diff"
        >>> pl.vectors.read_trait_interp(folder).to_vector(model)  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"`path` must name an existing folder. Got {str(path)!r}.")
    named = re.compile(r"layer(0|[1-9][0-9]{0,3})\.pt")
    files = {int(found[1]): one for one in path.iterdir() if (found := named.fullmatch(one.name))}
    if not files:
        raise refuse(path, "hold layer0.pt, layer1.pt and so on", "a folder without")
    if len(files) > MAX_ROWS:
        raise refuse(path, f"hold at most {MAX_ROWS} layers", str(len(files)))
    metadata = read_json_object(path / _METADATA, FileFormatError) if (path / _METADATA).is_file() else {}
    said = {key: str(metadata[key])[:200] for key in _KEPT if key in metadata}
    component = said.get("component", path.parent.name if path.parent.name in _ELSEWHERE else "residual")
    if component != "residual":
        raise refuse(path, "hold directions of the component 'residual'", repr(component))
    theirs = said.get("position", "response[:]")
    if position is None and theirs not in _POSITIONS:
        hint = "Say which of ours comes nearest: position='response_mean'."
        raise refuse(path, f"have the token position {', '.join(_POSITIONS)}", repr(theirs), hint)
    rows = {layer: read_row(one, load_torch_file(one), "one direction") for layer, one in sorted(files.items())}
    if len({row.shape for row in rows.values()}) > 1:
        raise refuse(path, "hold directions of one width", str(sorted({len(row) for row in rows.values()})))
    digest = hash_tensors({str(layer): row for layer, row in rows.items()})
    origin = {"format": "trait-interp", "file": path.name, "tensors_sha256": digest, "metadata": said}
    return LayerDirections(
        trait or said.get("trait") or path.name,
        rows,
        position=position or _POSITIONS[theirs],
        provenance={"read_from": origin},
    )


@checked
def write_trait_interp(directions: LayerDirections, path: str | Path) -> tuple[int, ...]:
    """Write a folder that trait-interp reads: ``layer{N}.pt`` for each layer, and ``metadata.json``.

    Args:
        directions: What is written.
        path: The folder; made if it is not there.

    Returns:
        The layers that the format has no place for: none.

    Raises:
        InvalidArgumentError: A folder that holds layers already, or no place for one.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.write_trait_interp(pl.vectors.LayerDirections.of(vector), "mean_diff")  # doctest: +SKIP
        ()
    """
    path = Path(path)
    check_folder_or_nothing(path, "path")
    if path.is_dir() and any(path.glob("layer*.pt")):  # those of another vector would be taken for this one's
        raise InvalidArgumentError.of("path", "be a folder without layers", str(path), "Choose another.")
    path.mkdir(parents=True, exist_ok=True)
    for layer in directions.layers:
        save_torch_file(path / f"layer{layer}.pt", directions.by_layer[layer].contiguous().clone())
    theirs = {ours: theirs for theirs, ours in _POSITIONS.items()}
    norms = {str(layer): float(directions.by_layer[layer].double().norm()) for layer in directions.layers}
    metadata = {
        "model": directions.model.name if directions.model else "unknown",
        "trait": directions.trait,
        "method": "mean_diff",
        "component": "residual",
        "position": theirs[directions.position],
        "layers": {layer: {"norm": norm} for layer, norm in norms.items()},
    }
    write_json(path / _METADATA, metadata)
    return ()
