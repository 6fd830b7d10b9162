"""The page on intervals shows what was simulated, and the simulation counts what it says."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks.interval_coverage import (
    GOAL,
    Arguments,
    Case,
    Coverage,
    IntervalCoverage,
    fill_page,
    list_cases,
    render_summary,
    render_table,
    simulate,
)
from persona_lens.statistics import Interval
from persona_lens.statistics.bootstrap import Resampled

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def record():
    return IntervalCoverage.load(RESULTS / "interval_coverage.json")


def test_the_page_shows_the_record(record):
    page = (RESULTS / "intervals.md").read_text(encoding="utf-8")
    assert fill_page(page, record) == page
    assert render_table(record) in page
    assert render_summary(record) in page


def test_enough_was_simulated_of_every_kind(record):
    assert record.repetitions >= 2000
    assert {row.kind for row in record.rows} >= {
        "mean", "paired difference", "ratio of sums", "Pearson's r", "Spearman's r", "AUROC", "AUROC by group",
        "mean over directions", "r by question, overall", "r by question, within conditions",
    }  # fmt: skip


def test_the_record_is_what_the_script_gives_now(record):
    (row,) = simulate(0, next(list_cases(record.seed)), Arguments(record.repetitions, record.resamples, record.seed))
    of_record = record.rows[0]
    assert (row.kind, row.size, row.population) == (of_record.kind, of_record.size, of_record.population)
    assert (row.before, row.now) == pytest.approx((of_record.before, of_record.now), abs=0.002)
    assert row.width_now == pytest.approx(of_record.width_now, rel=1e-3)


def test_few_rows_are_under_the_goal_and_none_that_was_above_it_fell(record):
    short = [row for row in record.rows if row.now < GOAL]
    assert len(short) <= 0.05 * len(record.rows)
    assert min(row.now for row in record.rows) >= 0.91
    assert all(row.now > row.before - 0.015 for row in short)


def test_an_interval_that_reaches_the_true_value_half_of_the_time_is_counted_so():
    turns = itertools.cycle([0.0, 2.0])

    def make(data, n_resamples, seed):
        low = next(turns)
        return [Interval(low, low, low + 1.0)]

    case = Case(
        ("any",), "some", "none", (0.5,), lambda rng: (rng.normal(size=2),), make,
        lambda *_, **__: [Resampled(0.0, np.array([0.4, 0.6]), 0.95)],
    )  # fmt: skip
    (row,) = simulate(0, case, Arguments(repetitions=40))
    assert (row.before, row.now) == (1.0, 0.5)
    assert (row.width_before, row.width_now) == pytest.approx((0.19, 1.0))


def test_every_kind_can_be_drawn_and_measured(monkeypatch):
    monkeypatch.setattr("benchmarks.interval_coverage.MANY", 3000)
    done = set()
    for number, case in enumerate(list_cases(0)):
        if case.kinds in done:
            continue
        rows = simulate(number, case, Arguments(repetitions=2, resamples=20))
        assert [row.kind for row in rows] == list(case.kinds)
        assert all(0 <= row.now <= 1 and row.width_now > 0 for row in rows)
        done.add(case.kinds)


def test_a_row_under_the_goal_is_named():
    rows = [Coverage("mean", "10", "odd", 1.0, 0.8, share, 1.0, 2.0) for share in (0.929, 0.93)]
    found = IntervalCoverage(tuple(rows), 1, 1, 0, {})
    assert "- mean, 10, odd: 92.9% (before: 80.0%)" in render_summary(found)
    assert render_table(found).count("**") == 2
    none = IntervalCoverage(tuple(rows[1:]), 1, 1, 0, {})
    assert "No row is under 93 % now." in render_summary(none)
