"""HookedTransformers made of Hugging Face models: every weight finds its place."""

import pytest

import persona_lens as pl
from persona_lens.errors import UnsupportedModelError

weight_conversions = pytest.importorskip("transformer_lens.pretrained.weight_conversions")
pytest.importorskip("transformer_lens.HookedTransformer")  # gone in TransformerLens 4


def test_a_weight_that_a_conversion_leaves_out_is_refused_and_a_bias_is_zero(tiny_folder, monkeypatch):
    convert = weight_conversions.convert_llama_weights

    def convert_without(left_out):
        def converting(*given):
            return {name: value for name, value in convert(*given).items() if name not in left_out}

        monkeypatch.setattr(weight_conversions, "convert_llama_weights", converting)

    convert_without({"blocks.1.attn.b_Q"})
    model = pl.load_model(tiny_folder("llama"), backend="hooked", dtype="float32", device="cpu")
    assert not model.blocks[1].attn.b_Q.any()
    convert_without({"blocks.1.mlp.W_gate"})
    with pytest.raises(UnsupportedModelError, match=r"Got 'no blocks\.1\.mlp\.W_gate'\. Pass backend="):
        pl.load_model(tiny_folder("llama"), backend="hooked", dtype="float32", device="cpu")
