import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persona_lens.errors import InvalidArgumentError
from persona_lens.monitoring import MonitoringCorrelation, measure_monitoring
from persona_lens.statistics import pearson_r
from tests.monitoring.examples import make_graded


@given(st.integers(0, 10_000))
def test_the_correlations_are_those_of_the_statistics(seed):
    rng = np.random.default_rng(seed)
    x, y = (torch.tensor(rng.normal(size=30) * 20) for _ in range(2))
    y[20:] = 50.0 + torch.arange(10) / 100
    conditions = [f"c{i // 10}" for i in range(30)]
    found = measure_monitoring(x.float(), y.float(), conditions, [str(i % 10) for i in range(30)], n_resamples=20)
    within = np.mean([pearson_r(x[rows].float(), y[rows].float()) for rows in (slice(0, 10), slice(10, 20))])
    assert found.overall.estimate == pytest.approx(pearson_r(x.float(), y.float()))
    assert found.within.estimate == pytest.approx(within)
    assert found.left_out == ("c2",)
    assert found.conditions == ("c0", "c1")
    assert found.overall.low <= found.overall.high <= 1
    assert (found.n, found.n_questions) == (30, 10)


def test_reliable_is_only_what_holds_inside_conditions(vectors):
    good = make_graded(vectors["loud"]).measure()
    between = make_graded(vectors["loud"], within=0.0).measure()
    assert good.is_reliable
    assert between.overall.low > 0.5
    assert not between.is_reliable


def test_an_interval_for_the_correlation_inside_conditions_covers_zero_about_as_often_as_it_should(vectors):
    verdicts = [make_graded(vectors["loud"], within=0.0, seed=seed).measure(n_resamples=200) for seed in range(60)]
    assert sum(one.is_reliable for one in verdicts) <= 6  # 2.5 % of 60 is 1.5


def test_the_bootstrap_resamples_questions_with_all_their_conditions():
    """Twenty copies of five questions are five units: the interval stays wide."""
    rng = np.random.default_rng(1)
    x, y = (torch.tensor(rng.normal(size=5) * 10).float() for _ in range(2))
    once = measure_monitoring(x, y, ["c"] * 5, [str(i) for i in range(5)]).overall
    copies = measure_monitoring(
        x.repeat(20), y.repeat(20), [f"c{i}" for i in range(20) for _ in range(5)], [str(i % 5) for i in range(100)]
    ).overall
    assert copies.high - copies.low == pytest.approx(once.high - once.low)


def test_four_questions_are_too_few_to_call_reliable():
    x = torch.arange(4.0)
    found = measure_monitoring(x, 10 * x, ["c"] * 4, list("abcd"))
    assert found.within.low == pytest.approx(1.0)
    assert not found.is_reliable


def test_where_every_condition_is_left_out_nothing_is_reliable_and_the_json_holds_no_nan():
    found = measure_monitoring(torch.arange(6.0), torch.full((6,), 7.0), list("aaabbb"), list("xyzxyz"))
    assert found.left_out == ("a", "b")
    assert np.isnan(found.within.estimate)
    assert np.isnan(found.overall.estimate)
    assert not found.is_reliable
    again = MonitoringCorrelation.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again.left_out == found.left_out
    assert str(again) == str(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"projections": torch.arange(2.0), "scores": torch.arange(2.0)}, "at least 3"),
        ({"scores": torch.tensor([1.0, float("nan"), 3.0])}, "1 of 3"),
        ({"conditions": ["a"]}, "conditions"),
        ({"questions": ["x", "x", "x"]}, "two different"),
        ({"n_resamples": 0}, "n_resamples"),
    ],
)
def test_graded_data_that_cannot_be_measured_are_refused(change, words):
    given = {"projections": torch.arange(3.0), "scores": torch.arange(3.0), "conditions": list("aaa")}
    with pytest.raises(InvalidArgumentError, match=words):
        measure_monitoring(**(given | {"questions": list("xyz")} | change))
