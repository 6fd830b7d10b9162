"""``persona-lens app``: what is wrong is said, and the page is served until it is broken off."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from persona_lens.cli.arguments import App
from persona_lens.cli.choosing import find_ways
from tests.cli.test_commands import run
from tests.live.app_page import load_roomy, make_vectors

ROOT = Path(__file__).resolve().parents[2]


def test_without_its_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = run("app")
    assert (done.status, "pip install 'persona-lens[app]'" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--trait", "nobody"), "must be one of"),
        (("--vector", "none.safetensors"), "be an existing file"),
        (("--model", "other/model"), "--vector"),
        (("--monitor", "none.json"), "none.json"),
        (("--port", "70000"), "`port` must be in"),
        (("--host", "no such host"), "`host` must be an address"),
        (("--port", "0", "--max-new-tokens", "0"), "max_new_tokens"),
        (("--port", "0", "--template-arguments", "hush"), "be one JSON object"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(arguments, words, monkeypatch):
    monkeypatch.setattr("persona_lens.live.app.import_server", lambda: None)
    monkeypatch.setattr("persona_lens.cli.serving.import_server", lambda: None)
    monkeypatch.setattr("persona_lens.cli.choosing.load_model", lambda *name, **more: pytest.fail("loaded"))
    done = run("app", *arguments)
    assert done.status == 2
    assert words in done.err


def test_a_vector_that_was_tried_nowhere_needs_a_layer(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("persona_lens.cli.serving.import_server", lambda: None)
    make_vectors(tiny_model)["loud"].save(tmp_path / "loud.safetensors")
    done = run("app", "--vector", tmp_path / "loud.safetensors", "--model", "some/model")
    assert done.status == 2
    assert "--layer 1 is a beginning" in done.err


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr("persona_lens.cli.serving.import_server", lambda: None)
    monkeypatch.setattr("persona_lens.cli.choosing.load_model", lambda *name, **more: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("app", "--port", port)
    assert done.status == 2
    assert "`port` must be free to listen on" in done.err
    assert f"127.0.0.1:{port}" in done.err


def test_a_layer_that_is_given_counts_for_a_vector_that_was_tried_elsewhere():
    (way,) = find_ways(App(trait=("evil",), layer=12)).values()
    assert way.vector.provenance["setting"]["layer"] != way.layer == 12


@pytest.mark.slow
def test_it_serves_until_it_is_broken_off(tmp_path):
    pytest.importorskip("uvicorn", reason="the extra `app` is not installed")
    make_vectors(load_roomy(tmp_path / "model"))["loud"].save(tmp_path / "loud.safetensors")
    command = [
        sys.executable, "-c", "from persona_lens.cli import main; main()", "app", "--port", "0", "--layer", "1",
        "--model", str(tmp_path / "model"), "--vector", str(tmp_path / "loud.safetensors"), "--host", "0.0.0.0",
    ]  # fmt: skip
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, env=os.environ | {"COLUMNS": "1000"}, **told) as serving:
        warning, where = serving.stdout.readline(), serving.stdout.readline()
        assert "no password" in warning
        url = where.split()[1]
        with urllib.request.urlopen(f"{url}api/setup", timeout=60) as answered:
            assert [one["name"] for one in json.load(answered)["traits"]] == ["loud"]
        serving.send_signal(signal.SIGTERM)
        _, said = serving.communicate(timeout=60)
    assert serving.returncode == 143
    assert "The page is closed." in said
