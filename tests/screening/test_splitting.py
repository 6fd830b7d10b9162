import json

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
