import importlib.util
import json
import threading
from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig, modeling_utils

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, UnsupportedModelError
from persona_lens.models.loading import load_hugging_face, placing, process_wide, round_weights
from persona_lens.models.loading.fingerprints import read_quantization
from persona_lens.models.loading.hooked import build_hooked
from persona_lens.models.loading.text_part import take_text_part
from tests.architectures import make_architecture
from tests.backends import BACKENDS
from tests.models.loading.test_adapters import make_adapter
from tests.tiny import make_tokenizer, save_tiny

TOKENS = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
needs_bitsandbytes = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="not installed")
needs_torchao = pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="not installed")


def list_mapped(folder):
    """Files of a folder that are mapped into this process's memory."""
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line}


needs_hooked = pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")

# Held once --------------------------------------------------------------------------------------------------------


@needs_hooked
def test_a_hooked_transformer_takes_over_the_memory_of_the_weights(tiny_folder):
    hf_model, tokenizer = load_hugging_face(tiny_folder("llama"), torch.float32)
    model = build_hooked("tiny", hf_model, tokenizer, torch.float32)
    theirs = {weight.data_ptr() for weight in hf_model.parameters()}
    ours = {name: weight for name, weight in model.named_parameters() if "b_" not in name.rpartition(".")[2]}
    assert {weight.data_ptr() for weight in ours.values()} == theirs
    assert all(weight.requires_grad and weight.is_leaf for weight in ours.values())


@needs_hooked
def test_tied_embeddings_become_two(tiny_folder):
    hf_model, tokenizer = load_hugging_face(tiny_folder("llama"), torch.float32)
    hf_model.lm_head.weight = hf_model.model.embed_tokens.weight
    model = build_hooked("tiny", hf_model, tokenizer, torch.float32)
    before = model.W_E.clone()
    with torch.no_grad():
        model.W_U.zero_()
    assert torch.equal(model.W_E, before)


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_no_file_stays_mapped(tmp_path, backend):
    pytest.importorskip("transformer_lens.HookedTransformer")
    model = pl.load_model(save_tiny(tmp_path, "llama"), backend=backend, dtype="float32", device="cpu")
    assert list_mapped(tmp_path) == set()
    (tmp_path / "model.safetensors").write_bytes(b"gone")
    assert model(TOKENS).isfinite().all()


def test_from_the_disk_the_weights_stay_in_their_files(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    model = pl.load_model(folder, device_map="disk")
    assert list_mapped(tmp_path) == {f"{folder}/model.safetensors"}
    plain = pl.load_model(folder, backend="bridge", dtype="float32", device="cpu")
    assert torch.equal(model(TOKENS), plain(TOKENS))
    assert pl.describe_model(model) == pl.describe_model(plain)
    with pytest.raises(InvalidArgumentError, match="`dtype` must be 'auto' or the files' own, float32"):
        pl.load_model(folder, device_map={"": "disk"}, dtype="bfloat16")


# Maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, {"model": "cpu", "lm_head": torch.device("cpu")}])
def test_a_mapped_model_is_the_same(tiny_folder, tiny_bridge, device_map):
    mapped = pl.load_model(tiny_folder("llama"), device_map=device_map, dtype="float32")
    assert torch.equal(mapped(TOKENS), tiny_bridge(TOKENS))
    assert pl.describe_model(mapped) == pl.describe_model(tiny_bridge)
    requests = [pl.models.RolloutRequest("Hello", (0,))]
    sampled = [pl.models.sample_rollouts(one, requests, pl.Sampling(8)) for one in (mapped, tiny_bridge)]
    assert sampled[0][0].response == sampled[1][0].response


@pytest.mark.parametrize(
    "device_map",
    [
        {"model": 0, "lm_head": "cpu"},
        {"model": "cpu", "lm_head": "disk"},
        {"": "meta"},
        {"model": "disk", "lm_head": "disk"},
    ],
)
def test_a_map_that_offloads_is_refused_before_weights_are_read(tmp_path, device_map):
    with pytest.raises(UnsupportedModelError, match=r"`device_map` must keep every weight .* device_map='disk'"):
        pl.load_model(tmp_path, device_map=device_map)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "fast"}, "`device_map` must be 'auto'"), ({"device_map": {}}, "`device_map` must name"),
        ({"device_map": "auto", "device": "cpu"}, "`device` must be left out"),
        ({"device_map": {"": "abacus"}}, "`device_map` must be devices that torch knows"),
        ({"device_map": "disk", "quantization_config": FOUR_BITS}, "`quantization_config` must be left out"),
    ],
)  # fmt: skip
def test_arguments_that_exclude_each_other_are_named(tmp_path, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        pl.load_model(tmp_path, **options)


@pytest.mark.parametrize("options", [{"device_map": "auto"}, {"quantization_config": FOUR_BITS}])
def test_what_a_hooked_transformer_cannot_hold_is_refused_by_name(tiny_folder, tiny_model, options):
    (name,) = options
    with pytest.raises(UnsupportedModelError, match=f"`backend` must be None or 'bridge' with {name}"):
        pl.load_model(tiny_folder("llama"), backend="hooked", **options)
    with pytest.raises(InvalidArgumentError, match=f"`{name}` must be None for a loaded model"):
        pl.load_model(tiny_model, **options)


def test_an_adapter_is_not_merged_into_codes(tiny_folder, tmp_path):
    adapter = make_adapter(tmp_path / "adapter")
    with pytest.raises(InvalidArgumentError, match="`quantization_config` must be left out with an adapter"):
        pl.load_model(tiny_folder("llama"), adapter=adapter, quantization_config=FOUR_BITS)


def test_a_map_that_accelerate_found_is_looked_at_too():
    placing.check_map({"model": 0, "lm_head": 0})
    placing.check_map({"model": 0, "lm_head": "cuda:0", "norm": "cuda"})
    with pytest.raises(UnsupportedModelError, match=r"weights on cuda:0, cuda:1"):
        placing.check_map({"model": 0, "lm_head": 1})


# Quantised --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed")
def test_a_quantised_checkpoint_without_its_library_says_what_to_install(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"requires bitsandbytes.*Install the library"):
        pl.load_model(folder)


def make_eight_bit_torchao():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


@pytest.mark.parametrize(
    ("make", "method"),
    [
        pytest.param(lambda: FOUR_BITS, "bitsandbytes", marks=needs_bitsandbytes),
        pytest.param(lambda: BitsAndBytesConfig(load_in_8bit=True), "bitsandbytes", marks=needs_bitsandbytes),
        pytest.param(make_eight_bit_torchao, "torchao", marks=needs_torchao),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_run_through_the_bridge_and_have_a_fingerprint_of_their_own(tmp_path, make, method):
    """Loaded from plain files or from its own: the same codes, before and after the library has computed with them."""
    # Widths that bitsandbytes can pack.
    widths = {"vocab_size": 259, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, pad_token_id=256, eos_token_id=258, **widths)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "plain")
    make_tokenizer().save_pretrained(tmp_path / "plain")
    options = {"dtype": "float32", "device": "cpu"}
    plain = pl.describe_model(pl.load_model(tmp_path / "plain", **options))
    model = pl.load_model(tmp_path / "plain", quantization_config=make(), **options)
    info = pl.describe_model(model)
    assert (info.backend, info.quantization, info.dtype) == ("bridge", method, "float32")
    assert plain.fingerprint != info.fingerprint
    vector = pl.PersonaVector("loud", info, {"response_mean": torch.ones(2, 128)})
    kept = []
    hooks = [("blocks.1.hook_resid_post", lambda value, hook: kept.append(value.detach().clone()))]
    model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    with pl.steering(model, vector, layer=1, coefficient=2.0, positions="all"):
        model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    torch.testing.assert_close(kept[1] - kept[0], torch.full_like(kept[0], 2.0), atol=1e-4, rtol=0)
    assert pl.describe_model(model) == info
    assert len(pl.models.sample_rollouts(model, [pl.models.RolloutRequest("Hello", (0,))], pl.Sampling(8))) == 1

    placement = placing.Placement(torch.device("cpu"), None, make())
    for part in load_hugging_face(str(tmp_path / "plain"), torch.float32, placement):
        part.save_pretrained(tmp_path / "coded")
    assert pl.describe_model(pl.load_model(tmp_path / "coded", device="cpu")).fingerprint == info.fingerprint
    with pytest.raises(UnsupportedModelError, match="for quantised weights, which HookedTransformer cannot hold"):
        pl.load_model(tmp_path / "coded", backend="hooked", device="cpu")
    with pytest.raises(InvalidArgumentError, match="`dtype` must be 'auto' or the files' own"):
        pl.load_model(tmp_path / "coded", dtype="bfloat16", device="cpu")


def test_loads_that_end_in_another_order_than_they_began_leave_the_reader_as_it_was():
    own = vars(modeling_utils)["safe_open"]
    first, second = process_wide.unmapped_files(), process_wide.unmapped_files()
    entered = []

    def load():
        with second:
            entered.append(vars(modeling_utils)["safe_open"])

    thread = threading.Thread(target=load)
    with first:
        thread.start()
        thread.join(0.2)
        assert not entered  # it waits
    thread.join()
    assert entered
    assert vars(modeling_utils)["safe_open"] is own


def test_a_model_that_is_made_without_memory_leaves_no_other_threads_without(tiny_folder):
    """Else the second thread's weights would be empty, and the last to end would leave torch's own function changed."""
    register, begun, made = torch.nn.Module.register_parameter, threading.Event(), []

    def make():
        begun.set()
        made.append(load_hugging_face(tiny_folder("llama"), torch.float32)[0])

    thread = threading.Thread(target=make)
    with process_wide.empty_weights():
        thread.start()
        begun.wait()
        thread.join(0.2)
        assert not made  # it waits
    thread.join()
    assert not any(weight.is_meta for weight in made[0].parameters())
    assert torch.nn.Module.register_parameter is register


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


def test_a_gguf_file_cannot_stay_on_the_disk(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidArgumentError, match="`device_map` must be left out for a GGUF file"):
        pl.load_model(tmp_path / "model.gguf", device_map="disk")
