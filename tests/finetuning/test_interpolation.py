import contextlib
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import persona_lens as pl
from persona_lens.errors import FileFormatError, InvalidArgumentError, ModelMismatchError, UnsupportedModelError
from persona_lens.finetuning import blend_adapters, interpolating, scale_adapter
from tests.backends import BACKENDS
from tests.tiny import save_tiny


def copy_weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def are_equal(first, second):
    return all(torch.equal(one, second[name]) for name, one in first.items())


@pytest.fixture(scope="module", params=[(backend, dtype) for backend in BACKENDS for dtype in ("float32", "bfloat16")])
def pair(request, tiny_folder, adapters):
    """A fine-tuned model and its base, each way that they are loaded."""
    backend, dtype = request.param
    options = {"backend": backend, "dtype": dtype, "device": "cpu"}
    base = tiny_folder("llama")
    return pl.load_model(base, adapter=adapters[0], **options), pl.load_model(base, **options)


def test_share_0_is_the_control_and_share_1_the_model_bit_for_bit(pair):
    model, control = pair
    own, others = copy_weights(model), copy_weights(control)
    assert not are_equal(own, others)
    for share, expected in ((0.0, others), (1.0, own)):
        with interpolating(model, control, share) as blended:
            assert blended is model
            assert are_equal(copy_weights(model), expected)
    assert are_equal(copy_weights(control), others)


def test_the_models_own_weights_come_back_bit_for_bit_by_exception_too(pair):
    model, control = pair
    own = copy_weights(model)
    with contextlib.suppress(KeyError), interpolating(model, control, 0.37):
        assert not are_equal(copy_weights(model), own)
        raise KeyError
    assert are_equal(copy_weights(model), own)


@given(share=st.floats(0, 1))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_between_them_every_weight_lies_on_the_line(tuned, tiny_model, share):
    model = tuned[0]
    own, others = copy_weights(model), copy_weights(tiny_model)
    with interpolating(model, tiny_model, share):
        for name, weight in model.named_parameters():
            expected = (1 - share) * others[name].double() + share * own[name].double()
            torch.testing.assert_close(weight.double(), expected, atol=1e-6, rtol=1e-6)


def test_gradients_are_as_they_were_inside_the_block(pair):
    with torch.no_grad(), interpolating(*pair, 0.5):
        assert not torch.is_grad_enabled()
    with interpolating(*pair, 0.5):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_scaled_adapter_is_the_interpolation_with_the_base(tuned, tiny_model, tiny_folder, adapters, tmp_path, share):
    folder = scale_adapter(adapters[0], share, tmp_path / "scaled")
    scaled = copy_weights(pl.load_model(tiny_folder("llama"), adapter=folder, dtype="float32", device="cpu"))
    if share == 0:
        assert are_equal(scaled, copy_weights(tiny_model))
    with interpolating(tuned[0], tiny_model, share):
        for name, weight in tuned[0].named_parameters():
            torch.testing.assert_close(scaled[name], weight, atol=1e-6, rtol=1e-5)


def test_a_power_of_two_scales_an_adapter_without_any_rounding(adapters, tmp_path):
    whole, half = (
        load_file(scale_adapter(adapters[0], share, tmp_path / name) / "adapter_model.safetensors")
        for share, name in ((1.0, "whole"), (0.5, "half"))
    )
    for name, weight in whole.items():
        assert torch.equal(half[name], weight * (0.5 if "lora_B" in name else 1.0))


def test_a_blended_adapter_is_the_interpolation_of_both_models(tuned, tiny_folder, adapters, tmp_path):
    folder = blend_adapters(*adapters, 0.3, tmp_path / "blended")
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 3 + 4
    blended = copy_weights(pl.load_model(tiny_folder("llama"), adapter=folder, dtype="float32", device="cpu"))
    with interpolating(*tuned, 0.3):
        for name, weight in tuned[0].named_parameters():
            torch.testing.assert_close(blended[name], weight, atol=1e-6, rtol=1e-5)


def test_a_scaled_adapter_still_knows_its_base_and_its_files(adapters, tmp_path, tmp_path_factory):
    folder = scale_adapter(adapters[0], 0.5, tmp_path / "scaled")
    stranger = save_tiny(tmp_path_factory.mktemp("stranger"), "llama", seed=5)
    with pytest.raises(ModelMismatchError, match="trained on"):
        pl.load_model(stranger, adapter=folder)
    record = json.loads((folder / "persona_lens.json").read_text())
    assert record["config"]["interpolated"] == {"share": 0.5}
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(FileFormatError, match="damaged"):
        pl.load_model(stranger, adapter=folder)


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_share_outside_0_and_1_is_refused(tuned, tiny_model, adapters, tmp_path, share):
    with pytest.raises(InvalidArgumentError, match="`share`"), interpolating(tuned[0], tiny_model, share):
        pass
    with pytest.raises(InvalidArgumentError, match="`share`"):
        scale_adapter(adapters[0], share, tmp_path / "out")


def test_models_whose_weights_do_not_correspond_are_refused(tuned, tiny_folder, tiny_bridge):
    qwen = pl.load_model(tiny_folder("qwen3"), dtype="float32", device="cpu")
    for other in (qwen, tiny_bridge)[: len(BACKENDS)]:  # where there are bridges alone, that one corresponds
        with pytest.raises(ModelMismatchError, match="`control`"), interpolating(tuned[0], other, 0.5):
            pass


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"peft_type": "IA3"},
        {"alora_invocation_tokens": [1, 2]}, {"layer_replication": [[0, 2], [1, 3]]}, {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "corda"}, {"init_lora_weights": "loftq"},
    ],
)  # fmt: skip
def test_an_adapter_that_is_not_plain_lora_is_refused(adapters, tmp_path, change):
    other = copy_without_record(adapters[0], tmp_path / "other", **change)
    with pytest.raises(UnsupportedModelError, match="two matrices"):
        scale_adapter(other, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def copy_without_record(adapter, folder, **change):
    """Copy an adapter as if another had trained it, with some of its configuration changed."""
    shutil.copytree(adapter, folder)
    (folder / "persona_lens.json").unlink()
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"r": 0}, {"r": "3"}, {"r": True}, {"r": 3.0}, {"r": 5}, {"lora_alpha": None}, {"lora_alpha": "6"},
        {"lora_alpha": float("nan")}, {"lora_alpha": True},
    ],
)  # fmt: skip
def test_an_adapter_whose_rank_or_scale_is_none_is_refused(adapters, tmp_path, change):
    other = copy_without_record(adapters[0], tmp_path / "other", **change)
    with pytest.raises(FileFormatError, match="`adapter`"):
        scale_adapter(other, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda weight: weight * torch.inf, "finite"), (lambda weight: weight[:-1], "rank"),
     (lambda weight: weight[None], "rank")],
)  # fmt: skip
def test_an_adapter_whose_matrices_do_not_fit_or_are_not_finite_is_refused(adapters, tmp_path, change, message):
    other = copy_without_record(adapters[0], tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    name = next(name for name in weights if name.endswith("lora_A.weight"))
    save_file(weights | {name: change(weights[name])}, other / "adapter_model.safetensors")
    with pytest.raises(FileFormatError, match=message):
        scale_adapter(other, 0.5, tmp_path / "out")


def test_a_folder_that_holds_something_is_left_alone(adapters, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InvalidArgumentError, match="`out`"):
        scale_adapter(adapters[0], 0.5, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_adapters_of_other_bases_are_not_blended(adapters, tmp_path):
    shutil.copytree(adapters[1], tmp_path / "other")
    record = json.loads((tmp_path / "other" / "persona_lens.json").read_text())
    record["config"]["fingerprint"] = "another"
    (tmp_path / "other" / "persona_lens.json").write_text(json.dumps(record))
    with pytest.raises(ModelMismatchError, match="`control`"):
        blend_adapters(adapters[0], tmp_path / "other", 0.5, tmp_path / "out")


def test_adapters_that_do_not_say_their_weights_are_compared_by_the_bases_names(adapters, tmp_path):
    names = {"own": "somebody/Tiny-Llama", "same": "/models/tiny-llama", "another": "somebody/Tiny-Qwen"}
    others = {key: copy_without_record(adapters[1], tmp_path / key, base_model_name_or_path=name)
              for key, name in names.items()}  # fmt: skip
    assert blend_adapters(others["own"], others["same"], 0.5, tmp_path / "blended").is_dir()
    for first in (others["own"], adapters[0]):
        with pytest.raises(ModelMismatchError, match="`control`"):
            blend_adapters(first, others["another"], 0.5, tmp_path / "out")


def test_adapters_of_other_shapes_are_not_blended(adapters, tmp_path):
    other = copy_without_record(adapters[1], tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    name = next(name for name in weights if name.endswith("lora_A.weight"))
    save_file(weights | {name: weights[name][:, :-1].contiguous()}, other / "adapter_model.safetensors")
    with pytest.raises(ModelMismatchError, match="shape"):
        blend_adapters(adapters[0], other, 0.5, tmp_path / "out")


def test_models_of_other_dtypes_are_not_interpolated(tuned, tiny_folder):
    rounded = pl.load_model(tiny_folder("llama"), dtype="bfloat16", device="cpu")
    with pytest.raises(ModelMismatchError, match="dtype"), interpolating(tuned[0], rounded, 0.5):
        pass


def test_a_scaled_adapter_has_nothing_of_what_was_measured_while_the_first_was_trained(adapters, tmp_path):
    shutil.copytree(adapters[0], tmp_path / "tracked")
    path = tmp_path / "tracked" / "persona_lens.json"
    record = json.loads(path.read_text())
    assert {"turns", "tracked"} <= record.keys()
    path.write_text(json.dumps(record | {"turns": [{"step": 0}], "tracked": [{"step": 0, "projections": {}}]}))
    folder = scale_adapter(tmp_path / "tracked", 0.5, tmp_path / "scaled")
    written = json.loads((folder / "persona_lens.json").read_text())
    assert (written["turns"], written["tracked"]) == ([], [])
    assert written["losses"] == record["losses"]
