"""Steering away from hallucination, run as a user runs it, on a tiny random model: real steps, no meaning."""

import csv
import importlib
import json
from pathlib import Path

import pytest
import torch

from persona_lens.traits import load_written_examples
from tests.experiments.scripts import run, save_talkative

pytestmark = pytest.mark.slow  # whole scripts, each run as a user runs it

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("away")
    return folder, save_talkative(folder / "model")


@pytest.fixture(scope="module")
def away(setting):
    done = run(setting, "steering_away", "out")
    assert done.returncode == 0, done.stderr
    return setting[0] / "out" / "steering_away_hallucination.json"


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("results.steering_away")


def test_the_choice_steers_away_and_was_not_made_on_what_it_is_judged_on(away):
    content = json.loads(away.read_text())
    assert content["setting"]["step"] < 0
    assert content["setting"]["coefficient"] < 0
    assert content["responses"]["conditions"][:3] == ["unsteered", "system prompt", "steered away"]
    trait = content["config"]["trait"]
    written = [one.question for one in load_written_examples("hallucination", "judging")[:10]]
    assert content["responses"]["questions"] == [*trait["evaluation_questions"][1::2], *written]
    assert content["null_step"] > 0


def test_phrases_of_not_knowing_are_counted_by_question(away, results):
    found = results.SteeringAway.load(away)
    texts = found.responses.responses[found.responses.conditions.index("steered away")]
    expected = [100.0 * results.says_that_it_does_not_know(text) for (text,) in texts]
    assert found.count_admissions("steered away").estimate == pytest.approx(sum(expected) / len(expected))
    plain = found.count_admissions("unsteered").estimate
    assert found.more_admissions().estimate == pytest.approx(sum(expected) / len(expected) - plain)
    assert "| steered away |" in found.to_markdown()


def test_no_written_answer_that_invents_holds_such_a_phrase_and_some_that_admit_ignorance_do(results):
    examples = [one for half in ("training", "judging") for one in load_written_examples("hallucination", half)]
    assert not [one.overt for one in examples if results.says_that_it_does_not_know(one.overt)]
    assert sum(results.says_that_it_does_not_know(one.opposite) for one in examples) >= 15


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("I'm sorry, but I don't have any information about that.", True),
        ("I do not know who painted it.", True),
        ("Could you provide more details?", True),
        ("I am not familiar with this town.", True),
        ("It was painted in 1890 by Marlow, who was not a happy man.", False),
        ("You can find it in every shop.", False),
    ],
)
def test_what_counts_as_not_knowing(results, text, says):
    assert results.says_that_it_does_not_know(text) is says


def test_the_sheet_of_steering_away_has_files_of_its_own(setting, away):
    done = run(setting, "blind_reading", "out", "--of", "steering_away", "--trait", "hallucination", "--write")
    assert done.returncode == 0, done.stderr
    blind = away.parent / "blind"
    with (blind / "hallucination_away_sheet.csv").open(encoding="utf-8", newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    key = json.loads((blind / "hallucination_away_key.json").read_text())
    assert set(key.values()) <= {"unsteered", "steered away", "random, equal coherence"}
    generator = torch.Generator().manual_seed(0)
    ratings = torch.randint(0, 100, (len(ids),), generator=generator).tolist()
    rows = [f"{number},{rating}" for number, rating in zip(ids, ratings, strict=True)]
    (blind / "hallucination_away_ratings.csv").write_text("\n".join(["id,rating", *rows]))
    done = run(setting, "blind_reading", "out", "--of", "steering_away", "--trait", "hallucination")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((away.parent / "blind_reading_away.json").read_text())["traits"]
    assert next(iter(found["aurocs"])) == "steered away"
