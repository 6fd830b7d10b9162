"""PEFT adapters: checked, and merged into a model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_lens.checksums import hash_file, list_changed
from persona_lens.errors import FileFormatError, ModelMismatchError

# What finetune writes beside an adapter: how it was trained, and on which weights.
ADAPTER_RECORD = "persona_lens.json"
_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = ("adapter_config.json", _WEIGHTS)
_N_NAMED = 3


def hash_adapter(folder: Path) -> str:
    """Return the SHA-256 of an adapter's weights."""
    return hash_file(folder / _WEIGHTS)


def check_adapter(folder: Path) -> None:
    """Refuse a folder that holds no PEFT adapter in safetensors, or not as it was written, before a model is loaded.

    Raises:
        FileFormatError: A file is missing, or not the one that :func:`persona_lens.finetune` wrote.
    """
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        # An adapter_model.bin is a pickle, which runs whatever code it holds.
        rule = f"name the folder of a PEFT adapter with {' and '.join(ADAPTER_FILES)}"
        raise FileFormatError.of("adapter", rule, str(folder), f"Missing: {', '.join(missing)}.")
    changed = list_changed(folder, read_adapter_record(folder).get("files", {}))
    if changed:
        got, hint = f"{folder} with other {', '.join(changed)}", "It is damaged; get it again, or train it again."
        hint += f" If the files were changed on purpose, remove {ADAPTER_RECORD}."
        raise FileFormatError.of("adapter", "hold the files that were written", got, hint)


def check_base(adapter: Path, name: str, fingerprint: str) -> None:
    """Refuse an adapter that :func:`persona_lens.finetune` trained for other weights; others' do not say."""
    trained_on = read_adapter_record(adapter).get("config", {}).get("fingerprint")
    if trained_on not in (None, fingerprint):
        rule, got = f"be trained on this model, {name} (fingerprint {fingerprint})", f"one trained on {trained_on}"
        raise ModelMismatchError.of("adapter", rule, got, "Name the model it was trained on.")


def read_adapter_record(folder: Path) -> dict[str, Any]:
    """Return what is written beside an adapter; nothing where there is no record."""
    path = folder / ADAPTER_RECORD
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not all(isinstance(content.get(key, {}), dict) for key in ("config", "files")):
        hint = "It is damaged; get it again, or remove it if the adapter is not ours."
        raise FileFormatError.of("adapter", f"have a record that is whole, {ADAPTER_RECORD}", str(folder), hint)
    return content


def merge_adapter(hf_model: Any, adapter: Path) -> Any:
    """Merge a PEFT adapter into a model's weights.

    Raises:
        FileFormatError: A weight of the adapter has no place in the model, a place that its config names has no weight,
            or weights are of another shape or not finite.
    """
    from peft import PeftConfig, get_peft_model  # half a second that only adapters need
    from peft.utils import load_peft_weights

    try:
        peft_model = get_peft_model(hf_model, PeftConfig.from_pretrained(str(adapter)))
        _place_weights(peft_model, load_peft_weights(str(adapter), device="cpu"))
        merged = peft_model.merge_and_unload(safe_merge=True)  # which refuses sums that are not finite
    except Exception as error:  # whatever PEFT makes of a config and weights that are damaged or of another model
        why = " ".join(str(error).split())[:500]
        raise FileFormatError.of("adapter", "be an adapter of this model", str(adapter), why) from error
    merged.config.architectures = [type(merged).__name__]
    return merged.eval()


def _place_weights(peft_model: Any, weights: dict[str, Tensor]) -> None:
    """Give each place of a fresh adapter its weight; PEFT would pass over those that do not match."""
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    def read_places() -> dict[str, Tensor]:
        places: dict[str, Tensor] = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        return places

    infinite = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
    if infinite:
        raise ValueError(f"It is not finite in {_name_some(infinite)}.")
    with torch.no_grad():
        for place in read_places().values():  # what is still NaN afterwards got no weight, whatever PEFT calls it
            place.fill_(torch.nan)
    placed: Any = set_peft_model_state_dict(peft_model, weights)
    left_over = placed.unexpected_keys
    if left_over:
        raise ValueError(f"The model has no place for {_name_some(left_over)}.")
    without = [name for name, place in read_places().items() if bool(place.isnan().any())]
    if without:
        raise ValueError(f"The adapter has no weight for {_name_some(without)}.")


def _name_some(names: list[str]) -> str:
    more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    return ", ".join(names[:_N_NAMED]) + more
