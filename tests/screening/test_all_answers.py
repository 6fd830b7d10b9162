"""Screening of every answer of a conversation: a bad one among good ones shows."""

import contextlib
import dataclasses
import json

import pytest

import persona_lens as pl
from persona_lens.conversations import read_conversations
from persona_lens.screening.scores import ScoredRow, score_rows
from tests.screening.test_scores import converse
from tests.screening.test_screen import SETTINGS as FIRST
from tests.screening.test_screen import make_rows, make_vectors, read_shards, run
from tests.screening.test_splitting import ShoutJudge, read

SETTINGS = pl.screening.ScreenSettings(turn="all", max_response_tokens=4, max_prompt_tokens=250)
# The prompts of the one are as long as those of the others, so that padding is no other.
CHAT = converse("Why?", "one", "Who?", "two b", "When?", "three")
SHORT = converse("How?", "four", "Where?", "five")


def cut(chat, n_answers):
    return {"messages": chat["messages"][: 2 * n_answers]}


def test_each_answer_is_scored_as_if_the_conversation_ended_with_it(tiny_model, tmp_path):
    row = run(tiny_model, [CHAT], tmp_path / "all", settings=SETTINGS).rows[0]
    last = dataclasses.replace(SETTINGS, turn="last")
    assert len(row["answers"]) == 3
    for n, answer in enumerate(row["answers"], start=1):
        alone = run(tiny_model, [cut(CHAT, n)], tmp_path / str(n), settings=last).rows[0]
        assert answer == {name: alone[name] for name in answer}


def test_a_row_is_on_each_trait_as_its_answer_with_the_highest_difference_is(tiny_model, tmp_path):
    rows = [CHAT, SHORT, converse("What?", "six")]
    found = run(tiny_model, rows, tmp_path / "out", settings=SETTINGS)
    chosen = set()
    for row in found.rows:
        for trait in ("one", "two"):
            deltas = [answer[f"{trait}.delta"] for answer in row["answers"]]
            number = row[f"{trait}.answer"]
            chosen.add(number)
            assert row[f"{trait}.delta"] == max(deltas) == deltas[number - 1]
            for name in ("raw", "base", "prompt"):
                assert row[f"{trait}.{name}"] == row["answers"][number - 1][f"{trait}.{name}"]
        shown = row["answers"][row["one.answer"] - 1]
        assert {name: row[name] for name in ("question", "response", "base_response", "n_prompt_tokens")} == {
            name: shown[name] for name in ("question", "response", "base_response", "n_prompt_tokens")
        }
    assert chosen > {1}, "else the first would do"
    assert found.n_with_further == 0


def test_rows_with_one_answer_are_the_same_to_the_bit_as_with_the_first_whatever_lies_beside_them(tiny_model, tmp_path):
    rows = [*make_rows(5), CHAT, *make_rows(2), SHORT]
    first = run(tiny_model, rows, tmp_path / "first", settings=dataclasses.replace(SETTINGS, turn="first"))
    found = run(tiny_model, rows, tmp_path / "all", settings=SETTINGS)
    assert "answers" not in first.rows.column_names
    for one, every in zip(first.rows, found.rows, strict=True):
        if len(every["answers"]) == 1:
            assert {name: every[name] for name in one} == one
            assert (every["one.answer"], every["two.answer"]) == (1, 1)
        assert every["answers"][0] == {name: one[name] for name in every["answers"][0]}
    assert found.counts == {"scored": 9}


@pytest.mark.parametrize(
    ("chat", "reason", "detail"),
    [
        (converse("Why?", "one", "x" * 300, "two", "Who?", "three"), "prompt too long", "answer 2 of 3: "),
        (converse("Why?", "one", "Who?", " ", "When?", "three"), "empty response", "answer 2 of 3: ' '"),
        (converse("x" * 300, "one"), "prompt too long", "3"),
    ],
)
def test_a_row_with_an_answer_that_cannot_be_scored_is_not_scored(tiny_model, tmp_path, chat, reason, detail):
    found = run(tiny_model, [chat, SHORT], tmp_path / "out", settings=SETTINGS)
    assert found.counts == {reason: 1, "scored": 1}
    assert found.bad_rows[0].detail.startswith(detail)


def test_nothing_is_sampled_behind_an_answer_that_cannot_be_scored(tiny_model, tmp_path, monkeypatch):
    seen = []
    real = pl.models.encode_conversation
    monkeypatch.setattr(
        "persona_lens.screening.scores.encode_conversation",
        lambda t, messages: seen.append(messages) or real(t, messages),
    )
    endless = converse(*(text for i in range(40) for text in (f"Question {i}?", "Yes.")))
    found = run(tiny_model, [endless, SHORT], tmp_path / "out", settings=SETTINGS)
    assert found.bad_rows[0].reason == "prompt too long"
    assert len(seen) < 20


@pytest.mark.parametrize("base", ["sampled", "last_prompt"])
def test_the_bar_counts_every_row_once(tiny_model, tmp_path, base):
    totals = []

    @contextlib.contextmanager
    def bar(label, total):
        steps = []
        yield steps.append
        totals.append((sum(steps), total))

    rows = [CHAT, *make_rows(3), converse("Why?", "one", "Who?", " ", "When?", "three"), SHORT, {"text": "none"}]
    settings = dataclasses.replace(SETTINGS, base=base)
    found = run(tiny_model, rows, tmp_path / "out", settings=settings, run=pl.Run(progress=bar))
    assert totals == [(7, 7)]
    assert found.counts["scored"] == 5


def test_an_answer_to_whose_prompt_the_model_says_nothing_leaves_its_row_without_a_difference():
    """Nobody knows how high that answer is, so the row must not pass as its other answers would."""
    from persona_lens.screening.scores import _join_answers

    (row,) = read_conversations([CHAT])
    known = ScoredRow(row, "Why?", "one", "own", 5, 3, False, False, (), {"one": 9.0}, {"one": 1.0}, {"one": 0.0})
    silent = dataclasses.replace(
        known, response="two", base={"one": None}, is_cut=True, is_base_unfinished=True, controls=("<x>",)
    )
    joined = _join_answers(row, [known, silent, known], 3)
    assert joined.find_delta("one") is None
    assert joined.highest == {"one": 2}
    assert joined.response == "two"
    assert (joined.is_cut, joined.is_base_unfinished, joined.controls) == (True, True, ("<x>",))


def test_rows_of_which_only_a_further_answer_is_bad_are_held_back_with_its_number(tiny_model, tmp_path):
    rows = [CHAT, SHORT]
    found = run(tiny_model, rows, tmp_path / "out", settings=SETTINGS)
    files = tmp_path / "kept.jsonl", tmp_path / "held.jsonl"
    counts = pl.screening.split_rows(found, rows, {}, *files, judges={"loud": ShoutJudge()})
    (held,) = read(files[1])
    assert held == {"place": "row 1", "reason": "no score by the judge of loud: in answer 2 of 3", **CHAT}
    assert counts.held == {"no score by the judge of loud": 1}
    assert read(files[0]) == [SHORT]
    deltas = found.rows["one.delta"][:]
    limit = min(deltas)
    counts = pl.screening.split_rows(found, rows, {"one": limit}, *files)
    (held,) = read(files[1])
    at = deltas.index(max(deltas))
    number, n_answers = found.rows[at]["one.answer"], len(found.rows[at]["answers"])
    assert held["reason"].endswith(f" above {limit:.3f} in answer {number} of {n_answers}")
    assert counts.held == {"ΔP on one": 1}


def test_a_further_answer_that_has_changed_since_is_noticed(tiny_model, tmp_path):
    found = run(tiny_model, [CHAT], tmp_path / "out", settings=SETTINGS)
    other = json.loads(json.dumps(CHAT).replace("two b", "two c"))
    with pytest.raises(pl.errors.InvalidArgumentError, match="be the rows that were screened"):
        pl.screening.split_rows(found, [other], {"one": 9.0}, tmp_path / "kept.jsonl", tmp_path / "held.jsonl")


def test_the_report_says_so_and_shows_the_text_that_a_trait_s_difference_comes_from(tiny_model, tmp_path):
    found = run(tiny_model, [CHAT, SHORT, *make_rows(2)], tmp_path / "out", settings=SETTINGS)
    page = pl.plots.report_screening(found, {}, {})
    assert "every answer was screened, and a row's ΔP is that of its highest" in " ".join(page.split()).replace(
        "&#x27;", "'"
    )
    row = found.rows[0]
    for trait in ("one", "two"):
        number = row[f"{trait}.answer"]
        shown = row["answers"][number - 1]
        cells = f'<td>row 1, answer {number} of 3</td><td class="text">{shown["question"]}</td>'
        assert f'{cells}<td class="text">{shown["response"]}</td>' in page


def test_a_second_call_computes_nothing_and_a_folder_of_the_first_answers_is_refused(tiny_model, tmp_path, monkeypatch):
    run(tiny_model, [CHAT, SHORT], tmp_path / "out", settings=SETTINGS)
    before = read_shards(tmp_path / "out")
    monkeypatch.setattr("persona_lens.screening.shards.make_shard", lambda *_: pytest.fail("scored again"))
    run(tiny_model, [CHAT, SHORT], tmp_path / "out", settings=SETTINGS)
    assert read_shards(tmp_path / "out") == before
    with pytest.raises(pl.errors.InvalidArgumentError, match="turn"):
        run(tiny_model, [CHAT, SHORT], tmp_path / "out", settings=FIRST)


def test_gradients_of_all_answers_are_refused_before_the_model_runs(tiny_model):
    with pytest.raises(pl.errors.InvalidArgumentError, match="have `turn` 'first' or 'last'"):
        pl.screening.read_gradient(tiny_model, [CHAT], settings=SETTINGS)
    one = pl.screening.read_gradient(tiny_model, [CHAT], settings=FIRST)
    with pytest.raises(pl.errors.InvalidArgumentError, match="have `turn` 'first' or 'last'"):
        pl.screening.score_gradients(tiny_model, [CHAT], {"one": one}, settings=SETTINGS)


def test_scoring_alone_gives_the_answers_too(tiny_model):
    vectors = make_vectors(tiny_model)
    units = {name: (1, vector.unit(1)) for name, vector in vectors.items()}
    (found,) = score_rows(tiny_model, list(read_conversations([CHAT])), units, SETTINGS)
    assert [one.response for one in found.answers] == ["one", "two b", "three"]
    assert [len(one.conversation.messages) for one in found.answers] == [2, 4, 6]
    assert len(found.conversation.messages) == 6
