"""How tests run experiment scripts: as a user does, on tiny traits and a tiny model; a setting is (folder, model)."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import persona_lens as pl
from tests.small_trait import tiny_trait
from tests.tiny import make_tokenizer, save_tiny

ROOT = Path(__file__).resolve().parents[2]


def write_traits(folder):
    """Write two small traits, loud.json and soft.json."""
    tiny_trait().to_json(folder / "loud.json")
    soft = [pl.traits.InstructionPair("Be kind.", "Be mean."), pl.traits.InstructionPair("Kind!", "Mean!")]
    replace(tiny_trait(), name="soft", instruction_pairs=tuple(soft)).to_json(folder / "soft.json")


def save_talkative(folder):
    """Save a tiny random model that ends sentences now and then, and shows the traits enough for a vector."""
    path = save_tiny(folder, "llama", seed=5, n_ctx=1024)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():  # full stops and spaces, or no response would hold a whole sentence
        for token in make_tokenizer()(". ")["input_ids"]:
            model.lm_head.weight[token] *= 7
    model.save_pretrained(path)
    return path


def command(setting, script, name, *arguments):
    where = ["--model", setting[1], "--tiny", "--dtype", "float32", "--out", name, "--runs", f"{name}-runs"]
    return [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *arguments, *where]


def environment():
    # One thread: the machine is shared, and nothing here is large.
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(setting, script, name, *arguments):
    return subprocess.run(
        command(setting, script, name, *arguments), env=environment(), capture_output=True, text=True, timeout=400,
        cwd=setting[0],
    )  # fmt: skip
