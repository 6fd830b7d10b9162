"""What is said of predicted and measured steering is what the traits' numbers say."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import persona_lens as pl
from experiments.results.vector_quality import (
    NAMED_IN_ADVANCE,
    OUTCOMES,
    PREDICTORS,
    PredictedTrait,
    VectorQualities,
    place_labels,
)
from persona_lens.statistics import Interval
from persona_lens.vectors.quality.card import VectorQuality
from tests.experiments.scripts import ROOT, environment, run, run_script, save_talkative, write_traits


def make(values, rises):
    """Traits whose predictor named in advance has the values; the others are noise."""
    rng = np.random.default_rng(1)
    rows = []
    for number, (value, rise) in enumerate(zip(values, rises, strict=True)):
        predictors = {name: float(rng.normal()) for name in PREDICTORS} | {NAMED_IN_ADVANCE: value}
        measured = dict.fromkeys(OUTCOMES, Interval(rise, rise - 5, rise + 5))
        judge = f"reading, valid for <{number}>" if number % 2 else "likelihood"
        agreement = Interval.missing() if math.isnan(value) else Interval(value, value - 0.1, value + 0.1)
        rows.append(PredictedTrait(f"<{number}>", 1, 2.0, judge, 6, 5, predictors, agreement, measured))
    card = VectorQuality("<b>", _info(), "d", 0)
    return VectorQualities({"model": {"name": "tiny"}}, tuple(rows), (card,))


def _info():
    return pl.models.ModelInfo("tiny", 2, 4, 8, "float32", "hooked", "f" * 16, "none")


def test_correlations_are_spearmans_and_the_finding_says_whether_it_is_sure():
    values = torch.arange(12.0) / 12
    found = make(values.tolist(), (values + 0.05 * torch.sin(9 * values)).tolist())
    expected = spearmanr(values, [one.measured["rise"].estimate for one in found.traits]).statistic
    assert found.correlate(NAMED_IN_ADVANCE, "rise").estimate == pytest.approx(expected)
    chance, share = found.shuffle()
    assert 0.5 < chance < 1
    assert share < 0.01
    assert "agreement of differences predicts" in found.say_finding()
    unsure = make(values.tolist(), np.random.default_rng(3).normal(size=12).tolist())
    assert "does not surely predict" in unsure.say_finding()
    assert unsure.shuffle()[1] > 0.05


def test_the_largest_correlation_is_compared_with_the_largest_of_shuffled_traits():
    """As often as not, noise reaches what noise found: the share is not that of one correlation alone."""
    shares = [make(torch.rand(12).tolist(), torch.rand(12).tolist()).shuffle()[1] for _ in range(6)]
    assert np.mean(shares) > 0.2


def test_a_trait_without_predictors_is_left_out_of_correlations_and_shown():
    found = make([math.nan, *torch.linspace(0, 1, 6).tolist()], torch.linspace(5, 9, 7).tolist())
    assert found.correlate(NAMED_IN_ADVANCE, "rise").estimate == pytest.approx(1)
    page = found.to_markdown()
    assert "| <0> | 1 × 2 | 6 (5) |" in page
    assert "<1>" not in found.plot().to_json()
    assert set(found.list_figures()) == {"", "_<b>"}
    assert "<b>" not in found.cards_to_markdown()


def test_labels_of_points_that_lie_close_do_not_meet():
    places = place_labels([(0.1, 5.0), (0.1, 5.0), (0.1, 5.1), (0.9, 90.0)])
    assert len(set(places[:3])) == 3
    assert place_labels([(0.1, 5.0)]) == [(14, 12)]


def test_what_was_found_comes_back_from_its_file(tmp_path):
    found = make([math.nan, 0.1, 0.2], [1.0, 2.0, 3.0])
    found.save(tmp_path / "vector_quality.json")
    again = VectorQualities.load(tmp_path / "vector_quality.json")
    assert again.to_json() == found.to_json()
    assert again.correlate(NAMED_IN_ADVANCE, "rise").is_missing


@pytest.mark.slow
def test_the_script_measures_the_surveys_pairs(tmp_path):
    write_traits(tmp_path)
    setting = (tmp_path, save_talkative(tmp_path / "model"))
    traits = ["--trait", "loud.json", "--trait", "soft.json"]
    for script, more in (("trait_survey", []), ("vector_quality", ["--card", "evil"])):
        done = run(setting, script, "out", *traits, *more)
        assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "vector_quality.json").read_text())
    assert [one["trait"] for one in content["traits"]] == ["loud", "soft"]
    assert all(one["pairs"] >= one["kept"] > 0 for one in content["traits"])
    assert [one["trait"] for one in content["cards"]] == ["evil"]
    before = (tmp_path / "out" / "vector_quality.html").read_bytes()
    command = [sys.executable, str(ROOT / "experiments" / "vector_quality.py"), "--replot", "--out", "out"]
    assert run_script(command, env=environment(), cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "vector_quality.html").read_bytes() == before
