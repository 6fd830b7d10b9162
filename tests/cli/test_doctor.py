"""``persona-lens doctor``, run as a user runs it."""

import json
from typing import get_args

import pytest

from persona_lens.cli.arguments import Machine
from persona_lens.planning import HARDWARE
from tests.cli.test_commands import run
from tests.diagnosis.broken import DROPPING_SYSTEM
from tests.tiny import make_hf_model, make_tokenizer


def test_a_model_that_passes_ends_with_0_and_a_table(tiny_folder):
    done = run("doctor", tiny_folder("llama"), "--dtype", "float32", "--device", "cpu")
    assert done.status == 0, done.out + done.err
    assert "12 checks passed" in done.out
    assert "steering" in done.out


def test_one_that_fails_ends_with_1_and_programs_read_why(tmp_path):
    make_hf_model("llama").save_pretrained(tmp_path)
    make_tokenizer(template=DROPPING_SYSTEM).save_pretrained(tmp_path)
    done = run("doctor", tmp_path, "--dtype", "float32", "--device", "cpu", "--backend", "bridge", "--json")
    assert done.status == 1
    found = json.loads(done.out)
    assert not found["passed"]
    assert found["backend"] == "bridge"
    (failed,) = [one for one in found["findings"] if one["passed"] is False]
    assert failed["name"] == "system prompt"
    assert failed["cure"]


@pytest.mark.parametrize("arguments", [("./no-such-folder",), ("x", "--dtype", "int8"), ("x", "--device", "moon")])
def test_one_that_cannot_be_loaded_ends_with_2(arguments):
    done = run("doctor", *arguments)
    assert done.status == 2
    assert "Traceback" not in done.err


def test_a_plan_loads_no_weights_and_says_whether_the_model_fits(tmp_path):
    make_hf_model("llama").config.save_pretrained(tmp_path)  # and nothing else
    done = run("doctor", "--plan", tmp_path, "--hardware", "l4")
    assert done.status == 0, done.out + done.err
    assert all(word in done.out for word in ("l4", "weights", "batch size", "extraction", "sweep", "screening"))


def test_a_plan_for_a_model_that_does_not_fit_ends_with_1_and_says_what_is_missing(tmp_path):
    config = make_hf_model("llama").config
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 80, 8192, 28672
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 64, 8, 128
    config.save_pretrained(tmp_path)
    done = run("doctor", "--plan", tmp_path, "--hardware", "t4", "--json")
    assert done.status == 1, done.out + done.err
    assert json.loads(done.out)["fitting_rows"] == 0


def test_the_machines_that_can_be_planned_for_are_those_that_are_known():
    assert set(get_args(Machine)) == {"here", *HARDWARE}
