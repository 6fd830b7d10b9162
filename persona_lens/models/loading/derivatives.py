"""What derivatives cannot be taken through, refused before any work."""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from persona_lens.errors import UnsupportedModelError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading.fingerprints import read_quantization
from persona_lens.models.loading.spreading import BlockFetcher, refuse_gradients


def check_gradients_pass(model: HookedModel) -> None:
    """Refuse a model whose blocks let no gradient through.

    Quantised blocks do, as does what lies in memory or in files where the CPU computes.

    Raises:
        UnsupportedModelError: Weights of a block are copied to the device that computes while it runs: by the time that
            gradients come back they lie elsewhere again.
    """
    if not isinstance(model, TransformerBridge):
        return
    fetched = [layer for layer, block in enumerate(model.blocks) if _is_fetched(block.original_component)]
    if fetched:
        refuse_gradients(f"elsewhere those of layers {', '.join(map(str, fetched))}")


def check_tangents_pass(model: HookedModel) -> None:
    """Refuse a model whose blocks may let no forward derivative through.

    Raises:
        UnsupportedModelError: Quantised weights: torch knows no forward derivative of some libraries' products, and of
            bitsandbytes' in 4 bits on a CPU it takes zero, without a word.
    """
    method = read_quantization(model.original_model) if isinstance(model, TransformerBridge) else None
    if method is not None:
        rule = "hold plain weights: forward derivatives get lost in the products of quantised ones"
        raise UnsupportedModelError.of("model", rule, f"{method} weights", "Load it without quantization_config.")


def _is_fetched(block: Any) -> bool:
    return any(isinstance(getattr(hook, "__self__", None), BlockFetcher) for hook in block._forward_pre_hooks.values())
