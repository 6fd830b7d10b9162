"""PEFT adapters: checked, merged, and remembered by the model that they were merged into."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lens.checksums import hash_file
from persona_lens.errors import FileFormatError, ModelMismatchError
from persona_lens.models.hooked_model import HookedModel

# What finetune writes beside an adapter: how it was trained, and on which weights.
ADAPTER_RECORD = "persona_lens.json"
_WEIGHTS = "adapter_model.safetensors"
_ORIGIN = "persona_lens_origin"


@dataclass(frozen=True)
class Origin:
    """What an adapter made a model of.

    Args:
        base_fingerprint: Fingerprint of the weights that it was merged into; None where they cannot be named.
        adapter_hash: SHA-256 of its weights.
    """

    base_fingerprint: str | None
    adapter_hash: str


def remember_origin(model: HookedModel, folder: Path, base_fingerprint: str | None) -> None:
    """Note in a model which adapter was merged into it, and into what."""
    model.__dict__[_ORIGIN] = Origin(base_fingerprint, hash_file(folder / _WEIGHTS))


def read_origin(model: HookedModel) -> Origin | None:
    """Return what an adapter made a model of; None where no adapter was merged."""
    return model.__dict__.get(_ORIGIN)


def check_adapter(folder: Path) -> None:
    """Refuse a folder that holds no PEFT adapter in safetensors, before a model is loaded."""
    names = ("adapter_config.json", _WEIGHTS)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        # An adapter_model.bin is a pickle, which runs whatever code it holds.
        rule = f"name the folder of a PEFT adapter with {' and '.join(names)}"
        raise FileFormatError.of("adapter", rule, str(folder), f"Missing: {', '.join(missing)}.")


def check_base(adapter: Path, name: str, fingerprint: str | None) -> None:
    """Refuse an adapter that :func:`persona_lens.finetune` trained for other weights; others' do not say."""
    record = adapter / ADAPTER_RECORD
    content = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    trained_on = content.get("config", {}).get("fingerprint")
    if None not in (trained_on, fingerprint) and trained_on != fingerprint:
        rule, got = f"be trained on this model, {name} (fingerprint {fingerprint})", f"one trained on {trained_on}"
        raise ModelMismatchError.of("adapter", rule, got, "Name the model it was trained on.")


def merge_adapter(hf_model: Any, adapter: Path) -> Any:
    """Merge a PEFT adapter into a model's weights."""
    from peft import PeftModel  # half a second that only adapters need

    try:
        merged = PeftModel.from_pretrained(hf_model, str(adapter), is_trainable=False).merge_and_unload()
    except (RuntimeError, ValueError) as error:  # weights of another shape, or modules that are not there
        raise FileFormatError.of("adapter", "be an adapter of this model", str(adapter), str(error)[:500]) from error
    merged.config.architectures = [type(merged).__name__]
    return merged.eval()
