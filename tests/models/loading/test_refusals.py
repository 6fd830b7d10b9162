"""What cannot be held is refused by name, before weights are read or a pass is run; never computed otherwise."""

import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM

import persona_lens as pl
from persona_lens.errors import FileFormatError, UnsupportedModelError
from persona_lens.models.engine.attention import SlotCache, Span
from persona_lens.models.engine.bridge_decoder import _attend_for_hugging_face
from persona_lens.models.loading import load
from persona_lens.models.loading.text_part import take_text_part
from tests.architectures import ARCHITECTURES, make_architecture
from tests.tiny import make_hf_model, make_tokenizer


@pytest.mark.parametrize(("name", "why"), [
    ("Mamba", "no attention heads"),
    ("Qwen3-Next", "linear_attention"),
    ("Llama 4 (text)", "chunked_attention"),
    ("Gemma 4 (text)", "different widths"),
    ("DeepSeek-V3", "MLA"),
    ("BLOOM", "no other kernel"),
])  # fmt: skip
def test_an_architecture_is_refused_from_its_configuration_alone(tmp_path, name, why):
    class_name, make_config = ARCHITECTURES[name]
    make_config().save_pretrained(tmp_path)  # and no weights beside it
    with pytest.raises(UnsupportedModelError, match=f"{class_name}: .*{why}"):
        pl.load_model(str(tmp_path), dtype="float32", device="cpu")
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(UnsupportedModelError, match=class_name):
        pl.finetune(str(tmp_path), rows, tmp_path / "adapter")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma"])
def test_a_folder_without_a_tokenizer_is_refused_with_what_to_save(tmp_path, architecture):
    """Of some architectures transformers makes an empty tokenizer; of others it raises."""
    make_hf_model(architecture).save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match=r"`model` must hold a tokenizer .*tokenizer\.save_pretrained\(FOLDER\)"):
        pl.load_model(tmp_path, dtype="float32", device="cpu")
    make_tokenizer().save_pretrained(tmp_path)
    assert len(pl.load_model(tmp_path, dtype="float32", device="cpu").tokenizer) == 259


@pytest.fixture
def untested(monkeypatch):
    """Llama as if it were an architecture that nobody has tried."""
    monkeypatch.setattr(load, "TESTED", frozenset())


def load_bridge(folder):
    return pl.load_model(folder, backend="bridge", dtype="float32", device="cpu")


def test_an_architecture_that_nobody_tried_is_compared_and_passes(tiny_folder, untested):
    assert pl.describe_model(load_bridge(tiny_folder("gemma2"))).backend == "bridge"


@pytest.mark.parametrize(("place", "where"), [
    ("model.layers.1.mlp.up_proj.weight", "layer 1"),
    ("lm_head.weight", "the logits"),
])  # fmt: skip
def test_an_architecture_that_comes_out_otherwise_is_refused_with_the_place(
    tiny_folder, untested, monkeypatch, place, where
):
    boot = load.TransformerBridge.boot_transformers

    def boot_wrongly(*given, hf_model, **options):
        with torch.no_grad():
            hf_model.get_parameter(place).mul_(1.1)
        return boot(*given, hf_model=hf_model, **options)

    monkeypatch.setattr(load.TransformerBridge, "boot_transformers", boot_wrongly)
    with pytest.raises(
        UnsupportedModelError, match=rf"LlamaForCausalLM, off in {where} by 0\.\d+ .*TransformerLens \d"
    ):
        load_bridge(tiny_folder("llama"))


def test_logits_that_are_made_in_a_way_that_is_not_known_are_refused(tiny_folder, untested, monkeypatch):
    hf_model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    forward = type(hf_model).forward

    def scale(self, *given, **options):
        found = forward(self, *given, **options)
        found.logits = found.logits * 1.5
        return found

    monkeypatch.setattr(type(hf_model), "forward", scale)
    with pytest.raises(UnsupportedModelError, match="off in the logits"):
        load_bridge(tiny_folder("llama"))


def test_what_transformer_lens_does_not_know_is_refused_and_a_full_memory_is_not_called_that(tiny_folder, monkeypatch):
    def fail(error):
        def boot(*given, **options):
            raise error

        monkeypatch.setattr(load.TransformerBridge, "boot_transformers", boot)

    fail(ValueError("Could not determine supported architecture from config."))
    with pytest.raises(UnsupportedModelError, match=r"TransformerLens \d.*LlamaForCausalLM \(ValueError"):
        load_bridge(tiny_folder("llama"))
    fail(torch.OutOfMemoryError("out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        load_bridge(tiny_folder("llama"))


def test_attention_that_is_handed_what_it_does_not_know_refuses():
    heads = torch.randn(1, 2, 3, 8)
    span = Span(torch.zeros(1, dtype=torch.long), 3)
    keys, values = SlotCache(1, 1, 3, 2, 8, torch.float32, heads.device).append(0, heads, heads, span)
    given = (torch.nn.Linear(1, 1), heads, keys, values, span.mask(torch.float32))
    _attend_for_hugging_face(*given, position_ids=span.positions, position_bias=None, dropout=0.0)
    with pytest.raises(UnsupportedModelError, match="Linear with position_bias"):
        _attend_for_hugging_face(*given, position_bias=torch.zeros(1, 2, 3, 3))


def test_a_model_that_sees_is_read_as_its_text_part_and_nothing_is_installed(tmp_path, monkeypatch):
    hf_model = make_architecture("Gemma 3 (with vision; its text part)")
    hf_model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    text = take_text_part(hf_model)
    assert type(text).__name__ == "Gemma3ForCausalLM"
    assert text.get_input_embeddings().weight is hf_model.get_input_embeddings().weight
    assert not any(parameter.is_meta for parameter in text.parameters())
    # TransformerLens installs torchvision where it is missing, and keeps silent if that fails.
    ran = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, *_, **__: ran.append(command))
    monkeypatch.setattr(subprocess, "check_call", lambda command, *_, **__: ran.append(command))
    model = pl.load_model(str(tmp_path), dtype="float32", device="cpu")
    assert (pl.describe_model(model).backend, ran) == ("bridge", [])
