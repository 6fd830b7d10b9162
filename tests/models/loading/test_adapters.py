import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import persona_lens as pl
from persona_lens.checksums import hash_file
from persona_lens.errors import FileFormatError, InvalidArgumentError, ModelMismatchError, ModelNotFoundError
from tests.backends import ARCHITECTURES, BACKENDS
from tests.tiny import make_hf_model, save_tiny


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


def rewrite(folder, change):
    """Write an adapter's weights anew, changed."""
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def set_first(weights, value):
    name = next(name for name in sorted(weights) if "lora_A" in name)
    weights[name][0, 0] = value
    return weights


WEIGHTS = {
    "names that match nothing": (lambda w: {name.replace("layers", "h"): t for name, t in w.items()}, "no place for"),
    "another prefix": (lambda w: {f"model.{name}": t for name, t in w.items()}, "no place for"),
    "one weight more": (lambda w: w | {"base_model.model.model.layers.3.mlp.up_proj.lora_A.weight": torch.ones(2, 48)},
                        r"no place for base_model\.model\.model\.layers\.3\.mlp\.up_proj\.lora_A"),
    "cut to four": (lambda w: dict(list(w.items())[:4]), "no weight for .*and 35 more"),
    "one weight less": (lambda w: {name: t for name, t in w.items() if "layers.1.mlp.up_proj.lora_B" not in name},
                        r"no weight for .*layers\.1\.mlp\.up_proj\.lora_B"),
    "none": (lambda w: {}, "no weight for"),
    "another shape": (lambda w: {name: t[:1] for name, t in w.items()}, "size mismatch"),
    "not a number": (lambda w: set_first(w, math.nan), r"not finite in .*layers\.0\.mlp\.down_proj\.lora_A"),
    "infinity": (lambda w: set_first(w, math.inf), "not finite in"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_an_adapter_whose_weights_do_not_all_find_their_place_and_no_other_is_refused(
    tiny_folder, tmp_path, change, message
):
    adapter = make_adapter(tmp_path / "tuned")
    rewrite(adapter, change)
    with pytest.raises(FileFormatError, match=f"`adapter` must be an adapter of this model.*{message}"):
        pl.load_model(tiny_folder("llama"), adapter=adapter, dtype="float32", device="cpu")


CONFIGS = {
    "fewer targets": ({"target_modules": ["q_proj", "v_proj"]}, "no place for"),
    "more targets": ({"target_modules": "all-linear", "modules_to_save": ["lm_head"]}, "lm_head"),
    "no such target": ({"target_modules": ["query"]}, "query"),
    "another rank": ({"r": 3}, "size mismatch"),
    "a scale that is no number": ({"lora_alpha": math.nan}, "NaN"),
    "another method": ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, ""),
    "no method": ({"peft_type": None}, ""),
    "junk": ({"r": "much"}, ""),
}


@pytest.mark.parametrize(("change", "message"), CONFIGS.values(), ids=CONFIGS)
def test_an_adapter_whose_config_does_not_fit_its_weights_is_refused(tiny_folder, tmp_path, change, message):
    adapter = make_adapter(tmp_path / "tuned")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileFormatError, match=f"`adapter` must be an adapter of this model.*{message}"):
        pl.load_model(tiny_folder("llama"), adapter=adapter, dtype="float32", device="cpu")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "persona_lens.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\x00", b"[" * 100_000])
def test_a_damaged_file_of_an_adapter_is_refused_by_name(tiny_folder, tmp_path, name, data):
    adapter = make_adapter(tmp_path / "tuned")
    (adapter / name).write_bytes(data)
    with pytest.raises(FileFormatError, match="`adapter`"):
        pl.load_model(tiny_folder("llama"), adapter=adapter, dtype="float32", device="cpu")


def test_an_adapter_that_names_its_files_is_refused_where_they_changed(tiny_folder, tmp_path):
    """As :func:`persona_lens.finetune` writes it: a flipped bit may leave all names, shapes and numbers possible."""
    adapter = make_adapter(tmp_path / "tuned")
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = {name: hash_file(adapter / name) for name in names}
    (adapter / "persona_lens.json").write_text(json.dumps({"config": {}, "files": files}))
    options = {"adapter": adapter, "dtype": "float32", "device": "cpu"}
    pl.load_model(tiny_folder("llama"), **options)
    for name in names:
        whole = (adapter / name).read_bytes()
        (adapter / name).write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(FileFormatError, match=rf"`adapter` must hold the files that were written.*{name}"):
            pl.load_model(tiny_folder("llama"), **options)
        (adapter / name).write_bytes(whole)
    pl.load_model(tiny_folder("llama"), **options)


KINDS = {
    "rank-stabilised": {"use_rslora": True},
    "weight-decomposed": {"use_dora": True},
    "some layers": {"layers_to_transform": [1], "target_modules": ["q_proj"], "layers_pattern": "layers"},
    "with biases": {"bias": "all"},
    "ranks apart": {"rank_pattern": {"q_proj": 4}},
    "a whole layer": {"modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "as it is made": {"init_lora_weights": "olora"},
}


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_every_kind_of_adapter_loads_as_peft_loads_it(tiny_folder, tmp_path, config):
    base = "qwen2" if "bias" in config else "llama"  # which has some
    adapter = make_adapter(tmp_path / "tuned", base=base, **config)
    tokens = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))
    model = pl.load_model(tiny_folder(base), adapter=adapter, dtype="float32", device="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        wrapped = PeftModel.from_pretrained(make_hf_model(base), str(adapter))
    with torch.no_grad():
        expected = wrapped(tokens).logits
        assert (expected - make_hf_model(base)(tokens).logits).abs().max() > 0.01
        torch.testing.assert_close(model(tokens), expected, atol=1e-3, rtol=1e-3)


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
