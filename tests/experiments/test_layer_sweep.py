import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = [
    "layer_sweep_loud.json",
    "layer_sweep_loud.html",
    "layer_sweep_loud_responses.txt",
    "vector_loud.safetensors",
]


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny_folder):
    """The script on a tiny random model and a small trait: every step is real, nothing means anything."""
    from tests.small_trait import tiny_trait

    folder = tmp_path_factory.mktemp("sweep")
    trait = folder / "loud.json"
    tiny_trait().to_json(trait)
    return folder, ["--trait", str(trait), "--model", tiny_folder("llama"), "--tiny", "--dtype", "float32"]


def command(setting, name, *more):
    folder, arguments = setting
    script = str(ROOT / "experiments" / "layer_sweep.py")
    where = ["--out", str(folder / name), "--runs", str(folder / f"{name}-runs")]
    return [sys.executable, script, *arguments, *where, *more]


def environment(**more):
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | more


def run(setting, name, *more, **variables):
    return subprocess.run(
        command(setting, name, *more), env=environment(**variables), capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def whole(setting):
    done = run(setting, "whole")
    assert done.returncode == 0, done.stderr
    return setting[0] / "whole", done


def test_a_run_writes_results_figure_and_responses(whole):
    folder, done = whole
    content = json.loads((folder / RESULTS[0]).read_text())
    assert content["config"]["seed"] == 0
    assert content["config"]["versions"]["torch"]
    assert content["sweep"]["layers"] == [0]
    assert content["vector"]["counts"]["pairs"] == 4
    assert "Plotly.newPlot" in (folder / RESULTS[1]).read_text()
    assert "Steered:" in (folder / RESULTS[2]).read_text()
    assert (folder / RESULTS[3]).exists()
    assert "layer_sweep_loud.html" in done.stdout


def test_a_run_that_was_killed_goes_on_and_writes_what_an_uninterrupted_one_writes(setting, whole):
    for shards in (1, 3):
        runs = setting[0] / "killed-runs"
        process = subprocess.Popen(
            command(setting, "killed"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 200
        while len(list(runs.glob("*/*.safetensors"))) < shards and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in runs.glob("*/*.safetensors")}
    assert kept
    assert run(setting, "killed").returncode == 0
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    for name in RESULTS:
        assert (setting[0] / "killed" / name).read_bytes() == (whole[0] / name).read_bytes(), name


def test_replot_draws_the_same_figure_from_the_file_without_a_model(setting, whole):
    before = (whole[0] / RESULTS[1]).read_bytes()
    (whole[0] / RESULTS[1]).unlink()
    done = run(setting, "whole", "--replot", "--model", "nobody/has-this-model")
    assert done.returncode == 0, done.stderr
    assert (whole[0] / RESULTS[1]).read_bytes() == before


def test_without_a_browser_a_line_says_so_and_the_page_is_written(setting, whole):
    page = whole[0] / RESULTS[1]
    picture = page.with_suffix(".png")
    page.unlink()
    picture.unlink(missing_ok=True)
    done = run(setting, "whole", "--replot", BROWSER_PATH="/no/browser", PATH="/nowhere", HOME="/nowhere")
    assert done.returncode == 0, done.stderr
    assert "no Chrome or Chromium found" in done.stdout
    assert page.exists()
    assert not picture.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--trait", "nobody"], "evil"), (["--model", "nobody/has-this-model"], "load_model"), (["--seed", "x"], "seed")],
)
def test_bad_arguments_end_with_what_to_do(setting, more, words):
    done = run(setting, "bad", *more)
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
    assert not (setting[0] / "bad").exists()
