"""Hugging Face models and tokenizers, from wherever a name points; their dtype, and where their blocks are."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, modeling_utils
from transformers.utils import logging as transformers_logging

from persona_lens.errors import (
    FileFormatError,
    InvalidArgumentError,
    ModelNotFoundError,
    PersonaLensError,
    UnsupportedModelError,
)
from persona_lens.hub import reach
from persona_lens.models.loading import embedded
from persona_lens.models.loading.architectures import check_architecture
from persona_lens.models.loading.embedded import EMBEDDED_MODEL
from persona_lens.models.loading.placing import Placement
from persona_lens.models.loading.text_part import take_text_part

_MAX_NAME = 1000  # characters; a path of more is none
_MAX_QUOTED = 200  # characters of another library's error
_READING = threading.RLock()  # what reads files is a module's, for all threads


def load_hugging_face(
    name: str, dtype: torch.dtype | Literal["auto"], placement: Placement | None = None
) -> tuple[Any, Any]:
    """Load a Hugging Face model and its tokenizer from wherever the name points, in eval mode.

    Args:
        name: As for :func:`load_model`.
        dtype: Of the weights; ``auto`` is the checkpoint's own.
        placement: Where the weights go and in what form; on the CPU as they are without a map.

    Raises:
        ModelNotFoundError: No such model.
        FileFormatError: Its files are damaged, or fit no architecture that is known.
        UnsupportedModelError: Its architecture cannot be held; quantised weights whose library is not installed.
    """
    source, extra = find_source(name)
    if "gguf_file" not in extra:  # whose header is as slow to read as all of it
        _check_before_loading(_read_config(name, source, extra))
    chosen: dict[str, Any] = {}
    if placement is not None:
        chosen = {"device_map": placement.device_map, "quantization_config": placement.quantization_config}
        chosen = {key: value for key, value in chosen.items() if value is not None}
        if placement.quantization_config is not None and placement.device_map is None:
            chosen["device_map"] = {"": placement.device}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **extra)
            # A .bin file is a pickle.
            weights = extra if "gguf_file" in extra else extra | {"use_safetensors": True}
            with _READING if placement is not None and placement.in_files else _unmapped_files():
                hf_model = AutoModelForCausalLM.from_pretrained(
                    source, dtype=dtype, trust_remote_code=False, **weights, **chosen
                )
    except ImportError as error:
        rule = "have weights that an installed library reads"
        got, hint = f"{name}: {' '.join(str(error).split())[:_MAX_QUOTED]}", "Install the library that it names."
        raise UnsupportedModelError.of("model", rule, got, hint) from error
    except OSError as error:  # what Hugging Face raises for a name that is not there or cannot be reached
        why = "No such folder here, and the Hugging Face hub does not have it or is out of reach."
        if "safetensors" in str(error):
            why = "It has no weights in safetensors; others, which are pickles, are not read. Convert them first."
        raise _not_found(name, why) from error
    except Exception as error:  # the readers of configuration, tokenizer and weights raise whatever they stumble over
        raise _damaged(name, error) from error
    if not isinstance(tokenizer.chat_template, str | dict | None):
        got = type(tokenizer.chat_template).__name__
        raise FileFormatError.of("model", "have a text for a chat template", f"{name}, with {got}")
    hf_model = take_text_part(hf_model)
    check_architecture(hf_model.config, type(hf_model))
    hf_model.config.architectures = [type(hf_model).__name__]  # a model read from GGUF names none
    return hf_model.eval(), tokenizer


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


def is_gguf(name: str) -> bool:
    """Whether a name is a GGUF file's, whose configuration is as slow to read as all of it."""
    return name != EMBEDDED_MODEL and Path(name).suffix.lower() == ".gguf"


def read_config(name: str) -> Any:
    """Return a model's Hugging Face configuration, from wherever the name points; no weights are read.

    Args:
        name: As for :func:`load_model`.

    Raises:
        ModelNotFoundError: No such model.
        FileFormatError: A configuration that is damaged, or of no architecture that is known.
    """
    return _read_config(name, *find_source(name))


def _read_config(name: str, source: str, extra: dict[str, Any]) -> Any:
    try:
        with quiet():
            return AutoConfig.from_pretrained(source, trust_remote_code=False, **extra)
    except OSError as error:
        why = "No such folder here, and the Hugging Face hub does not have it or is out of reach."
        raise _not_found(name, why) from error
    except Exception as error:  # the reader of configurations raises whatever it stumbles over
        raise _damaged(name, error) from error


def find_source(name: str) -> tuple[str, dict[str, Any]]:
    """Return what ``from_pretrained`` is told for a name: folder or hub name, and how to read it.

    Raises:
        ModelNotFoundError: A name that is no folder, file or hub name.
    """
    path = Path(name).expanduser()
    extra: dict[str, Any] = {}
    if name == EMBEDDED_MODEL:
        source = str(embedded.prepare_embedded_model())
    elif os.path.isfile(path) and path.suffix.lower() == ".gguf":
        source, extra["gguf_file"] = str(path.parent), path.name
    else:
        source = str(path) if os.path.isdir(path) else name
        looks_local = path.suffix.lower() == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1
        if not name.strip() or len(name) > _MAX_NAME or os.path.isfile(path):
            raise _not_found(name, "That is no name, or a file of another kind.")
        if not os.path.isdir(path) and looks_local:
            raise _not_found(name, "There is no such file or folder.")
        if os.path.isdir(path) and not (path / "config.json").is_file():
            why = "The folder has no config.json. Is it a PEFT adapter? Then load_model(BASE, adapter=FOLDER)."
            raise _not_found(name, why)
        if not os.path.isdir(path):
            extra["local_files_only"] = not reach(constants.ENDPOINT)
    return source, extra


@contextmanager
def _unmapped_files() -> Iterator[None]:
    """Let transformers read each tensor of a safetensors file into memory of its own, in place of mapping the file.

    What is read from a mapped file stays resident beside what is made of it until the last file is read: two or three
    times the weights, where they are rounded or laid out anew.
    """

    def open_file(filename: str, framework: str, device: str = "cpu", **_: object) -> Any:
        return safe_open(filename, framework=framework, device=device, backend="pread")

    reader = vars(modeling_utils)  # it has no option for it
    with _READING:  # one at a time, or the last to end would put back another's
        own = reader["safe_open"]
        reader["safe_open"] = open_file
        try:
            yield
        finally:
            reader["safe_open"] = own


def round_weights(hf_model: Any, dtype: torch.dtype) -> None:
    """Give a Hugging Face model's weights a dtype, in place, as loading it in that dtype would.

    ``hf_model.to(dtype)`` would round the frequencies of its rotary embedding as well, which move every position.
    """
    for parameter in hf_model.parameters():
        if parameter.is_floating_point() and parameter.itemsize > 1:  # the codes of quantised weights stay
            parameter.data = parameter.data.to(dtype)
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


@contextmanager
def quiet() -> Iterator[None]:
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


def _damaged(name: str, error: Exception) -> PersonaLensError:
    hint = f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_QUOTED]}. Get the files again."
    return FileFormatError.of("model", "name a whole model of a known architecture", name, hint)


def _not_found(name: str, why: str) -> PersonaLensError:
    rule = f"be {EMBEDDED_MODEL!r}, a Hugging Face name such as 'Qwen/Qwen2.5-7B-Instruct', a folder or a GGUF file"
    hint = f"{why} For the bundled model: load_model({EMBEDDED_MODEL!r})."
    return ModelNotFoundError.of("model", rule, name, hint)
