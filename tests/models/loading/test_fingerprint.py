import shutil
import warnings

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

import persona_lens as pl
from persona_lens.models.loading import fingerprint_hugging_face
from persona_lens.models.loading.fingerprints import forget_origin
from tests.backends import ARCHITECTURES, BACKENDS
from tests.models.loading.test_adapters import make_adapter, rewrite
from tests.tiny import make_hf_model, make_tokenizer

PROJECTIONS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
PROJECTIONS += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
MATRICES = [f"layers.{layer}.{name}" for layer in range(3) for name in PROJECTIONS] + ["embed_tokens"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VECTORS = ["layers.1.input_layernorm.weight", "layers.1.post_attention_layernorm.weight"]
VECTORS += ["layers.1.self_attn.q_proj.bias", "layers.1.self_attn.v_proj.bias"]


def fingerprint(folder, **options):
    return pl.describe_model(pl.load_model(folder, **{"dtype": "float32", "device": "cpu"} | options)).fingerprint


def check_fits(vector_of, model):
    pl.PersonaVector("loud", pl.describe_model(vector_of), {"response_mean": torch.ones(3, 48)}).check_model(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_classes_and_all_three_dtypes_have_hugging_faces(tiny_folder, architecture):
    folder = tiny_folder(architecture)
    prints = {fingerprint(folder, backend=kind, dtype=dtype) for kind in BACKENDS for dtype in DTYPES}
    prints |= {
        fingerprint_hugging_face(make_hf_model(architecture).to(kind)) for kind in (torch.float32, torch.bfloat16)
    }
    assert len(prints) == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stored", DTYPES)
def test_a_vector_fits_the_same_weights_in_every_dtype_whatever_they_are_stored_in(tmp_path, backend, stored):
    make_hf_model("llama").to(stored).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    models = [pl.load_model(tmp_path, backend=backend, dtype=dtype, device="cpu") for dtype in DTYPES]
    assert [next(model.parameters()).dtype for model in models] == list(DTYPES)
    for one in models:
        for other in models:
            check_fits(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_is_changed_after_it_was_loaded_is_another(tiny_folder, backend, dtype):
    model = pl.load_model(tiny_folder("gemma2"), backend=backend, dtype=dtype, device="cpu")
    before = pl.describe_model(model).fingerprint
    for name in ("attn", "mlp", "norm"):
        weight = next(p for key, p in model.named_parameters() if name in key or (name == "norm" and "ln1" in key))
        with torch.no_grad():
            kept = weight.clone()
            weight.mul_(1.05)
            assert pl.describe_model(model).fingerprint != before, name
            weight.copy_(kept)
    assert pl.describe_model(model).fingerprint == before


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loaded_model_that_is_cast_keeps_its_own(tiny_folder, backend, dtype):
    for architecture in ("llama", "gemma2"):
        model = pl.load_model(tiny_folder(architecture), backend=backend, dtype="float32", device="cpu")
        before = pl.describe_model(model).fingerprint
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        assert pl.describe_model(model).fingerprint == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if not name.startswith("gemma")])
def test_a_model_that_was_loaded_elsewhere_has_the_same_where_its_weights_are_stored_alike(
    tiny_folder, architecture, backend
):
    for dtype in DTYPES[:2]:
        model = pl.load_model(tiny_folder(architecture), backend=backend, dtype=dtype, device="cpu")
        before = pl.describe_model(model).fingerprint
        forget_origin(model)
        assert pl.describe_model(model).fingerprint == before


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt_neox"])
def test_a_change_of_any_one_weight_changes_it(architecture):
    """Of every name, and of one entry alone where all of a weight is hashed."""
    model = make_neox() if architecture == "gpt_neox" else make_hf_model(architecture)
    prints = [fingerprint_hugging_face(model)]
    with torch.no_grad():
        for weight in model.parameters():
            kept = weight.clone()
            (weight if weight.ndim > 1 else weight[-1]).add_(0.1)
            prints.append(fingerprint_hugging_face(model))
            weight.copy_(kept)
    assert fingerprint_hugging_face(model) == prints[0]
    assert len(set(prints)) == len(prints) > 15


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.input_layernorm.weight"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_change_of_a_norm_changes_it_in_both_classes_and_all_dtypes(tiny_folder, tmp_path, architecture, name):
    changed = perturb(name, tiny_folder(architecture), tmp_path)
    prints = {fingerprint(changed, backend=kind, dtype=dtype) for kind in BACKENDS for dtype in DTYPES}
    assert len(prints) == 1
    assert fingerprint(tiny_folder(architecture)) not in prints


@pytest.mark.parametrize("target", ["up_proj", "down_proj"])
def test_a_small_lora_in_one_mlp_changes_it_where_it_changes_the_rounded_weights(tiny_folder, tmp_path, target):
    """Saved as a whole model, which names no adapter."""
    adapter = make_adapter(
        tmp_path / "adapter", r=1, target_modules=[target], layers_to_transform=[1], layers_pattern="layers"
    )
    rewrite(adapter, lambda weights: {name: 0.1 * weight for name, weight in weights.items()})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        merged = PeftModel.from_pretrained(make_hf_model("llama"), str(adapter)).merge_and_unload()
    moved = merged.model.layers[1].mlp.get_parameter(f"{target}.weight") - make_hf_model("llama").model.layers[
        1
    ].mlp.get_parameter(f"{target}.weight")
    assert 0 < moved.abs().mean() < 0.01
    merged.save_pretrained(tmp_path / "merged")
    make_tokenizer().save_pretrained(tmp_path / "merged")
    prints = {fingerprint(tmp_path / "merged", dtype=dtype) for dtype in DTYPES}
    assert len(prints) == 1
    assert fingerprint(tiny_folder("llama")) not in prints


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


def make_neox():
    torch.manual_seed(0)
    shape = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=64, **shape)).eval()


def test_an_architecture_of_the_bridge_alone_has_hugging_faces_too(tmp_path):
    """The bridge splits its weights."""
    model = make_neox()
    prints = set()
    for name in (None, "query_key_value", "dense_4h_to_h"):
        folder = tmp_path / str(name)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if name and key.endswith(f"1.attention.{name}.weight" if "query" in name else f"1.mlp.{name}.weight"):
                    parameter.mul_(1.05)
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        found = {fingerprint(str(folder), dtype=dtype) for dtype in DTYPES}
        assert found == {fingerprint_hugging_face(model)}
        prints |= found
        shutil.rmtree(folder)
    assert len(prints) == 3


def test_every_plain_matrix_that_is_called_an_embedding_is_read_in_as_many_rows_as_ever():
    torch.manual_seed(0)
    shape = {"vocab_size": 259, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(word_embed_proj_dim=32, max_position_embeddings=254, **shape)).eval()
    before = fingerprint_hugging_face(model)
    positions = model.model.decoder.embed_positions.weight
    assert len(positions) == 256
    with torch.no_grad():
        positions[4] += 1  # of 64 rows the second, of 16 none
    assert fingerprint_hugging_face(model) != before
