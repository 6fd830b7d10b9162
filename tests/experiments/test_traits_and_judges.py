import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.anthropic_server import serve

ROOT = Path(__file__).resolve().parents[2]
SECRET = "sk-ant-secret-for-tests"


@pytest.fixture(scope="module")
def setting(tmp_path_factory, roomy_folder):
    from tests.small_trait import tiny_trait

    folder = tmp_path_factory.mktemp("judges")
    tiny_trait().to_json(folder / "loud.json")
    return folder, roomy_folder


def run(setting, script, *arguments, **variables):
    folder, _ = setting
    command = [sys.executable, str(ROOT / "experiments" / script), *arguments, "--out", str(folder / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | variables
    environment = {key: value for key, value in environment.items() if value != ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def sweep(setting):
    folder, model = setting
    trait = str(folder / "loud.json")
    run(setting, "layer_sweep.py", "--trait", trait, "--model", model, "--tiny", "--dtype", "float32")


def test_the_survey_has_a_row_for_every_trait_and_marks_those_that_fail(setting):
    folder, model = setting
    arguments = ["--trait", str(folder / "loud.json"), "--model", model, "--tiny", "--dtype", "float32"]
    run(setting, "trait_survey.py", *arguments)
    content = json.loads((folder / "out" / "trait_survey.json").read_text())
    (row,) = content["traits"]
    assert row["trait"] == "loud"
    assert row["works"] is False  # a random model shows no trait
    assert row["failure"]
    before = (folder / "out" / "trait_survey.html").read_bytes()
    run(setting, "trait_survey.py", "--replot")
    assert (folder / "out" / "trait_survey.html").read_bytes() == before


def agree(setting, *more, **variables):
    folder, model = setting
    run(
        setting, "judge_agreement.py", "--trait", "loud", "--model", model, "--dtype", "float32", "--n", "20",
        *more, **variables,
    )  # fmt: skip
    return json.loads((folder / "out" / "judge_agreement_loud.json").read_text())


def test_the_embedded_judges_take_part_without_a_key(setting, sweep):
    content = agree(setting, ANTHROPIC_API_KEY="")
    assert len(content["panel"]["judges"]) == 3
    assert not any("Claude" in name for name in content["panel"]["judges"])
    for counts in content["counts"].values():
        assert sum(counts.values()) == content["config"]["n"] == len(content["panel"]["responses"])


def test_claude_takes_part_with_a_key_a_rerun_costs_no_call_and_the_key_is_nowhere(setting, sweep):
    folder, _ = setting
    with serve() as server:
        server.answer = lambda body: json.dumps({"score": len(body["messages"][0]["content"]) % 101, "coherence": 50})
        variables = {"ANTHROPIC_API_KEY": SECRET, "ANTHROPIC_BASE_URL": server.url}
        content = agree(setting, **variables)
        asked = len(server.requests)
        again = agree(setting, **variables)
    assert any("Claude" in name for name in content["panel"]["judges"])
    assert asked == len(set(zip(content["panel"]["questions"], content["panel"]["responses"], strict=True)))
    assert len(server.requests) == asked
    assert again == content
    for path in folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    assert "Claude" in (folder / "out" / "judge_agreement_loud.html").read_text()


def test_a_persons_spreadsheet_joins_the_panel(setting, sweep):
    folder, _ = setting
    sheet = folder / "check.csv"
    agree_arguments = ("--write-check", str(sheet))
    run(setting, "judge_agreement.py", "--trait", "loud", "--n", "20", *agree_arguments)
    lines = sheet.read_text(encoding="utf-8-sig")
    assert lines.startswith("id,question,response,score")
    content = agree(setting, "--person", str(sheet), ANTHROPIC_API_KEY="")
    assert content["panel"]["judges"][-1] == "a person"
    assert content["counts"]["a person"] == {"not scored by the person": content["config"]["n"]}
