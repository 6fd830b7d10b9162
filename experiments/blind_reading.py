"""What does a person read in steered text? A sheet without conditions is rated, and only then set against its key.

    python experiments/blind_reading.py --write             # figures/blind/TRAIT_sheet.csv and TRAIT_key.json
    python experiments/blind_reading.py                     # after a person filled figures/blind/TRAIT_ratings.csv

Responses of all conditions of steering_evidence.py, shuffled, a sheet for each trait; with `--of steering_away` those
of that script. Ratings are a CSV of `id` and `rating`, 0 (not at all) to 100 (as strongly as can be).
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from results.blind_reading import BlindReading, ReadTrait
from results.steering_away import AWAY, SteeringAway
from results.steering_evidence import SteeringEvidence

from persona_lens.files import write_bytes_atomically, write_json
from persona_lens.reproduction.arguments import COMPARED_TRAITS, BaseArguments
from persona_lens.reproduction.comparison import Comparison
from persona_lens.reproduction.entrance import enter
from persona_lens.statistics import bootstrap_auroc, bootstrap_spearman_r
from persona_lens.statistics.missing import mean_interval
from persona_lens.streams import Stream
from persona_lens.traits import list_written_traits

# How many texts of each condition a trait gives the sheet.
SHARES = {
    "unsteered": 8,
    "written vector": 8,
    "sampled vector": 6,
    "system prompt": 5,
    "written vector, away": 5,
    "other traits": 4,
    "random, equal coherence": 4,
}
SHARES_AWAY = {"unsteered": 14, AWAY: 14, "random, equal coherence": 12}
READER = "read blind by one developer"
NAME = "blind_reading"


@dataclass(frozen=True)
class ReadingArguments(BaseArguments):
    """Write the sheet, or read what was rated."""

    write: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the sheet and its key, and stop."""
    of: Literal["steering_evidence", "steering_away"] = "steering_evidence"
    """Whose responses."""

    @property
    def shares(self) -> dict[str, int]:
        """How many texts of each condition a trait gives the sheet."""
        return SHARES if self.of == "steering_evidence" else SHARES_AWAY

    @property
    def suffix(self) -> str:
        """What tells this reading's files from the other's."""
        return "" if self.of == "steering_evidence" else "_away"

    def load(self, trait: str) -> Comparison:
        """Load the responses."""
        kind = SteeringEvidence if self.of == "steering_evidence" else SteeringAway
        return kind.load(evidence_path(self, trait))


@dataclass(frozen=True)
class Text:
    """A response with its place in the evidence: condition, question, rollout; scores by judge."""

    trait: str
    condition: str
    question: str
    response: str
    scores: dict[str, float]


def main(arguments: ReadingArguments) -> None:
    """Write the sheet, or the result."""
    if arguments.replot:
        arguments.read(BlindReading, NAME + arguments.suffix).write(arguments.out, NAME + arguments.suffix)
        return
    names = [name for name in arguments.trait or list_written_traits() if evidence_path(arguments, name).exists()]
    evidence = {name: arguments.load(name) for name in names}
    if not evidence:
        raise SystemExit(f"{arguments.out} holds no {arguments.of}_TRAIT.json. Run {arguments.of}.py first.")
    sheets = {name: make_sheet(one, arguments.shares, arguments.seed) for name, one in evidence.items()}
    if arguments.write:
        for name, sheet in sheets.items():
            write_sheet(arguments, name, sheet)
        return
    if not arguments.trait:  # those that were read
        sheets = {name: sheet for name, sheet in sheets.items() if blind_path(arguments, name, "ratings.csv").exists()}
    rated = {name: rate_sheet(arguments, name, sheet) for name, sheet in sheets.items()}
    if not rated:
        raise SystemExit(f"{arguments.out}/blind holds no TRAIT_ratings.csv. Write the sheets, then rate them.")
    config = next(iter(evidence.values())).config | {"traits": list(rated)}
    result = BlindReading(config, READER, tuple(summarize(name, one, arguments.shares) for name, one in rated.items()))
    result.write(arguments.out, NAME + arguments.suffix)
    print(f"{arguments.out / NAME}{arguments.suffix}.html")


def blind_path(arguments: ReadingArguments, trait: str, name: str) -> Path:
    """Return where a trait's sheet, key or ratings are."""
    return arguments.out / "blind" / f"{trait}{arguments.suffix}_{name}"


def make_sheet(evidence: Comparison, shares: dict[str, int], seed: int) -> dict[str, Text]:
    """Draw a trait's texts and number them in an order that says nothing."""
    texts = draw_texts(evidence, shares, seed)
    order = np.random.default_rng([seed, Stream.BLIND_READING, place_trait(evidence.trait), 1]).permutation(len(texts))
    return {f"{number + 1:03d}": texts[index] for number, index in enumerate(order)}


def place_trait(trait: str) -> int:
    """Return a trait's number in the random streams; later traits come last, so that sheets that were read stay."""
    later = [name for name in list_written_traits() if name not in COMPARED_TRAITS]
    return (*COMPARED_TRAITS, *later).index(trait)


def rate_sheet(arguments: ReadingArguments, trait: str, sheet: dict[str, Text]) -> list[tuple[Text, float]]:
    """Set a trait's ratings against its key."""
    key = json.loads(blind_path(arguments, trait, "key.json").read_text(encoding="utf-8"))
    with blind_path(arguments, trait, "sheet.csv").open(encoding="utf-8", newline="") as file:
        read = {row["id"]: row["response"] for row in csv.DictReader(file)}
    changed = [n for n, text in sheet.items() if (key.get(n), read.get(n)) != (text.condition, text.response)]
    if changed:
        path = blind_path(arguments, trait, "sheet.csv")
        raise SystemExit(f"{path} and its key belong to other responses, from row {changed[0]} on.")
    ratings = read_ratings(arguments, trait, sheet)
    return [(text, ratings[number]) for number, text in sheet.items()]


def evidence_path(arguments: ReadingArguments, trait: str) -> Path:
    """Return where a trait's evidence is."""
    return arguments.out / f"{arguments.of}_{trait}.json"


def draw_texts(evidence: Comparison, shares: dict[str, int], seed: int) -> list[Text]:
    """Draw each condition's share of responses, without those that say nothing."""
    rng = np.random.default_rng([seed, Stream.BLIND_READING, place_trait(evidence.trait)])
    texts = []
    for condition, share in shares.items():
        found = list_texts(evidence, condition)
        texts += [found[index] for index in rng.permutation(len(found))[:share]]
    return texts


def list_texts(evidence: Comparison, condition: str) -> list[Text]:
    """List a condition's responses with every judge's score of them."""
    null = evidence.nulls.get(condition)
    source = null or evidence.responses
    scores = evidence.null_scores[condition] if null else evidence.scores
    rows = [
        index
        for index, name in enumerate(source.conditions)
        if null or name == condition or (condition == "other traits" and name.startswith("vector of "))
    ]
    return [
        Text(
            evidence.trait, condition, question, text, {judge: float(all_[row, q, r]) for judge, all_ in scores.items()}
        )
        for row in rows
        for q, question in enumerate(source.questions)
        for r, text in enumerate(source.responses[row][q])
        if text.strip()
    ]


def write_sheet(arguments: ReadingArguments, trait: str, sheet: dict[str, Text]) -> None:
    """Write the sheet, which names no condition, and the key."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["id", "trait", "question", "response"])
    writer.writerows([number, text.trait, text.question, text.response] for number, text in sheet.items())
    write_bytes_atomically(blind_path(arguments, trait, "sheet.csv"), lines.getvalue().encode())
    write_json(blind_path(arguments, trait, "key.json"), {number: text.condition for number, text in sheet.items()})
    path = blind_path(arguments, trait, "sheet.csv")
    print(f"{path}: {len(sheet)} texts. Rate them into {blind_path(arguments, trait, 'ratings.csv').name} (id,rating).")


def read_ratings(arguments: ReadingArguments, trait: str, sheet: dict[str, Text]) -> dict[str, float]:
    """Read the ratings; refuse to go on without one for every text."""
    path = blind_path(arguments, trait, "ratings.csv")
    if not path.exists():
        raise SystemExit(
            f"{path} is missing: a CSV of `id` and `rating` (0 to 100), a line for each text of the sheet."
        )
    with path.open(encoding="utf-8", newline="") as file:
        ratings = {row["id"]: float(row["rating"]) for row in csv.DictReader(file)}
    bad = [number for number in sheet if not 0 <= ratings.get(number, -1) <= 100]
    if bad:
        raise SystemExit(f"{path} must rate every text from 0 to 100. Missing or out of range: {', '.join(bad[:5])}.")
    return ratings


def summarize(trait: str, rated: list[tuple[Text, float]], shares: dict[str, int]) -> ReadTrait:
    """Average a trait's ratings by condition, and set them against the judges' scores."""
    by_condition = {
        condition: torch.tensor([rating for text, rating in rated if text.condition == condition])
        for condition in shares
    }
    judges = list(rated[0][0].scores)
    correlations = {}
    for judge in judges:
        pairs = [(text.scores[judge], rating) for text, rating in rated if not np.isnan(text.scores[judge])]
        scores, ratings = map(torch.tensor, zip(*pairs, strict=True))
        correlations[judge] = bootstrap_spearman_r(scores, ratings)
    return ReadTrait(
        trait=trait,
        counts={condition: len(values) for condition, values in by_condition.items()},
        means={condition: mean_interval(values) for condition, values in by_condition.items()},
        aurocs={
            condition: bootstrap_auroc(values, by_condition["unsteered"])
            for condition, values in by_condition.items()
            if condition != "unsteered"
        },
        correlations=correlations,
    )


if __name__ == "__main__":
    enter(main, ReadingArguments, __doc__)
