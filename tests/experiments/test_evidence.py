"""The evidence and its blind reading, run as a user runs them, on a tiny random model: real steps, no meaning."""

import csv
import json

import pytest

from persona_lens.traits import load_written_examples
from tests.experiments.scripts import run, save_talkative

pytestmark = pytest.mark.slow  # whole scripts, each run as a user runs it

CONDITIONS = ["unsteered", "system prompt", "written vector", "written vector, away", "sampled vector",
              "sampled vector, away"]  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    return folder, save_talkative(folder / "model")


@pytest.fixture(scope="module")
def evidence(setting):
    done = run(setting, "steering_evidence", "out", "--trait", "formality")
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "out" / "steering_evidence_formality.json").read_text())


def test_three_judges_with_their_verdicts_read_every_condition_and_null(evidence):
    judges = [one["judge"] for one in evidence["validations"]]
    assert len(judges) == 3
    names = list(evidence["scores"])
    assert all(
        name.startswith(judge) and "valid for formality" in name for name, judge in zip(names, judges, strict=True)
    )
    judges = names
    names = evidence["responses"]["conditions"]
    assert names[:6] == CONDITIONS
    assert names[6:] == [f"vector of {one}" for one in ("empathy", "evil", "hallucination", "humorous", "sycophancy")]
    assert list(evidence["nulls"]) == ["shuffled labels", "random, equal coherence"]
    for by_judge in evidence["null_scores"].values():
        assert list(by_judge) == judges
    assert evidence["scores"][judges[2]] == evidence["responses"]["scores"]
    assert evidence["scores"][judges[0]] != evidence["scores"][judges[1]]


def test_the_table_of_judges_holds_those_that_the_evidence_took(setting, evidence):
    done = run(setting, "judge_validation", "out", "--trait", "formality")
    assert done.returncode == 0, done.stderr
    table = json.loads((setting[0] / "out" / "judge_validation.json").read_text())
    # With --tiny the evidence cuts the trait down, and with it the likelihood judge's calibration.
    assert table["validations"][:2] == evidence["validations"][:2]
    assert [one["judge"] for one in table["validations"]] == [one["judge"] for one in evidence["validations"]]
    assert "formality | embedding judge (all-MiniLM-L6-v2)" in done.stdout


def test_what_chose_the_setting_was_not_what_it_is_judged_on(evidence):
    trait = evidence["config"]["trait"]
    written = [one.question for one in load_written_examples("formality", "judging")[:10]]
    assert evidence["responses"]["questions"] == [*trait["evaluation_questions"][1::2], *written]
    assert [one["source"] for one in evidence["settings"]] == ["written", "sampled"]


def test_the_sheet_names_no_condition_and_ratings_meet_the_key_only_afterwards(setting, evidence):
    out = setting[0] / "out"
    done = run(setting, "blind_reading", "out", "--trait", "formality", "--write")
    assert done.returncode == 0, done.stderr
    with (out / "blind/formality_sheet.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    key = json.loads((out / "blind/formality_key.json").read_text())
    assert list(rows[0]) == ["id", "trait", "question", "response"]
    assert [row["id"] for row in rows] == list(key)
    assert {"unsteered", "written vector"} <= set(key.values())
    missing = run(setting, "blind_reading", "out", "--trait", "formality")
    assert missing.returncode
    assert "blind/formality_ratings.csv is missing" in missing.stderr
    ratings = [f"{row['id']},{len(row['response']) % 100}" for row in rows]
    (out / "blind/formality_ratings.csv").write_text("\n".join(["id,rating", *ratings[:-1]]))
    short = run(setting, "blind_reading", "out", "--trait", "formality")
    assert f"out of range: {rows[-1]['id']}" in short.stderr
    (out / "blind/formality_ratings.csv").write_text("\n".join(["id,rating", *ratings]))
    done = run(setting, "blind_reading", "out", "--trait", "formality")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((out / "blind_reading.json").read_text())["traits"]
    own = [len(row["response"]) % 100 for row in rows if key[row["id"]] == "unsteered"]
    assert found["counts"]["unsteered"] == len(own)
    assert found["means"]["unsteered"]["estimate"] == pytest.approx(sum(own) / len(own))
    assert len(found["correlations"]) == 3
