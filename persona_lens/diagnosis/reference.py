"""What Hugging Face's own model makes of a text: the oracle of the examination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from persona_lens.errors import PersonaLensError
from persona_lens.models.engine.bridge_decoder import without_wrappers
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading.fingerprints import fingerprint_hugging_face, read_origin
from persona_lens.models.loading.hugging_face import find_blocks, load_hugging_face, round_weights
from persona_lens.models.loading.process_wide import quiet


@dataclass(frozen=True, eq=False)
class Reference:
    """What Hugging Face's model makes of a text. The model itself is not kept.

    Args:
        source: Where it was, in words.
        residuals: Each block's output: ``hidden_states`` from the second on, the last before its final norm.
        logits: Of the next token, at each position.
        config: The text model's configuration.
        stop_tokens: Ids that end a response, by its generation settings.
        tokenizer: As it was loaded; None where only the model's own is at hand, which TransformerLens changes.
    """

    source: str
    residuals: Float[Tensor, "layer pos d_model"]
    logits: Float[Tensor, "pos vocab"]
    config: Any
    stop_tokens: frozenset[int]
    tokenizer: Any


def read_reference(model: HookedModel, tokens: tuple[int, ...], source: str | None) -> tuple[Reference | None, str]:
    """Run Hugging Face's model on a text.

    A TransformerBridge wraps one, which runs while its wrappers step aside. For a HookedTransformer, or where
    ``source`` says from where, the model is loaded again: memory then holds the weights twice for as long as it runs.

    Args:
        model: HookedTransformer or TransformerBridge.
        tokens: Token ids.
        source: As for :func:`persona_lens.load_model`; None takes what the model wraps, or where it was loaded from.

    Returns:
        The reference, or None and why there is none.
    """
    if source is None and isinstance(model, TransformerBridge):
        hf_model: Any = model.original_model
        with without_wrappers(model):
            return _run(hf_model, None, tokens, "the model that the bridge wraps"), ""
    origin = read_origin(model)
    if source is None and origin is not None and origin.base_fingerprint is not None:
        return None, "An adapter was merged into this model, which no file holds as it is."
    found = origin.source.model if origin else str(getattr(model.tokenizer, "name_or_path", None) or "")
    named = found if source is None else source
    if source is None and not named:
        return None, "It is not known where the model was loaded from."
    dtype = next(model.parameters()).dtype
    try:
        with quiet():
            # As load_model does: float16 is rounded from the files' own precision.
            hf_model, tokenizer = load_hugging_face(named, "auto" if dtype == torch.float16 else dtype)
    except PersonaLensError as error:
        if source is not None:
            raise
        return None, f"Hugging Face's model could not be loaded from {named}: {error}"
    if source is None and origin is not None and fingerprint_hugging_face(hf_model) != origin.fingerprint:
        return None, f"{named} holds other weights by now than those that this model was loaded from."
    if dtype == torch.float16:
        round_weights(hf_model, dtype)
    return _run(hf_model.to(model.cfg.device), tokenizer, tokens, "Hugging Face's model loaded anew"), ""


def _run(hf_model: Any, tokenizer: Any, tokens: tuple[int, ...], source: str) -> Reference:
    outputs: dict[int, Tensor] = {}

    def keep(layer: int, output: Any) -> None:
        outputs[layer] = (output if isinstance(output, Tensor) else output[0])[0].detach().clone()

    # Not `hidden_states`: its last entry is taken after the final norm.
    handles = [
        getattr(block, "original_component", block).register_forward_hook(
            lambda module, given, output, layer=layer: keep(layer, output)
        )
        for layer, block in enumerate(find_blocks(hf_model))
    ]
    row = torch.tensor([tokens], device=next(hf_model.parameters()).device)
    try:
        with torch.no_grad():
            logits: Tensor = hf_model(row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    config = hf_model.config.get_text_config()
    stops = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    stop_tokens = frozenset([] if stops is None else stops if isinstance(stops, list) else [stops])
    residuals = torch.stack([outputs[layer] for layer in range(len(outputs))])
    return Reference(source, residuals, logits, config, stop_tokens, tokenizer)
