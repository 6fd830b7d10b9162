"""``persona-lens doctor``, run as a user runs it."""

import json

import pytest

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
