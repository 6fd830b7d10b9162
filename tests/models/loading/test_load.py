import datetime
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

import persona_lens as pl
from persona_lens.errors import DatedTemplateWarning, InvalidArgumentError, ModelNotFoundError, UnsupportedModelError
from persona_lens.models.loading import checkpoints, prepare_embedded_model
from persona_lens.models.loading.hooked import optimize_memory_layout
from persona_lens.models.loading.hugging_face import round_weights
from persona_lens.models.text.templates import read_settings
from tests.architectures import make_architecture
from tests.backends import ARCHITECTURES, BACKENDS
from tests.chat_templates import tokenizer_like
from tests.tiny import make_hf_model, make_tokenizer, save_tiny

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_weights_make_the_model_that_is_read_in_that_dtype(tiny_folder, dtype):
    """The angles of the rotary embedding stay as exact as they were."""
    rounded = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32)
    round_weights(rounded, dtype)
    expected = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=dtype)
    tokens = random_tokens(256, (2, 200))
    with torch.no_grad():
        assert torch.equal(rounded(tokens).logits, expected(tokens).logits)
    assert rounded.dtype == expected.dtype == rounded.config.dtype == dtype


def test_weights_that_an_architecture_keeps_in_float32_stay_so_beside_float16(tmp_path):
    hf_model = make_architecture("gpt-oss").to(torch.bfloat16)
    hf_model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = pl.load_model(tmp_path, dtype="float16", device="cpu")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    dtypes = {weight.dtype for weight in expected.parameters()}
    assert dtypes == {torch.float16, torch.float32}
    tokens = random_tokens(100, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), expected(tokens).logits, atol=2e-3, rtol=2e-3)
    assert {weight.dtype for weight in model.original_model.parameters()} == dtypes
    assert pl.describe_model(model).dtype == "float16"


def test_the_configuration_is_read_once_and_the_hub_asked_once(tiny_folder, monkeypatch):
    own, found = checkpoints._find_source, []
    monkeypatch.setattr(checkpoints, "_find_source", lambda name: found.append(name) or own(name))
    pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")
    assert found == [tiny_folder("llama")]


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


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_layer_of_the_embedded_model_equals_hugging_faces(backend):
    model = pl.load_model(backend=backend, dtype="float32", device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(prepare_embedded_model(), dtype=torch.float32)
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
    optimize_memory_layout(model)
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


def test_a_loaded_model_whose_template_writes_the_day_keeps_it_and_says_so(tiny_folder, tmp_path):
    model = pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")
    tokenizer_like("llama3").save_pretrained(tmp_path)  # TransformerLens 4 reads it again by its name
    model.tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.warns(DatedTemplateWarning, match="Today's was fixed"):
        pl.load_model(model)
    pinned = read_settings(model.tokenizer)
    assert pinned.arguments == f'{{"strftime_now": "{datetime.date.today()}"}}'
    assert read_settings(pl.load_model(model).tokenizer) is pinned


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "missing.gguf", "nobody/has-this-model"])
def test_a_missing_model_says_what_to_type(name):
    with pytest.raises(ModelNotFoundError, match=r"load_model\('smollm2-135m-instruct'\)"):
        pl.load_model(name)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        pl.load_model(tmp_path)


@pytest.mark.usefixtures("own_checks_alone")
def test_an_unknown_backend_is_refused_before_anything_is_loaded():
    said = "`backend` must be one of 'hooked', 'bridge' or None. Got 'hugging'."
    with pytest.raises(InvalidArgumentError, match=re.escape(said)):
        pl.load_model("nobody/has-this-model", backend="hugging")


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


def test_weights_that_are_pickled_are_not_read(tmp_path):
    save_tiny(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    torch.save(make_hf_model("llama").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match="no weights in safetensors"):
        pl.load_model(str(tmp_path))
