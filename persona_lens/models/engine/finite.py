"""Where a model's numbers stop being finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from persona_lens.models.engine.decoding import Decoder
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.recording import ResidualRecorder

OVERFLOW_HINT = "Lower the steering coefficient; or load the model in bfloat16 or float32, if it overflows in float16."


def find_broken_layer(model: HookedModel, decoder: Decoder, tokens: Sequence[int]) -> int | None:
    """Return the first layer whose residual stream is not finite at some token; None where all are.

    Args:
        model: HookedTransformer or TransformerBridge, with whatever hooks it carries.
        decoder: The model's.
        tokens: A text's token ids.
    """
    recorder = ResidualRecorder(model.cfg.n_layers)
    recorder.expect(lambda residual, layer: residual.isfinite().all())
    cache = decoder.new_cache(1, len(tokens))
    device = cache.keys.device
    with attached(model, recorder.hook_pairs()):
        decoder.extend(torch.tensor([tokens], device=device), torch.zeros(1, dtype=torch.long, device=device), cache)
    broken = (~recorder.read()).nonzero()[:, 0].tolist()
    return broken[0] if broken else None
