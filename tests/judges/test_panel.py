import contextlib
import csv
import json
import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import persona_lens as pl
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.judges.panel import PanelResult, compare_scores, judge_with_panel, read_spot_check, write_spot_check


class ListJudge:
    def __init__(self, name, scores):
        self.name = name
        self.scores = scores

    def score(self, questions, responses):
        refused = pl.judges.Judgement(None, None, "refusal")
        return [refused if score is None else pl.judges.Judgement(float(score), None) for score in self.scores]


QUESTIONS, RESPONSES = ["q"] * 5, ["a", "b", "c", "d", "e"]


def test_agreement_is_that_of_scipy_over_what_both_scored():
    panel = judge_with_panel(
        [ListJudge("one", [90, 10, 50, 85, None]), ListJudge("two", [70, 30, 20, 10, 99])], QUESTIONS, RESPONSES
    )
    there, back = panel.measure_agreement()
    assert there.spearman.estimate == pytest.approx(spearmanr([90, 10, 50, 85], [70, 30, 20, 10]).statistic)
    assert there.n_responses == 4
    # One's clear pairs are 90 over 10 and 85 over 10; two orders the first alike and the second not.
    assert (there.n_clear_pairs, there.pairwise) == (2, 0.5)
    # Two scored the last response too, but one did not: a pair needs both.
    assert back.n_clear_pairs == 0
    assert math.isnan(back.pairwise)


def test_every_response_ends_with_a_score_or_a_reason_and_counts_add_up():
    panel = judge_with_panel([ListJudge("one", [90, None, None, 85, 3])], QUESTIONS, RESPONSES)
    assert panel.count_reasons() == {"one": {"scored": 3, "refusal": 2}}
    assert panel.scores.isnan().sum() == 2


@given(st.lists(st.floats(0, 100), min_size=3, max_size=20))
def test_a_judge_agrees_with_itself_and_disagrees_with_its_opposite(values):
    scores = torch.tensor(values, dtype=torch.float64).float()
    same = compare_scores("a", scores, "b", scores, n_resamples=20)
    opposite = compare_scores("a", scores, "b", 100 - scores, n_resamples=20)
    if same.n_clear_pairs:
        assert same.pairwise == 1.0
        assert opposite.pairwise == 0.0
    if len(set(scores.tolist())) > 1 and len(set((100 - scores).tolist())) == len(set(scores.tolist())):
        assert same.spearman.estimate == pytest.approx(1.0)
        assert opposite.spearman.estimate == pytest.approx(-1.0)


def test_constant_scores_have_no_rank_correlation():
    constant = compare_scores("a", torch.full((5,), 50.0), "b", torch.arange(5.0))
    assert math.isnan(constant.spearman.estimate)


def test_ties_on_clear_pairs_count_half():
    found = compare_scores("a", torch.tensor([90.0, 10.0, 50.0]), "b", torch.tensor([5.0, 5.0, 6.0]))
    assert found.pairwise == 0.5


def test_bad_panels_are_refused():
    with pytest.raises(InvalidArgumentError, match="`judges`"):
        judge_with_panel([], QUESTIONS, RESPONSES)
    with pytest.raises(InvalidArgumentError, match="different names"):
        judge_with_panel([ListJudge("a", []), ListJudge("a", [])], QUESTIONS, RESPONSES)
    with pytest.raises(InvalidArgumentError, match="as many"):
        judge_with_panel([ListJudge("a", [])], QUESTIONS, RESPONSES[:2])


HOSTILE = ['=HYPERLINK("http://x")', "+1", "-1", "@x", "<script>alert(1)</script>", 'a "quoted", {answer}\nline']


def test_a_persons_scores_read_back_in_the_order_of_the_responses(tmp_path):
    questions = [f"q{i}" for i in range(len(HOSTILE))]
    path = tmp_path / "check.csv"
    assert write_spot_check(path, questions, HOSTILE, n=100) == len(HOSTILE)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not any(row["response"].startswith(("=", "+", "-", "@")) for row in rows)
    for row in rows:
        row["score"] = {"q0": "10", "q3": "99,5"}.get(row["question"], "")
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["question", "score", "id", "response"])  # columns moved about
        writer.writeheader()
        writer.writerows(reversed(rows))
    found = read_spot_check(path, questions, HOSTILE)
    assert [j.score for j in found] == [10.0, None, None, 99.5, None, None]
    assert found[1].reason == "not scored by the person"


def test_the_sheet_shows_no_judges_score_and_draws_the_same_rows_again(tmp_path):
    responses = [f"r{i}" for i in range(50)]
    for name in ("a.csv", "b.csv"):
        assert write_spot_check(tmp_path / name, ["q"] * 50, responses, n=10, seed=3) == 10
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert (tmp_path / "a.csv").read_text(encoding="utf-8-sig").splitlines()[0] == "id,question,response,score"


def test_nobodys_answers_are_overwritten(tmp_path):
    path = tmp_path / "check.csv"
    write_spot_check(path, ["q"], ["r"])
    with pytest.raises(FileExistsError):
        write_spot_check(path, ["q"], ["r"])


@pytest.mark.parametrize(("cell", "words"), [("101", "line 2: '101'"), ("good", "'good'"), ("nan", "'nan'")])
def test_a_score_that_is_none_is_refused_with_its_line(tmp_path, cell, words):
    path = tmp_path / "check.csv"
    write_spot_check(path, ["q"], ["r"])
    path.write_text(path.read_text(encoding="utf-8-sig").rstrip("\n") + cell + "\n", encoding="utf-8")
    with pytest.raises(FileFormatError, match=words):
        read_spot_check(path, ["q"], ["r"])


def test_a_sheet_of_other_responses_is_refused(tmp_path):
    path = tmp_path / "check.csv"
    write_spot_check(path, ["q"], ["r"])
    with pytest.raises(FileFormatError, match="only these responses"):
        read_spot_check(path, ["q"], ["another"])
    path.write_text("a,b\n1,2\n")
    with pytest.raises(FileFormatError, match="columns"):
        read_spot_check(path, ["q"], ["r"])


def test_a_panel_survives_the_round_trip_through_json_and_draws_itself():
    panel = judge_with_panel(
        [ListJudge("<b>one</b>", [90, 10, 50, 85, None]), ListJudge("two", [70, 30, 20, 10, 99])], QUESTIONS, RESPONSES
    )
    again = PanelResult.from_json(json.loads(json.dumps(panel.to_json(), allow_nan=False)))
    assert again.judgements == panel.judgements
    assert repr(again) == "PanelResult(5 responses; <b>one</b>: 4 scored, two: 5 scored)"
    assert "&lt;b&gt;one" in again._repr_html_()
    figure = again.plot()
    assert "<b>" not in "".join(figure.data[0].x)
    assert figure.data[0].z[0][1] == pytest.approx(panel.measure_agreement()[0].spearman.estimate)


def test_a_panels_table_comes_at_once():
    scores = torch.rand(3, 300, generator=torch.Generator().manual_seed(0)) * 100
    judges = [ListJudge(str(i), row.tolist()) for i, row in enumerate(scores)]
    panel = judge_with_panel(judges, ["q"] * 300, ["r"] * 300)
    start = time.process_time()
    panel._repr_html_()
    assert time.process_time() - start < 1  # a loop over resamples takes three times that


def test_the_interval_of_a_rank_correlation_is_that_of_fishers_approximation():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(400, generator=generator)
    b = a + torch.randn(400, generator=generator)
    found = compare_scores("a", a, "b", b).spearman
    center, width = math.atanh(found.estimate), 1.96 * math.sqrt((1 + found.estimate**2 / 2) / 397)
    assert found.low == pytest.approx(math.tanh(center - width), abs=0.02)
    assert found.high == pytest.approx(math.tanh(center + width), abs=0.02)


def test_scores_at_the_limits_are_not_clear_and_the_limits_can_be_moved():
    panel = judge_with_panel(
        [ListJudge("one", [80, 20, 81, 19, 50]), ListJudge("two", [5, 4, 3, 2, 1])], QUESTIONS, RESPONSES
    )
    assert panel.measure_agreement()[0].n_clear_pairs == 1
    assert panel.measure_agreement(low=51.0, high=79.0)[0].n_clear_pairs == 6
    assert panel.measure_agreement(low=20.0, high=50.0)[0].n_clear_pairs == 2


def test_equal_rows_are_shown_once_and_equal_responses_to_other_questions_apart(tmp_path):
    path = tmp_path / "check.csv"
    questions, responses = ["a", "b", "a"], ["same"] * 3
    assert write_spot_check(path, questions, responses) == 2
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(row | {"score": {"a": "10", "b": "20"}[row["question"]]} for row in rows)
    assert [j.score for j in read_spot_check(path, questions, responses)] == [10.0, 20.0, 10.0]


def test_rows_are_drawn_from_all_by_the_seed_and_no_cell_acts_as_a_formula(tmp_path):
    drawn = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.csv"
        write_spot_check(path, ["=1+1"] * 50, [str(i) for i in range(50)], n=10, seed=seed)
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["question"] for row in rows} == {"'=1+1"}
        drawn.append([int(row["response"]) for row in rows])
    assert set(drawn[0]) != set(drawn[1])
    assert all(len(set(rows)) == 10 and max(rows) > 10 and rows != sorted(rows) for rows in drawn)


def fill_in(path, score, encoding):
    """Write a score into the one row, as a spreadsheet program saves it."""
    text = path.read_text(encoding="utf-8-sig").rstrip("\r\n")
    path.write_bytes((text + score + "\r\n").encode(encoding))


@pytest.mark.parametrize("length", [131_072, 131_073, 1_000_000])
def test_a_response_of_any_length_is_read_back(tmp_path, length):
    path = tmp_path / "check.csv"
    write_spot_check(path, ["q"], ["x" * length])
    fill_in(path, "70", "utf-8-sig")
    assert read_spot_check(path, ["q"], ["x" * length])[0].score == 70.0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "latin-1", "cp1252"])
def test_a_sheet_is_read_in_the_encoding_that_a_spreadsheet_program_chose(tmp_path, encoding):
    path = tmp_path / "check.csv"
    write_spot_check(path, ["Où ?"], ["Là-bas, à côté."])
    fill_in(path, "70", encoding)
    assert read_spot_check(path, ["Où ?"], ["Là-bas, à côté."])[0].score == 70.0


def test_half_a_surrogate_pair_does_not_stop_a_sheet(tmp_path):
    path = tmp_path / "check.csv"
    write_spot_check(path, ["q"], ["half \ud83d"])
    fill_in(path, "70", "utf-8")
    assert read_spot_check(path, ["q"], ["half \ud83d"])[0].score == 70.0


def test_a_response_that_is_scored_twice_and_differently_is_refused(tmp_path):
    path = tmp_path / "check.csv"
    write_spot_check(path, ["q"], ["r"])
    fill_in(path, "70", "utf-8")
    row = path.read_text().splitlines()[1]
    path.write_text(path.read_text() + row.removesuffix("70") + "20\n")
    with pytest.raises(FileFormatError, match="hold each response once"):
        read_spot_check(path, ["q"], ["r"])


@given(data=st.binary(max_size=300))
def test_any_bytes_for_a_sheet_are_read_or_refused_by_name(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "check.csv"
    path.write_bytes(b"id,score\n" + data)
    with contextlib.suppress(FileFormatError):  # any other error fails the test
        read_spot_check(path, ["q"], ["r"])
