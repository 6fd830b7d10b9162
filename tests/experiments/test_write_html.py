"""Every result of figures/ can be made a page again."""

import importlib
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "figures").glob("*.json"))


@pytest.fixture
def write_html(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("write_html")


def test_every_result_is_of_a_kind_that_has_pages(write_html):
    kinds = importlib.import_module("results.kinds").find_kinds()
    assert RESULTS
    assert [path.name for path in RESULTS if json.loads(path.read_text())["format"] not in kinds] == []


def test_pages_are_written_beside_the_results_and_nothing_else_is(write_html, tmp_path):
    for name in ("trait_geometry", "blind_reading_away"):
        shutil.copy(ROOT / "figures" / f"{name}.json", tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    write_html.main(tmp_path)
    made = {path.name for path in tmp_path.iterdir()} - before
    assert made == {"blind_reading_away.html", "trait_geometry.html", "trait_geometry_tokens.html"}
    assert all("<script>" not in path.read_text() for path in tmp_path.glob("*_tokens.html"))
    assert "Plotly.newPlot" in (tmp_path / "trait_geometry.html").read_text()
