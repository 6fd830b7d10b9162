"""The experiment on single samples, as a user runs it, on a tiny model."""

import json

import pytest

from tests.experiments.scripts import run, save_talkative, write_traits

pytestmark = pytest.mark.slow  # a whole script, run as a user runs it


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screening")
    write_traits(folder)
    return folder, save_talkative(folder / "model")


@pytest.fixture(scope="module")
def separated(setting):
    done = run(setting, "sample_separation", "separation", "--trait", "loud.json")
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "separation" / "sample_separation_loud.json").read_text())


def test_separation_and_filters_are_those_of_the_values_written(separated):
    for measure, values in separated["values"].items():
        eliciting, normal = values["eliciting"], values["normal"]
        pairs = [(a > b) + 0.5 * (a == b) for a in eliciting for b in normal]
        assert separated["auroc"][measure]["estimate"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-3)
    held = separated["filters"]["held_back"]
    assert held["delta or judge"]["normal"]["estimate"] >= held["delta"]["normal"]["estimate"]
    assert held["delta or judge"]["eliciting"]["estimate"] >= held["judge"]["eliciting"]["estimate"]


def test_replot_draws_the_same_figure_from_the_file_without_a_model(setting, separated):
    page = setting[0] / "separation" / "sample_separation_loud.html"
    before = page.read_bytes()
    page.unlink()
    arguments = ("--trait", "loud.json", "--replot", "--model", "nobody/has-this")
    done = run(setting, "sample_separation", "separation", *arguments)
    assert done.returncode == 0, done.stderr
    assert page.read_bytes() == before
