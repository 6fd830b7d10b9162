"""The pages of results hold what the committed results write, to the letter."""

import json
import re
from pathlib import Path

import pytest

from experiments.results.blind_reading import BlindReading
from experiments.results.judge_validation import JudgeValidations
from experiments.results.steering_evidence import SHOWPIECE, SteeringEvidence, summarize

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"


def read_part(page, part):
    found = re.search(rf"<!-- {part} -->\n(.*?)<!-- /{part} -->\n", (ROOT / page).read_text(), re.DOTALL)
    return found.group(1)


@pytest.fixture(scope="module")
def evidence():
    return [SteeringEvidence.load(path) for path in sorted(FIGURES.glob("steering_evidence_*.json"))]


@pytest.fixture(scope="module")
def reading():
    return BlindReading.load(FIGURES / "blind_reading.json")


def test_the_evidence_page_has_every_trait_that_was_run(evidence):
    assert (
        read_part("docs/results/evidence.md", "tables")
        == "\n".join(one.to_markdown() for one in evidence).rstrip("\n") + "\n"
    )


def test_the_readme_has_the_evidence_and_the_pairs(evidence):
    assert read_part("README.md", "evidence") == summarize(evidence) + "\n"
    shown = next(one for one in evidence if one.trait == SHOWPIECE)
    assert read_part("README.md", "pairs") == shown.pairs_to_markdown() + "\n"


def test_the_pages_have_what_was_read_blind(reading):
    assert read_part("docs/results/evidence.md", "reading") == reading.to_markdown().rstrip("\n") + "\n"
    assert read_part("docs/results/judges.md", "reading") == reading.correlations_to_markdown() + "\n"
    means = next(one.means for one in reading.traits if one.trait == SHOWPIECE)
    steered, plain = (f"{means[name].estimate:.0f}" for name in ("written vector", "unsteered"))
    said = f"a blind reader rated eight such texts {steered} of 100 on average, eight unsteered ones {plain},"
    assert said in " ".join((ROOT / "README.md").read_text().split())


def test_the_table_of_judges_is_that_of_its_result():
    table = JudgeValidations.load(FIGURES / "judge_validation.json").to_markdown()
    assert read_part("docs/results/judges.md", "table") == table.rstrip("\n") + "\n"


@pytest.mark.parametrize("path", sorted((FIGURES / "blind").glob("*_ratings.csv")), ids=lambda path: path.stem)
def test_each_rated_sheet_has_a_key_and_a_rating_for_every_text_and_names_no_condition(path):
    trait = path.stem.removesuffix("_ratings")
    key = json.loads((FIGURES / "blind" / f"{trait}_key.json").read_text())
    sheet = (FIGURES / "blind" / f"{trait}_sheet.csv").read_text()
    assert [line.split(",")[0] for line in path.read_text().splitlines()[1:]] == list(key)
    assert sheet.startswith("id,trait,question,response\n")
    assert not [condition for condition in set(key.values()) if condition in sheet]
