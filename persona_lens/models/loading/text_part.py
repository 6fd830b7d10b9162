"""The language model inside a checkpoint that also sees or hears."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from persona_lens.errors import UnsupportedModelError


def take_text_part(hf_model: Any) -> Any:
    """Return a model's language model, sharing its weights; the model itself if it is nothing else.

    For one thing, all that is done here is with text. For another, TransformerLens, given a model that sees, runs
    ``pip install torchvision`` where that is missing, in the user's environment.

    Args:
        hf_model: A Hugging Face model.

    Raises:
        UnsupportedModelError: The language model inside is of no class that is known, or not where it is looked for.
    """
    config = hf_model.config.get_text_config()
    if config is hf_model.config:
        return hf_model
    trunk, name = getattr(hf_model.base_model, "language_model", None), type(hf_model).__name__
    rule, hint = "be a language model, or hold one that can be taken out", "Name the checkpoint of its text model."
    try:
        with torch.device("meta"):
            text: Any = AutoModelForCausalLM.from_config(config)
    except ValueError as error:  # no class for such a configuration
        raise UnsupportedModelError.of("model", rule, f"{name}: {type(config).__name__}", hint) from error
    if type(trunk) is not type(text.base_model):
        raise UnsupportedModelError.of("model", rule, f"{name}: no {type(text.base_model).__name__} inside", hint)
    setattr(text, text.base_model_prefix, trunk)
    head: nn.Module = hf_model.get_output_embeddings()
    text.set_output_embeddings(head)
    text.generation_config = hf_model.generation_config
    text.config._name_or_path = hf_model.config._name_or_path
    # How its weights are quantised, and where they lie.
    for told in ("is_quantized", "quantization_method", "hf_quantizer", "hf_device_map"):
        if hasattr(hf_model, told):
            setattr(text, told, getattr(hf_model, told))
    if getattr(hf_model.config, "quantization_config", None) is not None:
        text.config.quantization_config = hf_model.config.quantization_config
    return text.eval()
