"""Where a Hugging Face model keeps its transformer blocks."""

from __future__ import annotations

from typing import Any

from torch import nn

from persona_lens.errors import UnsupportedModelError, describe_violation


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
