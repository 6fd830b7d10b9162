"""Weights quantised as they are loaded: hooked like any others, computed as transformers computes them, and small.

On a CPU, where torchao and bitsandbytes both run. Neither is in the environment, as transformers imports them wherever
they are installed. `make test-quantised` puts both beside it.
"""

import gc
import importlib.util
import json

import pytest
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, UnsupportedModelError
from persona_lens.models.loading import load_hugging_face, placing, round_weights
from persona_lens.models.loading.fingerprints import read_quantization
from persona_lens.models.loading.text_part import take_text_part
from tests.architectures import make_architecture
from tests.screening.test_scores import converse
from tests.tiny import make_tokenizer, save_tiny
from tests.vectors.test_written import EXAMPLES

TOKENS = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
CPU = {"dtype": "float32", "device": "cpu"}

# What torchao says of its own code as it is imported, and of kernels that this machine does not have; bitsandbytes of
# the dtype that it computes in.
pytestmark = pytest.mark.filterwarnings("ignore")


def quantise_to_eight_bits():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def quantise_groups_to_four_bits():
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


def needs(package):
    # Versions that all of this passed with, on a CPU; others may do.
    version = {"torchao": "0.18.0", "bitsandbytes": "0.50.2"}[package]
    reason = f"{package} is not there: see make test-quantised, or pip install {package}=={version}"
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=reason)


METHODS = [
    pytest.param(quantise_to_eight_bits, "torchao", id="torchao, 8 bits", marks=needs("torchao")),
    # Each code in a byte of its own. What packs them, Int4WeightOnlyConfig of torchao 0.18, does not run here: "plain"
    # ends in ImportError, "Requires mslk >= 1.0.0", "tile_packed_to_4d" in "Torch not compiled with CUDA enabled".
    pytest.param(quantise_groups_to_four_bits, "torchao", id="torchao, 4 bits", marks=needs("torchao")),
    pytest.param(
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        "bitsandbytes",
        id="bitsandbytes, 4 bits",
        marks=needs("bitsandbytes"),
    ),
    pytest.param(
        lambda: BitsAndBytesConfig(load_in_8bit=True),
        "bitsandbytes",
        id="bitsandbytes, 8 bits",
        marks=needs("bitsandbytes"),
    ),
]
every_method = pytest.mark.parametrize(("make", "method"), METHODS)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    """A model of widths that bitsandbytes can pack."""
    widths = {"vocab_size": 259, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, pad_token_id=256, eos_token_id=258, **widths)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("plain")
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def read_layers(hf_model, change=None):
    """Return what each block of a Hugging Face model puts out, and the logits; one may be changed in between."""
    read = []

    def read_output(module, given, output):
        is_tuple = isinstance(output, tuple)
        value = output[0] if is_tuple else output
        if change is not None and len(read) == 1:
            value = value + change
        read.append(value)
        return (value, *output[1:]) if is_tuple else value

    handles = [block.register_forward_hook(read_output) for block in hf_model.model.layers]
    with torch.no_grad():
        logits = hf_model(TOKENS).logits
    for handle in handles:
        handle.remove()
    return read, logits


@every_method
def test_each_layer_is_that_of_transformers_own_quantised_model_and_steering_acts_there_alike(
    plain_folder, make, method
):
    model = pl.load_model(plain_folder, quantization_config=make(), **CPU)
    # The bridge computes attention step by step, so that it can be hooked.
    ours = {"dtype": torch.float32, "device_map": "cpu", "attn_implementation": "eager"}
    theirs = AutoModelForCausalLM.from_pretrained(plain_folder, quantization_config=make(), **ours).eval()
    # bitsandbytes lays 4-bit codes out anew as it first computes, and describing a model must not undo half of that.
    read_layers(theirs)
    with torch.no_grad():
        model(TOKENS)
    vector = pl.PersonaVector("loud", pl.describe_model(model), {"response_mean": torch.ones(3, 128)})
    for coefficient in (0.0, 2.0):
        layers, logits = read_layers(theirs, None if coefficient == 0 else coefficient * torch.ones(128))
        with pl.steering(model, vector, layer=1, coefficient=coefficient, positions="all"):
            residuals = pl.cache_residual_stream(model, TOKENS)
            with torch.no_grad():
                assert torch.equal(model(TOKENS), logits)
        assert torch.equal(residuals, torch.stack(layers))
        if coefficient == 0:
            unsteered = logits
    assert not torch.allclose(logits, unsteered, atol=1e-2)


@every_method
def test_every_hook_of_the_plain_model_fires_and_its_layers_are_near(plain_folder, make, method):
    plain = pl.load_model(plain_folder, backend="bridge", **CPU)
    coded = pl.load_model(plain_folder, quantization_config=make(), **CPU)
    with torch.no_grad():
        expected, found = (dict(model.run_with_cache(TOKENS)[1]) for model in (plain, coded))
    assert set(found) == set(expected)
    assert {f"blocks.{layer}.hook_resid_post" for layer in range(3)} <= set(found)
    for layer in range(3):
        name = f"blocks.{layer}.hook_resid_post"
        error = float((found[name] - expected[name]).norm() / expected[name].norm())
        assert 1e-4 < error < 0.3  # quantised, and still this model


def list_storages():
    """Bytes of all tensors of this process, by where they lie."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    plain = [one for one in tensors if not is_traceable_wrapper_subclass(one) and one.device.type == "cpu"]
    return {storage.data_ptr(): storage.nbytes() for storage in (one.untyped_storage() for one in plain)}


@pytest.mark.parametrize(
    ("make", "share"),
    # Of float32: a byte or half a byte for each weight, and its scales; embeddings and unembedding stay as they are.
    [pytest.param(*one.values[:1], share, id=one.id, marks=one.marks)
     for one, share in zip(METHODS, (0.26, 0.32, 0.15, 0.26), strict=True)],
)  # fmt: skip
def test_a_quantised_model_takes_far_less_memory_and_keeps_no_copy_of_its_plain_weights(tmp_path, make, share):
    widths = {"vocab_size": 259, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2}
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, pad_token_id=256, eos_token_id=258, **widths)
    plain = LlamaForCausalLM(config)
    n_in_blocks = sum(weight.numel() for weight in plain.model.layers.parameters())
    n_outside = sum(weight.numel() for weight in plain.parameters()) - n_in_blocks
    plain.save_pretrained(tmp_path)
    del plain
    make_tokenizer().save_pretrained(tmp_path)
    before = list_storages()
    model = pl.load_model(tmp_path, quantization_config=make(), **CPU)
    model(TOKENS)
    taken = sum(size for place, size in list_storages().items() if place not in before)
    assert model.cfg.n_layers == 2  # held until here
    # Its rotary tables, its biases of zeros and the like are little.
    assert taken < 4 * (share * n_in_blocks + n_outside) + 400_000
    assert taken > 4 * n_outside + 0.4 * n_in_blocks


@every_method
def test_quantised_weights_run_through_the_bridge_and_have_a_fingerprint_of_their_own(
    plain_folder, tmp_path, make, method
):
    """Loaded from plain files or from its own: the same codes, before and after the library has computed with them."""
    plain = pl.describe_model(pl.load_model(plain_folder, **CPU))
    model = pl.load_model(plain_folder, quantization_config=make(), **CPU)
    info = pl.describe_model(model)
    assert (info.backend, info.quantization, info.dtype) == ("bridge", method, "float32")
    assert plain.fingerprint != info.fingerprint
    vector = pl.PersonaVector("loud", info, {"response_mean": torch.ones(3, 128)})
    kept = []
    hooks = [("blocks.2.hook_resid_post", lambda value, hook: kept.append(value.detach().clone()))]
    model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    with pl.steering(model, vector, layer=2, coefficient=2.0, positions="all"):
        model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    torch.testing.assert_close(kept[1] - kept[0], torch.full_like(kept[0], 2.0), atol=1e-4, rtol=0)
    assert pl.describe_model(model) == info
    assert len(pl.models.sample_rollouts(model, [pl.models.RolloutRequest("Hello", (0,))], pl.Sampling(8))) == 1

    placement = placing.Placement(torch.device("cpu"), None, make())
    for part in load_hugging_face(str(plain_folder), torch.float32, placement):
        part.save_pretrained(tmp_path / "coded")
    assert pl.describe_model(pl.load_model(tmp_path / "coded", device="cpu")).fingerprint == info.fingerprint
    with pytest.raises(UnsupportedModelError, match="for quantised weights, which HookedTransformer cannot hold"):
        pl.load_model(tmp_path / "coded", backend="hooked", device="cpu")
    with pytest.raises(InvalidArgumentError, match="`dtype` must be 'auto' or the files' own"):
        pl.load_model(tmp_path / "coded", dtype="bfloat16", device="cpu")


@every_method
def test_gradients_pass_quantised_blocks_and_what_would_lose_them_is_refused(plain_folder, make, method):
    """A vector's gradient is nearly the plain model's; weights have none, and tangents would get lost."""
    plain = pl.load_model(plain_folder, backend="bridge", **CPU)
    coded = pl.load_model(plain_folder, quantization_config=make(), **CPU)
    ways = []
    for model in (plain, coded):
        added = torch.zeros(128, requires_grad=True)
        hooks = [("blocks.0.hook_resid_post", lambda value, hook, added=added: value + added)]
        with torch.enable_grad():
            model.run_with_hooks(TOKENS, fwd_hooks=hooks)[:, -1, 5].sum().backward()
        ways.append(added.grad)
    assert torch.cosine_similarity(*ways, dim=0) > 0.9
    found = pl.vectors.optimise_vector(coded, "loud", EXAMPLES[:2], 1, n_steps=6, batch_size=2, learning_rate=0.5)
    losses = found.provenance["losses"]["1"]
    assert losses[-1] < losses[0]
    with pytest.raises(UnsupportedModelError, match="matrices in its blocks that take gradients"):
        pl.screening.read_gradient(coded, [converse("Why?", "So be.")])
    with pytest.raises(UnsupportedModelError, match=rf"hold plain weights: forward derivatives.*{method}"):
        pl.models.transport_directions(coded, torch.ones(1, 128), 0, [list(range(40))])


@every_method
def test_the_doctor_finds_a_quantised_model_whole(plain_folder, make, method):
    diagnosis = pl.doctor(pl.load_model(plain_folder, quantization_config=make(), **CPU))
    assert diagnosis.passed, str(diagnosis)


@needs("torchao")
def test_the_doctor_names_the_weight_whose_scale_is_broken(plain_folder):
    model = pl.load_model(plain_folder, quantization_config=quantise_to_eight_bits(), **CPU)
    model.original_model.model.layers[1].mlp.up_proj.original_component.weight.scale[3] = torch.nan
    (found,) = (one for one in pl.doctor(model).findings if one.name == "finite")
    assert found.passed is False
    assert "layers.1" in found.seen or "blocks.1" in found.seen


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed")
def test_a_quantised_checkpoint_without_its_library_says_what_to_install(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"requires bitsandbytes.*Install the library"):
        pl.load_model(folder)


def test_the_text_part_of_a_quantised_model_is_quantised_and_its_codes_are_not_rounded():
    hf_model = make_architecture("Gemma 3 (with vision; its text part)")
    hf_model.is_quantized, hf_model.hf_device_map = True, {"": "cpu"}
    hf_model.config.quantization_config = {"quant_method": "bitsandbytes"}
    weight = hf_model.model.language_model.layers[0].mlp.up_proj.weight
    weight.requires_grad_(False)
    weight.data = torch.randint(0, 255, weight.shape, dtype=torch.uint8)
    text = take_text_part(hf_model)
    assert read_quantization(text) == "bitsandbytes"
    assert text.hf_device_map == {"": "cpu"}
    round_weights(text, torch.bfloat16)
    dtypes = {parameter.dtype for parameter in text.parameters()}
    assert dtypes == {torch.uint8, torch.bfloat16}
