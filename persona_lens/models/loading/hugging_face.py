"""Hugging Face models and tokenizers; their dtype, and where their blocks are."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from persona_lens.errors import FileFormatError, InvalidArgumentError, PersonaLensError, UnsupportedModelError
from persona_lens.models.loading.architectures import check_architecture
from persona_lens.models.loading.checkpoints import MAX_QUOTED, Checkpoint, damaged, find_checkpoint, not_found
from persona_lens.models.loading.placing import Placement
from persona_lens.models.loading.process_wide import quiet, unmapped_files
from persona_lens.models.loading.text_part import take_text_part


def load_hugging_face(
    model: str | Checkpoint, dtype: torch.dtype | Literal["auto"], placement: Placement | None = None
) -> tuple[Any, Any]:
    """Load a Hugging Face model and its tokenizer from wherever a name points, in eval mode.

    Args:
        model: A name, as for :func:`load_model`, or what it leads to, so that this is asked once.
        dtype: Of the weights; ``auto`` is the checkpoint's own.
        placement: Where the weights go and in what form; on the CPU as they are without a map.

    Raises:
        ModelNotFoundError: No such model.
        FileFormatError: Its files are damaged, fit no architecture that is known, or hold no tokenizer.
        UnsupportedModelError: Its architecture cannot be held; quantised weights whose library is not installed.
    """
    found = find_checkpoint(model) if isinstance(model, str) else model
    name, extra = found.name, found.extra
    if found.config is not None:
        _check_before_loading(found.config)
    chosen: dict[str, Any] = {}
    if placement is not None:
        chosen = {"device_map": placement.device_map, "quantization_config": placement.quantization_config}
        chosen = {key: value for key, value in chosen.items() if value is not None}
        if placement.quantization_config is not None and placement.device_map is None:
            chosen["device_map"] = {"": placement.device}
    try:
        with quiet():
            tokenizer = _read_tokenizer(found)
            # A .bin file is a pickle.
            weights = extra if found.is_gguf else extra | {"use_safetensors": True}
            with nullcontext() if placement is not None and placement.in_files else unmapped_files():
                hf_model = AutoModelForCausalLM.from_pretrained(
                    found.source, dtype=dtype, trust_remote_code=False, **weights, **chosen
                )
    except PersonaLensError:
        raise
    except ImportError as error:
        rule = "have weights that an installed library reads"
        got, hint = f"{name}: {' '.join(str(error).split())[:MAX_QUOTED]}", "Install the library that it names."
        raise UnsupportedModelError.of("model", rule, got, hint) from error
    except OSError as error:  # what Hugging Face raises for a name that is not there or cannot be reached
        why = "No such folder here, and the Hugging Face hub does not have it or is out of reach."
        if "safetensors" in str(error):
            why = "It has no weights in safetensors; others, which are pickles, are not read. Convert them first."
        raise not_found(name, why) from error
    except Exception as error:  # the readers of configuration, tokenizer and weights raise whatever they stumble over
        raise damaged(name, error) from error
    if not isinstance(tokenizer.chat_template, str | dict | None):
        got = type(tokenizer.chat_template).__name__
        raise FileFormatError.of("model", "have a text for a chat template", f"{name}, with {got}")
    hf_model = take_text_part(hf_model)
    check_architecture(hf_model.config, type(hf_model))
    hf_model.config.architectures = [type(hf_model).__name__]  # a model read from GGUF names none
    return hf_model.eval(), tokenizer


def _read_tokenizer(found: Checkpoint) -> Any:
    """Read the tokenizer; where its files are missing, transformers raises, or makes one of special tokens alone.

    Raises:
        FileFormatError: There is none.
    """
    rule, hint = "hold a tokenizer beside its weights", "Save it there: tokenizer.save_pretrained(FOLDER)."
    missing = FileFormatError.of("model", rule, found.name, hint)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(found.source, trust_remote_code=False, **found.extra)
    except ValueError as error:
        names = os.listdir(found.source) if os.path.isdir(found.source) else ["tokenizer.json"]
        if any("tok" in name or "vocab" in name or name.endswith((".model", ".gguf")) for name in names):
            raise
        raise missing from error
    if len(tokenizer) <= len(getattr(tokenizer, "added_tokens_decoder", ())):
        raise missing
    return tokenizer


def _check_before_loading(config: Any) -> None:
    """Refuse an architecture that cannot be held, before weights are read.

    Raises:
        UnsupportedModelError: It is one.
    """
    classes = AutoModelForCausalLM._model_mapping
    if type(config) in classes:
        # Of a model that also sees, the text part is what counts, once it is taken out.
        inner = config.get_text_config()
        model_class: Any = classes[type(inner if type(inner) in classes else config)]
        check_architecture(config, model_class)


def round_weights(hf_model: Any, dtype: torch.dtype) -> None:
    """Give a Hugging Face model's weights a dtype, in place, as loading it in that dtype would.

    ``hf_model.to(dtype)`` would round the frequencies of its rotary embedding as well, which move every position, and
    what the architecture keeps in float32, such as gpt-oss' norms beside float16.
    """
    kept = list(hf_model._get_dtype_plan(dtype))
    for name, parameter in hf_model.named_parameters():
        if parameter.is_floating_point() and parameter.itemsize > 1:  # the codes of quantised weights stay
            stays = any(re.search(one.replace("*", ".*"), name) for one in kept)
            parameter.data = parameter.data.to(torch.float32 if stays else dtype)
    hf_model.config.dtype = dtype


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
        raise InvalidArgumentError.of("dtype", f"be 'auto' or one of {sorted(named)}", dtype)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    in_hardware = device.type == "cpu" and any(capabilities.get(key) for key in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if in_hardware else torch.float32


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
        raise UnsupportedModelError.of("model", rule, f"{type(hf_model).__name__} with {len(lists)}")
    return lists[0]


# Where architectures keep the projection that reads the heads' outputs side by side: Llama's, GPT-2's, GPT-NeoX's,
# GPT-J's, Phi's and Falcon's.
_OUTPUT_PROJECTIONS = (
    "self_attn.o_proj", "attn.c_proj", "attention.dense", "attn.out_proj", "self_attn.dense", "self_attention.dense",
)  # fmt: skip


def find_output_projection(hf_model: nn.Module, layer: int) -> nn.Module:
    """Return the output projection of a block's attention, which reads the heads' outputs; also an adapter around it.

    Args:
        hf_model: A Hugging Face model, with or without PEFT's wrapping.
        layer: Zero-based block index.

    Raises:
        UnsupportedModelError: The block has none under a name that is known here, or it reads another width.
    """
    config: Any = hf_model.config
    n_heads, d_head = read_head_shape(config.get_text_config())
    modules = dict(find_blocks(hf_model)[layer].named_modules())
    found: list[Any] = [modules[name] for name in _OUTPUT_PROJECTIONS if name in modules]
    # GPT-2's projection is no Linear: it stores its weight the other way round.
    if [getattr(module, "in_features", None) or len(module.weight) for module in found] != [n_heads * d_head]:
        rule = f"have an output projection that reads {n_heads} heads of width {d_head}, to train with steps on heads"
        got = f"{type(hf_model).__name__} with none at {', '.join(_OUTPUT_PROJECTIONS)}"
        raise UnsupportedModelError.of("model", rule, got)
    projection: nn.Module = found[0]
    return projection


def read_head_shape(config: Any) -> tuple[int, int]:
    """Return the number of query heads of a layer and the width of each, from a Hugging Face text configuration."""
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads, d_head


def count_kv_heads(config: Any) -> int:
    """Return the number of a layer's key/value heads, also as Falcon's configurations say it."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    told = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    return int(told or config.num_attention_heads)
