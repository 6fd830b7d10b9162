import json
import math
import os

import pytest

import persona_lens as pl
from tests.screening.test_screen import converse, make_rows, run


class ShoutJudge:
    """Scores a response by a rule on its text: this tests who is held back, not the judge."""

    name = "shout"

    def score(self, questions, responses):
        return [pl.judges.Judgement(90.0 if "a" in r else None if "b" in r else 10.0, None) for r in responses]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def screened(tiny_model, tmp_path):
    rows = [*make_rows(8), {"text": "no conversation"}]
    return run(tiny_model, rows, tmp_path / "out"), rows


def test_rows_above_the_threshold_are_held_back_and_the_others_stay_as_they_were(screened, tmp_path):
    found, rows = screened
    limit = found.threshold("one", 0.5)
    counts = pl.screening.split_rows(found, rows, {"one": limit}, tmp_path / "kept.jsonl", tmp_path / "held.jsonl")
    deltas = found.rows["one.delta"][:]
    expected = [row for row, delta in zip(rows, deltas, strict=True) if delta is not None and delta <= limit]
    assert [row["messages"] for row in read(tmp_path / "kept.jsonl")] == [row["messages"] for row in expected]
    held = read(tmp_path / "held.jsonl")
    assert len(held) + counts.kept == 9
    assert held[-1]["reason"] == "not scored (no messages)"
    assert held[-1]["place"] == "row 9"
    assert all(row["reason"].startswith("ΔP on one: ") for row in held[:-1])
    assert counts.held == {"ΔP on one": len(held) - 1, "not scored (no messages)": 1}


def test_a_judge_holds_back_alone_or_besides_the_projection(screened, tmp_path):
    found, rows = screened
    judges = {"loud": ShoutJudge()}
    alone = pl.screening.split_rows(found, rows, {}, tmp_path / "kept.jsonl", tmp_path / "held.jsonl", judges=judges)
    texts = [row["messages"][1]["content"] for row in read(tmp_path / "kept.jsonl")]
    assert not any("a" in text or "b" in text for text in texts)
    assert alone.held["judge of loud"] == sum("a" in row["messages"][1]["content"] for row in rows[:-1])
    both = pl.screening.split_rows(
        found, rows, {"one": found.threshold("one", 0.5)}, tmp_path / "k2.jsonl", tmp_path / "h2.jsonl", judges=judges
    )
    limit, deltas = found.threshold("one", 0.5), found.rows["one.delta"][:]
    expected = [
        text
        for text, delta in zip((row["messages"][1]["content"] for row in rows[:-1]), deltas, strict=False)
        if text in texts and delta is not None and delta <= limit
    ]
    assert [row["messages"][1]["content"] for row in read(tmp_path / "k2.jsonl")] == expected
    assert both.kept == len(expected) < alone.kept


def test_of_the_last_turn_the_whole_conversation_is_kept_and_longer_answers_are_counted(tiny_model, tmp_path):
    rows = [{"messages": converse("A?", "one")["messages"] + converse("B?", "a long answer")["messages"]}]
    settings = pl.screening.ScreenSettings(max_response_tokens=4, max_prompt_tokens=150, turn="last")
    found = run(tiny_model, rows, tmp_path / "out", settings=settings)
    counts = pl.screening.split_rows(found, rows, {"one": 1e9}, tmp_path / "kept.jsonl", tmp_path / "held.jsonl")
    assert (counts.kept, counts.kept_cut) == (1, 1)
    assert read(tmp_path / "kept.jsonl") == rows


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: rows[1:],
        lambda rows: [*rows[:2], converse("Question 2?", "another answer"), *rows[3:]],
    ],
    ids=["fewer", "shifted", "another answer"],
)
def test_other_rows_than_those_screened_are_refused_and_nothing_is_left_behind(screened, tmp_path, change):
    found, rows = screened
    with pytest.raises(pl.errors.InvalidArgumentError, match="screened"):
        pl.screening.split_rows(found, change(rows), {"one": 0.0}, tmp_path / "kept.jsonl", tmp_path / "held.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_trait_that_was_not_screened_for_is_refused(screened, tmp_path):
    with pytest.raises(pl.errors.InvalidArgumentError, match="evil"):
        pl.screening.split_rows(
            screened[0], screened[1], {"evil": 0.0}, tmp_path / "kept.jsonl", tmp_path / "held.jsonl"
        )


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf])
def test_a_limit_that_is_no_number_is_refused_before_anything_is_written(screened, tmp_path, limit):
    files = tmp_path / "kept.jsonl", tmp_path / "held.jsonl"
    with pytest.raises(pl.errors.InvalidArgumentError, match="max_score"):
        pl.screening.split_rows(*screened, {}, *files, judges={"loud": ShoutJudge()}, max_score=limit)
    with pytest.raises(pl.errors.InvalidArgumentError, match="thresholds"):
        pl.screening.split_rows(*screened, {"one": limit}, *files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_a_judge_scores_nan_is_held_back(screened, tmp_path):
    class LostJudge(ShoutJudge):
        def score(self, questions, responses):
            return [pl.judges.Judgement(math.nan, None) for _ in responses]

    found, rows = screened
    counts = pl.screening.split_rows(
        found, rows, {}, tmp_path / "kept.jsonl", tmp_path / "held.jsonl", judges={"loud": LostJudge()}
    )
    assert (counts.kept, counts.held["no score by the judge of loud"]) == (0, 8)


def make_aliases(path, folder):
    """Other spellings of a file, those that exist and those that would only."""
    (folder / "a folder").mkdir()
    (folder / "linked folder").symlink_to(path.parent)
    (folder / "link.jsonl").symlink_to(path)
    spellings = {
        "itself": path,
        "dots": path.parent / "x" / ".." / path.name,
        "relative": os.path.relpath(path),
        "through a linked folder": folder / "linked folder" / path.name,
        "a link": folder / "link.jsonl",
    }
    if path.exists():
        os.link(path, folder / "hard.jsonl")
        spellings["a hard link"] = folder / "hard.jsonl"
    (path.parent / "x").mkdir()
    return spellings


ALIASES = ["itself", "dots", "relative", "through a linked folder", "a link", "a hard link"]


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("role", ["kept", "held"])
def test_an_output_that_is_the_source_is_refused_by_name_and_the_source_stays(tiny_model, tmp_path, alias, role):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(4)))
    before = path.read_bytes()
    found = run(tiny_model, path, tmp_path / "out")
    given = {"kept": tmp_path / "kept.jsonl", "held": tmp_path / "held.jsonl"} | {
        role: make_aliases(path, tmp_path)[alias]
    }
    for source in (path, str(path)):
        with pytest.raises(pl.errors.InvalidArgumentError, match=f"`{role}`"):
            pl.screening.split_rows(found, source, {"one": 1e9}, **given)
    assert path.read_bytes() == before
    assert not {"kept.jsonl", "held.jsonl"} & {each.name for each in tmp_path.iterdir()}


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("exists", [False, True])
def test_both_outputs_in_one_file_are_refused_by_name(screened, tmp_path, alias, exists):
    found, rows = screened
    (tmp_path / "new").mkdir()
    kept = tmp_path / "new" / "kept.jsonl"
    if exists:
        kept.write_text("mine")
    held = make_aliases(kept, tmp_path).get(alias, kept)
    with pytest.raises(pl.errors.InvalidArgumentError, match="`held`"):
        pl.screening.split_rows(found, rows, {"one": 0.0}, kept, held)
    assert kept.exists() == exists
    assert not exists or kept.read_text() == "mine"


@pytest.mark.parametrize("name", ["screening.json", "shards/00000001.arrow", "shards"])
def test_an_output_that_is_the_screening_or_a_folder_is_refused_by_name(screened, tmp_path, name):
    found, rows = screened
    with pytest.raises(pl.errors.InvalidArgumentError, match="`kept`"):
        pl.screening.split_rows(found, rows, {"one": 0.0}, found.folder / name, tmp_path / "held.jsonl")
    assert pl.screening.Screening.load(found.folder).counts == found.counts
