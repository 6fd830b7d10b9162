"""GGUF control vectors: what llama.cpp, repeng and EasySteer read and write."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persona_lens.checking import checked
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.files import write_bytes_atomically
from persona_lens.models.loading import ModelInfo
from persona_lens.records import read_headed
from persona_lens.vectors.exchange.directions import LayerDirections, check_characters
from persona_lens.vectors.exchange.gguf_reading import GGUFFile, read_gguf
from persona_lens.vectors.exchange.torch_files import name_origin, refuse
from persona_lens.vectors.persona_vector import TokenPosition

_ARCHITECTURE = "controlvector"
_FIRST = "persona_lens.layer_0"  # beside the tensors: llama.cpp refuses a file with a tensor of any other name
_METADATA, _FORMAT, _VERSION = "persona_lens.vector", "persona-vector", 1


@dataclass(frozen=True)
class _Metadata:
    """What a file of ours says besides the directions."""

    trait: str
    position: TokenPosition
    n_layers: int | None
    model: ModelInfo | None
    provenance: dict[str, Any]


@checked
def read_control_vector(
    path: str | Path, *, trait: str | None = None, position: TokenPosition | None = None
) -> LayerDirections:
    """Read a GGUF control vector of llama.cpp, repeng or EasySteer, or one that was written here.

    ``direction.N`` is added to the output of block N, zero-based, by all of them, so that layers keep their numbers.
    llama.cpp and repeng leave out layer 0; EasySteer's files have it. repeng reads its last layer's direction after
    the model's final norm and adds it before: that one is better not used.

    Args:
        path: The file.
        trait: The trait's name; None takes that of the file's metadata, or the file's name.
        position: The token position; None takes the metadata's, or the response mean. Other programs' are read from a
            text's last token, which none of ours is.

    Returns:
        The directions. Of a file that was written here all that its vector held at that token position, model
        included; of another file the directions alone.

    Raises:
        FileNotFoundError: No such file.
        FileFormatError: A truncated or damaged file; tensors that are no ``direction.N``, not of one width, or neither
            float32 nor float16; NaN or infinity.

    Reference:
        llama.cpp, ``common_control_vector_load`` and ``llama_adapter_cvec``; repeng, ``ControlVector.import_gguf``.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.read_control_vector("happy.gguf").to_vector(model)  # doctest: +SKIP
    """
    path = Path(path)
    file = read_gguf(path)
    by_layer = _read_directions(path, file)
    metadata = _read_metadata(path, file)
    provenance = name_origin("gguf", path) if metadata is None else metadata.provenance
    if metadata is None and isinstance(hint := file.fields.get("controlvector.model_hint"), str):
        provenance["read_from"]["model_hint"] = hint
    try:
        return LayerDirections(
            trait or (metadata.trait if metadata else path.stem),
            by_layer,
            metadata.n_layers if metadata else None,
            position or (metadata.position if metadata else "response_mean"),
            metadata.model if metadata else None,
            provenance,
        )
    except InvalidArgumentError as error:
        raise FileFormatError(f"{path}: {error}") from error


@checked
def write_control_vector(
    directions: LayerDirections, path: str | Path, *, model_hint: str | None = None
) -> tuple[int, ...]:
    """Write a GGUF control vector, bit for bit, that llama.cpp, repeng and EasySteer read.

    Layer N becomes the tensor ``direction.N``. llama.cpp refuses a file with ``direction.0``: layer 0 stands beside the
    tensors, as metadata that :func:`read_control_vector` alone knows, and steers nothing elsewhere.

    Args:
        directions: What is written.
        path: Where to.
        model_hint: ``controlvector.model_hint``, by which repeng warns when vectors of two models are added: it writes
            the configuration's ``model_type``, such as ``qwen2``. None writes the model's name.

    Returns:
        The layers that the format has no place for: layer 0.

    Raises:
        InvalidArgumentError: Directions of layer 0 alone, or a hint with half a character.

    Example:
        >>> import persona_lens as pl
        >>> directions = pl.vectors.LayerDirections.of(vector)  # doctest: +SKIP
        >>> pl.vectors.write_control_vector(directions, "evil.gguf")  # doctest: +SKIP
        (0,)
    """
    kept = [layer for layer in directions.layers if layer > 0]
    if not kept:
        raise InvalidArgumentError.of("directions", "have a layer above 0", directions.layers)
    hint = model_hint or (directions.model.name if directions.model else "unknown")
    check_characters("model_hint", hint)
    from gguf import GGUFWriter  # slow to import, and needed nowhere else here

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "vector.gguf"
        writer = GGUFWriter(draft, _ARCHITECTURE)
        writer.add_string("general.name", directions.trait)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", hint)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(kept))
        writer.add_string(_METADATA, _encode_metadata(directions))
        if 0 in directions.by_layer:
            writer.add_array(_FIRST, _as_array(directions, 0).tolist())
        for layer in kept:
            writer.add_tensor(f"direction.{layer}", _as_array(directions, layer))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_bytes_atomically(Path(path), draft.read_bytes())
    return tuple(layer for layer in directions.layers if layer not in kept)


def _as_array(directions: LayerDirections, layer: int) -> np.ndarray:
    return np.ascontiguousarray(directions.by_layer[layer].detach().cpu().float().numpy())


def _encode_metadata(directions: LayerDirections) -> str:
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "trait": directions.trait,
        "position": directions.position,
        "n_layers": directions.n_layers,
        "model": directions.model.to_json() if directions.model else None,
        "provenance": directions.provenance,
    }
    return json.dumps(content)


def _read_metadata(path: Path, file: GGUFFile) -> _Metadata | None:
    if _METADATA not in file.fields:
        return None
    try:
        return read_headed(json.loads(file.fields[_METADATA]), _Metadata, _FORMAT, _VERSION)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise refuse(path, f"have JSON as {_METADATA!r}", f"another: {error}") from error


def _read_directions(path: Path, file: GGUFFile) -> dict[int, torch.Tensor]:
    found = {}
    for name, value in file.tensors.items():
        named = re.fullmatch(r"direction\.(0|[1-9][0-9]{0,5})", name)
        if named is None:
            architecture = file.fields.get("general.architecture")
            hint = f"It is of the architecture {architecture!r:.60}: a model's file?"
            raise refuse(path, "hold tensors direction.0, direction.1 and so on alone", f"{name!r:.80}", hint)
        found[int(named[1])] = value
    if isinstance(first := file.fields.get(_FIRST), np.ndarray) and first.dtype == np.float32:
        found.setdefault(0, first)
    if not found:
        raise refuse(path, "hold a tensor direction.N", "none")
    if len({value.shape for value in found.values()}) > 1 or next(iter(found.values())).ndim != 1:
        raise refuse(path, "hold directions of one width", str(sorted({value.shape for value in found.values()})))
    by_layer = {layer: torch.from_numpy(value.astype(np.float32)) for layer, value in sorted(found.items())}
    broken = [layer for layer, direction in by_layer.items() if not bool(torch.isfinite(direction).all())]
    if broken:
        raise refuse(path, "hold finite directions", f"NaN or infinity at layers {broken}")
    return by_layer
