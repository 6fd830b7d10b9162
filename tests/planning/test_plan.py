import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, MixtralConfig, Qwen2Config

import persona_lens as pl
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.models.loading import EMBEDDED_MODEL, read_config
from persona_lens.planning.costs import Costs, PlannedWork
from persona_lens.planning.hardware import HARDWARE, Hardware, measure_hardware
from persona_lens.planning.plan import Plan, plan_work
from persona_lens.planning.shape import read_bits, read_shape
from tests.tiny import make_hf_model

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "howto" / "large-models.md"
QWEN_7B = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


def measured(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["details"]


def list_ratios():
    """Estimated against measured seconds on two cores; prompts' tokens as the embedded tokenizer counts them."""
    cores = Hardware("two cores", measured("limits")["scoring"]["limit GFLOP/s"] * 1e9, 6e9, 16e9)
    costs = Costs(read_shape(read_config(EMBEDDED_MODEL)), cores, 2, 16.0)
    sampling, extraction, sweep, screening, judging = map(
        measured, ("sampling", "extraction", "sweep", "screening", "judging")
    )
    responses = sweep["configurations"] * 20
    works = (
        (
            "sampling, 32 rows",
            PlannedWork("", 32, 41, 32, 48, 0),
            32,
            32 * 48 / sampling["tokens_per_second"]["hooked"],
        ),
        ("extraction", PlannedWork("", 80, 42, 80, 32, 0), 80, extraction["seconds"]["persona_lens"]),
        ("sweep", PlannedWork("", 20, 41, responses, 24, 0), 128, sweep["seconds"]["sweep, remote judge"]),
        ("screening", PlannedWork("", 128, 46, 128, 32, 128 * 32), 128, screening["seconds"]["one trait"]),
        ("judging", PlannedWork("", 40, 140, 0, 1, 2 * 80 * 32), 128, 80 / judging["responses_per_second"]["trait"]),
    )
    return {name: costs.time_work(work, batch) / seconds for name, work, batch, seconds in works}


def test_estimates_are_within_a_factor_of_two_of_what_was_measured_and_the_page_says_by_how_much():
    ratios = list_ratios()
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios
    for name, ratio in ratios.items():
        assert f"| {name} | {ratio:.2f} |" in PAGE.read_text()


def test_the_page_shows_the_plan_that_its_code_prints():
    paper = pl.Sampling(max_new_tokens=1000, rollouts=10, batch_size=512)
    config = Qwen2Config(**QWEN_7B, name_or_path="Qwen/Qwen2.5-7B-Instruct")
    assert str(plan_work(config, "a100-80gb", sampling=paper)) in PAGE.read_text()


def test_the_way_to_a_first_7b_run_names_the_rows_and_minutes_of_its_plan():
    page = " ".join((PAGE.parent / "models.md").read_text().split())
    small, large, fast = (
        plan_work(Qwen2Config(**QWEN_7B), name, sampling=pl.Sampling(1000, rollouts=10, batch_size=512))
        for name in ("rtx-4090", "a100-80gb", "h100")
    )
    assert f"{small.fitting_rows} rows of this model fit beside it on 24 GB, and {large.fitting_rows} on 80 GB" in page
    minutes = [one.work[0].minutes for one in (small, fast)]
    times = f"an RTX 4090 takes {minutes[0]:.1f} minutes for the responses of the vector, {small.batch_size} at once"
    assert f"{times}, and an H100 {minutes[1]:.1f} minutes, {fast.batch_size} at once" in page


@pytest.mark.parametrize(
    "path", list((ROOT / "benchmarks" / "results").glob("loading_memory.json")), ids=lambda one: one.stem
)
def test_the_page_shows_what_loading_was_measured_to_take(path):
    content = json.loads(path.read_text())
    for row in content["rows"]:
        resident = row["ratio"]["median"]
        anonymous = content["details"][row["what"]]["without pages of files, against the weights"]
        what = row["what"].removeprefix("peak memory of ").removesuffix(", against the weights")
        assert f"| {what} | {resident:.2f} | {anonymous:.2f} |" in PAGE.read_text()
        assert row["target"] == "none" or resident <= 1.15


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_weights_are_counted_as_they_are(architecture):
    model = make_hf_model(architecture)
    shape = read_shape(model.config)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    assert shape.is_tied == architecture.startswith("gemma")
    linear = [m.weight.numel() for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.block_weights == shape.active_weights == sum(linear)
    assert (shape.n_layers, shape.d_model, shape.n_heads, shape.n_kv_heads, shape.d_head) == (3, 48, 6, 2, 8)


def test_a_loaded_model_weighs_what_was_planned(tiny_model):
    planned = plan_work(make_hf_model("llama").config, dtype="float32")
    held = sum(
        weight.numel() * 4 for name, weight in tiny_model.named_parameters() if "b_" not in name.rpartition(".")[2]
    )
    assert planned.weight_bytes == held


def test_of_a_mixture_a_token_meets_the_experts_it_is_sent_to():
    shape = read_shape(MixtralConfig(**MIXTRAL))
    experts = 3 * 8 * 3 * 64 * 96  # layers, experts, matrices
    assert shape.block_weights - shape.active_weights == experts * 6 // 8


def test_a_plan_of_a_7b_model_holds_together():
    sampling = pl.Sampling(max_new_tokens=1000, rollouts=10)
    plan = plan_work(Qwen2Config(**QWEN_7B), "h100", sampling=sampling)
    assert plan.parameters == 7_615_616_512  # as Qwen2.5-7B-Instruct's page says
    assert plan.weight_bytes == 2 * plan.parameters
    extraction, sweep, screening = plan.work
    assert extraction.responses == 2000
    assert sweep.minutes / extraction.minutes == pytest.approx(sweep.responses / extraction.responses, rel=0.1)
    assert screening.responses == 1000
    # No faster than reading the weights for every step, no slower than one row at a time.
    steps = extraction.responses * 1000 / plan.batch_size
    assert steps * plan.weight_bytes / 3.35e12 < extraction.minutes * 60 < extraction.responses * 1000 * 0.05
    wider = plan_work(Qwen2Config(**QWEN_7B), "h100", sampling=pl.Sampling(1000, rollouts=10, batch_size=512))
    assert wider.work[0].minutes < extraction.minutes
    assert wider.batch_size == 512 < wider.fitting_rows


def test_what_does_not_fit_is_said_and_fits_quantised():
    config = Qwen2Config(**QWEN_7B)
    plan = plan_work(config, "t4")
    assert plan.batch_size == plan.fitting_rows == 0
    assert "none fits: 1.1 GB are missing" in str(plan)
    quantised = plan_work(config, "t4", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    assert quantised.weight_bytes < 0.4 * plan.weight_bytes
    assert quantised.batch_size > 0
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert plan_work(config, "t4").weight_bytes == quantised.weight_bytes


@pytest.mark.parametrize(
    ("told", "bits"),
    [
        (None, 16), ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "fp8"}, 8), ({"quant_method": "fp8", "fmt": "e4m3"}, 8),
        ({"quant_method": "mxfp4"}, 4.5), ({"quant_method": "awq", "bits": 4}, 4.5),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, 8),
    ],
)  # fmt: skip
def test_bits_are_read_from_what_a_checkpoint_says(told, bits):
    assert read_bits(told, torch.bfloat16) == bits


def test_a_plan_is_a_record_with_a_table():
    plan = plan_work(LlamaConfig(name_or_path="some/<model>"), "l4")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert "some/&lt;model&gt;" in plan._repr_html_()
    assert [line.split()[0] for line in str(plan).splitlines()][-3:] == ["extraction", "sweep", "screening"]


def test_a_configuration_alone_is_enough(tmp_path, monkeypatch):
    LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64).save_pretrained(
        tmp_path
    )
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    assert plan_work(tmp_path).model == tmp_path.name


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"hardware": "abacus"}, "hardware"), ({"layers": 0}, "layers"), ({"layers": 31}, "layers"),
        ({"conversations": -1}, "conversations"), ({"dtype": "int3"}, "dtype"), ({"judge_passes": -1}, "judge_passes"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_named(options, parameter):
    with pytest.raises(InvalidArgumentError, match=f"`{parameter}`"):
        plan_work(EMBEDDED_MODEL, **options)


def test_a_configuration_of_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(FileFormatError, match="causal language model"):
        plan_work(tmp_path)


def test_a_machine_that_is_measured_multiplies_and_copies():
    found = measure_hardware("float32", "cpu")
    assert 1e8 < found.bandwidth < 1e13
    assert 1e8 < found.flops < 1e16
    with pytest.raises(InvalidArgumentError, match="`device`"):
        measure_hardware(device="abacus")
    with pytest.raises(InvalidArgumentError, match="`flops`"):
        Hardware("none", 0.0, 1.0, 1.0)
    assert HARDWARE["h100"].memory == 80e9
