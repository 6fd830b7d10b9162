"""The doctor: a model as it should be passes, and each thing broken on purpose is found by the check that names it."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import persona_lens as pl
from persona_lens.diagnosis import examination
from persona_lens.diagnosis.examination import CHECKS
from tests.backends import BACKENDS
from tests.diagnosis.broken import BREAKS
from tests.tiny import make_hf_model, make_tokenizer, make_tokenizer_without_system_role

needs_hooked = pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
NAMES = [check.name for check in CHECKS]


def load(folder, **options):
    return pl.load_model(folder, **{"dtype": "float32", "device": "cpu"} | options)


def find(diagnosis, name):
    (found,) = [one for one in diagnosis.findings if one.name == name]
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_as_it_should_be_passes_every_check(tiny_folder, backend):
    model = load(tiny_folder("gemma2"), backend=backend)
    found = pl.doctor(model)
    assert [one.name for one in found.findings] == NAMES
    assert {one.passed for one in found.findings} == {True}, str(found)
    assert not any(one.cure for one in found.findings)
    assert not [name for name, point in model.hook_dict.items() if point.fwd_hooks], "hooks are left"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_passes_in_lower_precision_too(tiny_folder, backend, dtype):
    found = pl.doctor(load(tiny_folder("llama"), backend=backend, dtype=dtype))
    assert {one.passed for one in found.findings} == {True}, str(found)


@needs_hooked
@pytest.mark.parametrize("broken", BREAKS, ids=[one.what for one in BREAKS])
def test_what_is_broken_is_found_by_the_check_that_names_it(tiny_folder, broken):
    model = load(tiny_folder("llama"), backend="hooked")
    broken.do(model)
    found = pl.doctor(model)
    assert not found.passed
    assert [one.name for one in found.failed] == [broken.check], str(found)
    finding = find(found, broken.check)
    assert broken.said in finding.seen
    assert finding.cure


@needs_hooked
def test_checks_that_rest_on_a_failed_one_are_not_made(tiny_folder):
    model = load(tiny_folder("llama"), backend="hooked")
    next(one for one in BREAKS if one.check == "finite").do(model)
    found = pl.doctor(model)
    assert [one.name for one in found.findings if one.passed is None] == ["padding", "cache", "layers", "steering"]
    assert find(found, "layers").seen == "It needs finite."


def test_a_template_that_refuses_a_system_role_passes_and_it_is_said(tmp_path):
    make_hf_model("llama").save_pretrained(tmp_path)
    make_tokenizer_without_system_role().save_pretrained(tmp_path)
    found = pl.doctor(load(tmp_path))
    assert found.passed
    assert "put before the user's first turn" in find(found, "system prompt").seen


def test_a_weight_changed_under_a_bridge_is_found_against_the_files(tiny_folder):
    model = load(tiny_folder("llama"), backend="bridge")
    with torch.no_grad():
        model.original_model.model.layers[1].mlp.down_proj.weight.mul_(1.05)
    assert find(pl.doctor(model), "layers").passed, "it is the model that the bridge wraps"
    against_files = find(pl.doctor(model, reference=tiny_folder("llama")), "layers")
    assert not against_files.passed
    assert "at layer 1, by" in against_files.seen


def test_a_bridge_whose_wrapper_computes_something_else_is_found(tiny_folder):
    model = load(tiny_folder("llama"), backend="bridge")
    wrapper = model.blocks[1].mlp
    forward = wrapper.forward
    # Set past the wrapper, which hands attributes on to what it wraps.
    wrapper.__dict__["forward"] = lambda *given, **options: 1.05 * forward(*given, **options)
    assert "at layer 1, by" in find(pl.doctor(model), "layers").seen


@needs_hooked
def test_a_model_whose_files_changed_is_not_compared_with_them(tmp_path):
    make_hf_model("llama").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path, backend="hooked")
    make_hf_model("llama", seed=1).save_pretrained(tmp_path)
    found = pl.doctor(model)
    assert find(found, "layers").passed is None
    assert "other weights by now" in find(found, "layers").seen
    assert find(found, "layers").cure
    assert found.passed


@needs_hooked
def test_a_model_without_a_tokenizer_has_its_numbers_examined(tiny_folder):
    model = load(tiny_folder("llama"), backend="hooked")
    model.tokenizer = None
    found = pl.doctor(model)
    assert [one.name for one in found.failed] == ["chat template"], str(found)
    assert all(one.passed for one in found.findings if one.name in NAMES[NAMES.index("context length") :])


@needs_hooked
def test_an_empty_tokenizer_fails_the_checks_of_texts_alone(tiny_folder):
    """As transformers makes one for a folder without a tokenizer's files."""
    model = load(tiny_folder("llama"), backend="hooked")
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<|end|>")
    found = pl.doctor(model)
    assert [one.name for one in found.findings] == NAMES
    assert "chat template" in [one.name for one in found.failed]
    assert all(find(found, name).passed for name in ("hooks", "finite", "padding", "cache", "layers", "steering"))


def test_a_reference_that_breaks_down_leaves_the_other_checks(tiny_folder, monkeypatch):
    def fail(*given):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(examination, "read_reference", fail)
    found = pl.doctor(load(tiny_folder("llama")))
    assert find(found, "layers").passed is None
    assert "RuntimeError: no kernel" in find(found, "layers").seen
    assert not found.failed


@needs_hooked
def test_a_check_that_breaks_down_is_a_failed_one(tiny_folder):
    model = load(tiny_folder("llama"), backend="hooked")

    def fail(*given, **options):
        raise RuntimeError("out of <memory>")

    model.blocks[1].mlp.forward = fail
    found = pl.doctor(model, reference=tiny_folder("llama"))
    assert find(found, "hooks").seen == "RuntimeError: out of <memory>"
    assert "&lt;memory&gt;" in found._repr_html_()
    assert "<memory>" not in found._repr_html_()


def test_hooks_on_the_model_are_refused(tiny_folder):
    model = load(tiny_folder("llama"))
    mine = [("blocks.0.hook_resid_post", lambda value, hook: value)]
    with model.hooks(mine), pytest.raises(pl.errors.HooksPresentError, match=r"blocks\.0"):
        pl.doctor(model)


def test_a_reference_that_is_not_there_is_refused(tiny_model):
    with pytest.raises(pl.errors.ModelNotFoundError):
        pl.doctor(tiny_model, reference="./no-such-folder")
