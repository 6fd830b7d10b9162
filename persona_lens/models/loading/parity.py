"""A TransformerLens model held against the Hugging Face model that it was made of, on a few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import UnsupportedModelError
from persona_lens.models.loading.architectures import finish_logits
from persona_lens.models.loading.hugging_face import find_blocks

_N_TOKENS = 12
# Of a vector's length. Rounding in half precision adds up over layers; another architecture is off by its whole length.
_MAX_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True, eq=False)
class Reference:
    """What a Hugging Face model computes on a few tokens.

    Args:
        residual: Output of every block.
        logits: Of the next token.
    """

    residual: Float[Tensor, "layer pos d_model"]
    logits: Float[Tensor, "pos vocab"]


def read_reference(hf_model: Any) -> Reference:
    """Run a Hugging Face model on a few tokens, before TransformerLens takes it apart.

    Raises:
        UnsupportedModelError: Its logits are made of its unembedding in a way that the sampler does not know.
    """
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def read(module: Any, args: Any, output: Any) -> None:
            found[layer] = (output if isinstance(output, Tensor) else output[0])[0].float()

        return read

    unembedded: list[Tensor] = []
    handles = [block.register_forward_hook(keep(layer)) for layer, block in enumerate(find_blocks(hf_model))]
    handles.append(hf_model.get_output_embeddings().register_forward_hook(lambda *given: unembedded.append(given[2])))
    try:
        with torch.no_grad():
            logits = hf_model(_tokens(hf_model), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    _check("the logits", finish_logits(unembedded[-1], hf_model.config.get_text_config())[0], logits[0], hf_model)
    return Reference(torch.stack([found[layer] for layer in sorted(found)]), logits[0].float())


def check_parity(bridge: Any, reference: Reference) -> None:
    """Refuse a bridge that computes another model than Hugging Face does.

    Args:
        bridge: A TransformerBridge, just made.
        reference: What :func:`read_reference` found before.

    Raises:
        UnsupportedModelError: Names the architecture, TransformerLens' version and the first layer that differs.
    """
    found: dict[int, Tensor] = {}

    def keep(residual: Tensor, hook: Any) -> None:
        found[int(hook.name.split(".")[1])] = residual[0].float()

    hf_model = bridge.original_model
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(len(reference.residual))]
    with torch.no_grad(), bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
        logits = bridge(_tokens(hf_model))[0]
    for layer, expected in enumerate(reference.residual):
        _check(f"layer {layer}", found[layer], expected, hf_model)
    _check("the logits", logits, reference.logits, hf_model)


def _tokens(hf_model: Any) -> Tensor:
    vocab = hf_model.config.get_text_config().vocab_size
    drawn = torch.randint(0, vocab, (1, _N_TOKENS), generator=torch.Generator().manual_seed(0))
    return drawn.to(hf_model.get_input_embeddings().weight.device)


def _check(where: str, found: Tensor, expected: Tensor, hf_model: Any) -> None:
    error = ((found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)).max().item()
    if not error <= _MAX_ERROR.get(hf_model.dtype, 0.1):
        name = type(hf_model).__name__
        rule = "be the same model in TransformerLens as in Hugging Face's transformers"
        versions = f"TransformerLens {version('transformer-lens')}, transformers {version('transformers')}"
        got = f"{name}, off in {where} by {error:.2g} of its length ({versions})"
        hint = "Another version of TransformerLens may have it right; docs/howto/architectures.md lists what runs."
        raise UnsupportedModelError.of("model", rule, got, hint)
