"""How tests run experiment scripts: as a user does, on tiny traits and a tiny model; a setting is (folder, model)."""

import bz2
import gc
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM

import persona_lens as pl
from persona_lens.reproduction.kept_texts import read_together
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


def command(setting, script, name, *arguments, runs=None):
    """Return how a script is called; its unfinished work is where that of all scripts is, unless another place is told.

    That is how users run them: judges that one script has made and measured are there for the next.
    """
    runs = runs or os.environ["RUNS_OF_SCRIPTS"]  # tests/conftest.py makes it
    where = ["--model", setting[1], "--tiny", "--dtype", "float32", "--out", name, "--runs", runs]
    return [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *arguments, *where]


def environment(**more):
    """Return the variables of a script that finds no browser: starting one takes longer than what most tests look at.

    Pages are written all the same. tests/experiments/test_layer_sweep.py draws its picture.
    """
    return environment_with_browser() | {"BROWSER_PATH": "/no/browser"} | more


def environment_with_browser():
    return os.environ | _FIXED | {"PYTHONPATH": search_path()}


def search_path():
    """This repository, then what the tests were started with: TransformerLens 4, if that is tested."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def run(setting, script, name, *arguments, runs=None):
    return run_script(command(setting, script, name, *arguments, runs=runs), env=environment(), cwd=setting[0])


def read_result(path):
    """Return a result's JSON with the texts that lie in a file beside it."""
    return read_together(path, json.loads(path.read_text()))


def read_plain(path):
    """Return a file's bytes, unpacked if it is a packed one, to be searched for what must not be there."""
    content = path.read_bytes()
    return bz2.decompress(content) if path.suffix == ".bz2" else content


def run_script(command, *, env, cwd=None, timeout=400):
    """Run ``[python, script, *arguments]`` in a process of its own, as `subprocess.run` does with captured output.

    It is forked from one that has imported what scripts import, on which a fresh interpreter spends longer than on what
    most tests look at.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = FORKED.Process(target=_run_forked, args=(command[1:], dict(env), cwd, outputs))
        with patch.dict(os.environ, _FIXED):  # the first one starts the server, which imports with them
            process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [path.read_text() if path.exists() else "" for path in outputs]
        return subprocess.CompletedProcess(command, process.exitcode, *texts)


# One thread: the machine is shared, and nothing here is large.
_FIXED = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["persona_lens.reproduction.judges", "plotly.io", "kaleido", "peft", "sklearn.linear_model", "datasets", "tyro"]
)


def _run_forked(argv, env, cwd, outputs):
    gc.freeze()  # what was imported before: every training collects, and would pass over it
    for number, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd or ROOT)
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")
