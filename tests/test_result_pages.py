"""The pages of results hold what the committed results write, to the letter."""

import importlib
import json
import re
from pathlib import Path

import pytest

from experiments.results.blind_reading import BlindReading
from persona_lens.reproduction.arguments import COMPARED_TRAITS

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"


def read_part(page, part):
    found = re.search(rf"<!-- {part} -->\n(.*?)<!-- /{part} -->\n", (ROOT / page).read_text(), re.DOTALL)
    return found.group(1)


@pytest.mark.slow
def test_every_part_of_every_page_is_what_the_results_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    render_pages = importlib.import_module("results.pages").render_pages
    parts = render_pages(ROOT)
    assert {page for page, _ in parts} >= {"README.md", "docs/results/evidence.md", "docs/results/sweeps.md"}
    for (page, part), text in parts.items():
        assert read_part(page, part) == text, (page, part)


def test_the_readme_says_what_a_blind_reader_saw():
    (found,) = BlindReading.load(FIGURES / "blind_reading_away.json").traits
    numbers = {name: f"{mean.estimate:.0f}" for name, mean in found.means.items()}
    assert list(found.counts.values()) == [14, 14, 12]
    said = (
        f"a blind reader rated fourteen such texts {numbers['steered away']} of 100 on average, fourteen unsteered "
        f"ones {numbers['unsteered']}, and twelve under random directions that leave text as coherent "
        f"{numbers['random, equal coherence']}."
    )
    assert said in " ".join((ROOT / "README.md").read_text().split())


@pytest.mark.parametrize("path", sorted((FIGURES / "blind").glob("*_ratings.csv")), ids=lambda path: path.stem)
def test_each_rated_sheet_has_a_key_and_a_rating_for_every_text_and_names_no_condition(path):
    trait = path.stem.removesuffix("_ratings")
    key = json.loads((FIGURES / "blind" / f"{trait}_key.json").read_text())
    sheet = (FIGURES / "blind" / f"{trait}_sheet.csv").read_text()
    assert [line.split(",")[0] for line in path.read_text().splitlines()[1:]] == list(key)
    assert sheet.startswith("id,trait,question,response\n")
    assert not [condition for condition in set(key.values()) if condition in sheet]


@pytest.mark.parametrize("path", sorted(FIGURES.glob("steering_evidence_*.json")), ids=lambda path: path.stem)
def test_evidence_is_set_against_the_vectors_of_the_compared_traits_alone(path):
    found = json.loads(path.read_text())
    others = [name for name in found["responses"]["conditions"] if name.startswith("vector of ")]
    assert others == [f"vector of {name}" for name in COMPARED_TRAITS if name != found["trait"]]


@pytest.mark.slow
def test_a_sheet_that_was_read_is_drawn_the_same_whatever_traits_are_written_later(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    script = importlib.import_module("blind_reading")
    arguments = script.ReadingArguments(folder=FIGURES)
    for trait in ("empathy", "humorous"):
        sheet = script.make_sheet(arguments.load(trait), arguments.shares, arguments.seed)
        key = json.loads((FIGURES / "blind" / f"{trait}_key.json").read_text())
        assert {number: text.condition for number, text in sheet.items()} == key
