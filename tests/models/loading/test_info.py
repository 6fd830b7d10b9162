import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.loading import resolve_dtype
from tests.backends import BACKENDS


def test_a_description_names_the_folder_without_its_path(tiny_folder):
    info = pl.describe_model(pl.load_model(tiny_folder("llama"), dtype="bfloat16", device="cpu"))
    assert "/" not in info.name
    assert (info.n_layers, info.d_model, info.dtype) == (3, 48, "bfloat16")


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
def test_a_description_says_whether_layer_norms_were_folded():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {"n_layers": 1, "d_model": 8, "n_ctx": 8, "d_head": 4, "n_heads": 2, "d_vocab": 80, "act_fn": "gelu"}
    for kind, expected in (("LN", "none"), ("LNPre", "layer norm folded"), ("RMSPre", "layer norm folded")):
        model = HookedTransformer(HookedTransformerConfig(**shape, normalization_type=kind))
        assert pl.describe_model(model).weight_processing == expected


def test_auto_takes_bfloat16_only_where_the_hardware_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for flag, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flag=flag: {"avx512_bf16": flag})
        assert resolve_dtype("auto", cpu) == expected
    assert resolve_dtype("float32", cpu) == resolve_dtype(torch.float32, cpu) == torch.float32
    with pytest.raises(InvalidArgumentError, match="`dtype`"):
        resolve_dtype("int8", cpu)
