import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import persona_lens as pl
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
