"""How large a model is, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig

from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.models.loading import count_kv_heads, quiet, read_head_shape

_BITS = 8  # a byte
_SCALE_BITS = 0.5  # a float32 scale for 64 weights, or about as much; what the usual formats of four bits keep


@dataclass(frozen=True)
class ModelShape:
    """How large a model is.

    Args:
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        d_mlp: Width of a block's MLP.
        n_heads: Query heads of a layer.
        n_kv_heads: Key/value heads of a layer.
        d_head: Width of a head.
        n_ctx: Context length in tokens.
        vocab: Number of tokens.
        parameters: Weights, tied ones once.
        block_weights: Weights of the blocks' matrices.
        active_weights: Of those, how many a token is multiplied with: fewer in a mixture of experts.
        is_tied: Whether embedding and unembedding are one matrix.
    """

    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_ctx: int
    vocab: int
    parameters: int
    block_weights: int
    active_weights: int
    is_tied: bool

    @property
    def cache_values(self) -> int:
        """Numbers that the key/value cache keeps of a token."""
        return 2 * self.n_layers * self.n_kv_heads * self.d_head

    @property
    def attention_flops(self) -> int:
        """Operations of one token's attention on one other: a score and a weighted sum in every head."""
        return 4 * self.n_layers * self.n_heads * self.d_head


def read_shape(config: PreTrainedConfig) -> ModelShape:
    """Build the architecture without memory for its weights, and count them.

    Raises:
        FileFormatError: A configuration that makes no causal language model.
    """
    text: Any = config.get_text_config()
    try:
        with quiet(), torch.device("meta"):
            # Of a model that also sees, the text part is what is loaded.
            is_known = type(text) in AutoModelForCausalLM._model_mapping
            model = AutoModelForCausalLM.from_config(text if is_known else config, trust_remote_code=False)
        n_heads, d_head = read_head_shape(text)
        n_layers, d_model = int(text.num_hidden_layers), int(text.hidden_size)
        n_ctx = int(text.max_position_embeddings)
    except Exception as error:  # whatever transformers makes of a configuration that is damaged or of another kind
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise FileFormatError.of("model", "have the configuration of a causal language model", why) from error
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    chosen = (getattr(text, "num_experts_per_tok", None) or experts) if experts else None
    share = chosen / experts if experts and chosen else 1.0
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    matrices = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1 and id(weight) not in ends}
    of_experts = sum(weight.numel() for name, weight in matrices.items() if ".experts." in name)
    block_weights = sum(weight.numel() for weight in matrices.values())
    return ModelShape(
        n_layers, d_model, int(getattr(text, "intermediate_size", None) or 4 * d_model), n_heads,
        count_kv_heads(text), d_head, n_ctx, int(text.vocab_size),
        parameters=sum(weight.numel() for weight in model.parameters()), block_weights=block_weights,
        active_weights=round(block_weights - of_experts * (1 - share)), is_tied=len(ends) == 1,
    )  # fmt: skip


def read_bits(quantization: Any, dtype: torch.dtype) -> float:
    """Return how many bits a weight of the blocks takes, scales included; the dtype's own where none is quantised.

    Raises:
        InvalidArgumentError: A quantisation of which this is not known here.
    """
    if quantization is None:
        return float(_BITS * dtype.itemsize)
    told: Mapping[str, Any] = quantization if isinstance(quantization, Mapping) else quantization.to_dict()
    bits = 4 if told.get("load_in_4bit") else 8 if told.get("load_in_8bit") else told.get("bits")
    word = f"{told.get('quant_method')} {told.get('quant_type') or told.get('fmt') or ''}".lower()
    if any(sign in word for sign in ("e4m3", "e5m2")):
        bits = bits or 8
    bits = bits or next((n for n in (4, 8) for sign in (f"int{n}", f"fp{n}", f"float{n}") if sign in word), 0)
    if not bits:
        rule = "say how many bits a weight takes (bitsandbytes, GPTQ, AWQ, FP8, MXFP4, or torchao's by name)"
        raise InvalidArgumentError.of("quantization_config", rule, word.strip())
    return int(bits) + (_SCALE_BITS if int(bits) < _BITS else 0.0)
