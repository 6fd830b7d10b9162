"""What identifies a model in results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from persona_lens.checking import checked
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading.fingerprints import fingerprint, read_origin, read_quantization
from persona_lens.models.text.templates import read_settings


@checked
@dataclass(frozen=True)
class ModelInfo:
    """What identifies a model in results.

    Args:
        name: As it was loaded, followed by the template arguments that it was loaded with, as JSON, if any.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        n_ctx: Context length in tokens.
        dtype: Element type of the weights.
        backend: ``hooked`` or ``bridge``.
        fingerprint: Hash of a sample of every weight of the model's files: the same for both backends and in float32,
            bfloat16 and float16, another after fine-tuning.
        weight_processing: ``none`` for all that :func:`load_model` loads: the residual stream is the Hugging Face
            model's. ``layer norm folded`` for a HookedTransformer that was loaded elsewhere with folding.
        base_fingerprint: Fingerprint of the model that an adapter was merged into; None without an adapter. Vectors of
            the base may be used on such a model.
        quantization: How the weights are quantised, in transformers' word for it (``bitsandbytes``, ``torchao`` …);
            None if they are not.
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
    quantization: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name; the quantisation where there is one.

        Left out without, so that what was kept before there was any is still found.
        """
        return {key: value for key, value in asdict(self).items() if key != "quantization" or value is not None}


@checked
def describe_model(model: HookedModel) -> ModelInfo:
    """Return what identifies a model in results.

    Args:
        model: HookedTransformer or TransformerBridge.
    """
    cfg, origin = model.cfg, read_origin(model)
    bridge = model if isinstance(model, TransformerBridge) else None
    return ModelInfo(
        name=" ".join(filter(None, (str(cfg.model_name), read_settings(model.tokenizer).arguments))),
        n_layers=int(cfg.n_layers),
        d_model=int(cfg.d_model),
        n_ctx=int(cfg.n_ctx),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        backend="hooked" if bridge is None else "bridge",
        fingerprint=fingerprint(model),
        # TransformerLens renames the normalisation when it folds its weights into the next layer.
        weight_processing="layer norm folded" if str(cfg.normalization_type).endswith("Pre") else "none",
        base_fingerprint=origin.base_fingerprint if origin else None,
        quantization=None if bridge is None else read_quantization(bridge.original_model),
    )
