import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

import persona_lens as pl
from persona_lens.models.loading import fingerprint_hugging_face
from tests.backends import ARCHITECTURES, BACKENDS
from tests.tiny import make_hf_model, make_tokenizer

PROJECTIONS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
PROJECTIONS += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
MATRICES = [f"layers.{layer}.{name}" for layer in range(3) for name in PROJECTIONS] + ["embed_tokens"]
DTYPES = (torch.float32, torch.bfloat16)
VECTORS = ["layers.1.input_layernorm.weight", "layers.1.post_attention_layernorm.weight"]
VECTORS += ["layers.1.self_attn.q_proj.bias", "layers.1.self_attn.v_proj.bias"]


def fingerprint(folder, **options):
    return pl.describe_model(pl.load_model(folder, **{"dtype": "float32", "device": "cpu"} | options)).fingerprint


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_classes_and_hugging_face_agree_in_float32_and_bfloat16(tiny_folder, architecture):
    folder = tiny_folder(architecture)
    prints = {fingerprint(folder, backend=kind, dtype=dtype) for kind in BACKENDS for dtype in DTYPES}
    prints |= {
        fingerprint_hugging_face(make_hf_model(architecture).to(kind)) for kind in (torch.float32, torch.bfloat16)
    }
    assert len(prints) == 1


def perturb(name, folder, out):
    """Save a copy of a model with one weight changed."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_parameter(name).mul_(1.05)
    model.save_pretrained(out)
    make_tokenizer().save_pretrained(out)
    return str(out)


@pytest.mark.parametrize("name", [*(f"model.{matrix}.weight" for matrix in MATRICES), "lm_head.weight"])
def test_a_change_of_any_one_matrix_changes_it(tiny_folder, tmp_path, name):
    folder = tiny_folder("llama")
    changed = perturb(name, folder, tmp_path)
    prints = {fingerprint(changed, backend=kind) for kind in BACKENDS}
    assert len(prints) == 1
    assert fingerprint(folder) not in prints


@pytest.mark.parametrize("name", VECTORS)
def test_a_change_of_a_norm_or_bias_changes_it_where_all_store_it_alike(tiny_folder, tmp_path, name):
    folder = tiny_folder("qwen2")
    changed = perturb(f"model.{name}", folder, tmp_path)
    prints = {fingerprint(changed, backend=kind) for kind in BACKENDS}
    assert len(prints) == 1
    assert fingerprint(folder) not in prints


def test_an_architecture_of_the_bridge_alone_has_one_of_its_own(tmp_path):
    torch.manual_seed(0)
    shape = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=64, **shape))
    prints = set()
    for name in (None, "query_key_value", "dense_4h_to_h"):
        folder = tmp_path / str(name)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if name and key.endswith(f"1.attention.{name}.weight" if "query" in name else f"1.mlp.{name}.weight"):
                    parameter.mul_(1.05)
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        assert fingerprint(str(folder)) == fingerprint(str(folder), dtype="bfloat16")
        prints.add(fingerprint(str(folder)))
        shutil.rmtree(folder)
    assert len(prints) == 3
    assert fingerprint_hugging_face(model) is None  # the bridge splits its weights
