"""HookedTransformers made of Hugging Face models: every weight finds its place, and none is left over."""

import pytest

import persona_lens as pl
from persona_lens.errors import UnsupportedModelError

weight_conversions = pytest.importorskip("transformer_lens.pretrained.weight_conversions")
pytest.importorskip("transformer_lens.HookedTransformer")  # gone in TransformerLens 4


def leave_out(state):
    return {name: weight for name, weight in state.items() if name != "blocks.1.mlp.W_gate"}


def add(state):
    return {**state, "blocks.1.mlp.W_gate_of_more": state["blocks.1.mlp.W_gate"]}


def cut(state):
    """To a shape that would be broadcast into place."""
    return {**state, "blocks.1.mlp.W_gate": state["blocks.1.mlp.W_gate"][:1]}


@pytest.mark.parametrize(("change", "name"), [(leave_out, "W_gate"), (add, "W_gate_of_more"), (cut, "W_gate")])
def test_weights_without_a_place_or_of_another_shape_are_refused(tiny_folder, monkeypatch, change, name):
    convert = weight_conversions.convert_llama_weights
    monkeypatch.setattr(weight_conversions, "convert_llama_weights", lambda *given: change(convert(*given)))
    with pytest.raises(UnsupportedModelError, match=rf"Got 'others at blocks\.1\.mlp\.{name}'\. Pass backend="):
        pl.load_model(tiny_folder("llama"), backend="hooked", dtype="float32", device="cpu")
