"""A real JupyterLab on this machine, and a real browser to drive it with."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_PATIENCE = 240  # seconds; machines that are busy with other work start slowly
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# What asks the network or the user.
_SETTINGS = {"notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}}


@contextmanager
def open_page(width: int = 1100, height: int = 900):
    """Open a page in a Chromium, with the list of what goes wrong on it; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    path = os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine; BROWSER_PATH says where one is")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=_ARGUMENTS, timeout=_PATIENCE * 1000)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(_PATIENCE * 1000)
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        yield page, wrong
        browser.close()


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab.

    Args:
        url: Of a notebook in its folder, by `url.format(name)`.
        folder: What it serves.
    """

    url: str
    folder: Path


@contextmanager
def serve_lab(folder: Path, theme: str) -> Iterator[Lab]:
    """Serve a folder of notebooks, on loopback and with a token."""
    pytest.importorskip("jupyterlab", reason="the extra `browser` is not installed")
    pytest.importorskip("anywidget", reason="the extra `widget` is not installed")
    home = folder / "home"
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    for name, values in {**_SETTINGS, "themes": {"theme": theme}}.items():
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    token = secrets.token_hex(16)
    runtime = home / "runtime"
    variables = {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_TOKEN": token,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0",
               f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly"]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not (found := list(runtime.glob("jpserver-*.json"))):
            if server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((folder / "server.log").read_text())
            time.sleep(0.2)
        port = json.loads(found[0].read_text())["port"]
        yield Lab(f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}", folder)
    finally:
        server.terminate()
        server.wait(timeout=30)
