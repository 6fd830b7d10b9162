"""What a vector's card measures, on pairs whose direction is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.vectors import MeanDifference, measure_separation, measure_stability
from persona_lens.vectors.quality.stability import _multiply, _weigh_agreement, _weigh_pairwise
from tests.vectors.quality_pairs import make_pairs

AXIS = torch.eye(2, 400)[:1].repeat(2, 1)  # the first axis, at both layers


def test_pairs_that_agree_perfectly_leave_no_doubt():
    found = measure_stability(make_pairs(1.0, noise=0.0), n_halvings=5, n_draws=5)
    for layer in range(2):
        for measure in (found.agreement, found.pairwise, found.split_half):
            assert measure[layer].estimate == pytest.approx(1, abs=1e-6)
            assert measure[layer].low == pytest.approx(1, abs=1e-6)
        assert found.cone[layer].high == pytest.approx(0, abs=1e-3)
        assert found.reliability[layer] == pytest.approx(1, abs=1e-6)


def test_noise_agrees_with_nothing_and_its_cone_is_a_right_angle():
    found = measure_stability(make_pairs(0.0, seed=3))
    for layer in range(2):
        assert abs(found.agreement[layer].estimate) < 0.03  # with its own part it would be 1 / sqrt(40) = 0.16
        assert abs(found.pairwise[layer].estimate) < 0.02
        assert abs(found.split_half[layer].estimate) < 0.15
        assert found.cone[layer].estimate > 60
        assert found.cone[layer].high == pytest.approx(90)


@settings(max_examples=8)
@given(signal=st.floats(0.3, 2.0), seed=st.integers(0, 1000))
def test_the_cone_holds_the_true_angle_and_says_what_two_halves_say(signal, seed):
    pairs = make_pairs(signal, seed=seed)
    found = measure_stability(pairs, n_halvings=20, n_draws=40)
    vector = (pairs.positive - pairs.negative).mean(dim=0)
    angles = torch.rad2deg(torch.acos(pl.tensors.cosine(vector, AXIS)))
    for layer in range(2):
        assert found.cone[layer].estimate == pytest.approx(float(angles[layer]), rel=0.25)
        by_halves = math.degrees(math.acos(math.sqrt(found.reliability[layer])))
        assert found.cone[layer].estimate == pytest.approx(by_halves, rel=0.25)


def test_agreement_and_its_interval_are_of_pairs_of_different_questions():
    """Against sums written out, with weights as a resample has them."""
    pairs = make_pairs(0.4, n=9, per_question=3, d_model=12, seed=5)
    differences = (pairs.positive - pairs.negative)[:, 0].double().numpy()
    at = np.array(pairs.questions)
    counts = np.array([2, 0, 1])
    weights = counts[at]
    cosines, products, total = [], 0.0, 0.0
    for i in range(9):
        rest = sum(weights[j] * differences[j] for j in range(9) if at[j] != at[i])
        cosines.append(differences[i] @ rest / np.linalg.norm(differences[i]) / np.linalg.norm(rest))
        for j in range(9):
            if at[i] != at[j]:
                lengths = np.linalg.norm(differences[i]) * np.linalg.norm(differences[j])
                products += weights[i] * weights[j] * (differences[i] @ differences[j]) / lengths
                total += weights[i] * weights[j]
    gram = _multiply(torch.tensor(differences))
    assert _weigh_agreement(gram, at)(counts[None])[0] == pytest.approx(np.average(cosines, weights=weights))
    assert _weigh_pairwise(gram, at)(counts[None])[0] == pytest.approx(products / total)


def test_a_resample_of_one_question_has_no_agreement():
    pairs = make_pairs(0.4, n=9, per_question=3, d_model=12)
    gram, at = _multiply((pairs.positive - pairs.negative)[:, 0]), np.array(pairs.questions)
    for make in (_weigh_agreement, _weigh_pairwise):
        assert np.isnan(make(gram, at)(np.array([[0.0, 3.0, 0.0]]))[0])


def test_the_intervals_of_agreement_hold_the_truth_as_often_as_they_say():
    """Two differences of signal s and noise of length 1 have cosine s² / (1 + s²), in many dimensions."""
    truth, hits = 0.5**2 / (1 + 0.5**2), 0
    for seed in range(30):
        found = measure_stability(make_pairs(0.5, n=16, n_layers=1, seed=seed), n_halvings=1, n_draws=1)
        hits += found.pairwise[0].low <= truth <= found.pairwise[0].high
    assert hits >= 25


def test_an_estimator_stands_in_for_the_mean_difference():
    pairs = make_pairs(0.5)
    own, theirs = (measure_stability(pairs, way, n_halvings=4, n_draws=4) for way in (None, MeanDifference()))
    for a, b in zip(own.cone + own.split_half, theirs.cone + theirs.split_half, strict=True):
        assert a.estimate == pytest.approx(b.estimate, abs=1e-4)


class Flipping:
    """A way whose sign changes from call to call, as a principal component's does."""

    def __init__(self):
        self.sign = 1.0

    def estimate(self, positive, negative, layer):
        self.sign = -self.sign
        return self.sign * (positive - negative).mean(dim=0)


def test_an_estimators_sign_means_nothing():
    found = measure_stability(
        make_pairs(1.0, n_layers=3), Flipping(), n_halvings=4, n_draws=4
    )  # odd, so that calls differ
    assert found.split_half[0].low > 0.5
    assert found.cone[0].high < 45


def test_too_few_questions_are_refused():
    with pytest.raises(pl.errors.InvalidArgumentError, match="at least 4 questions"):
        measure_stability(make_pairs(1.0, n=9, per_question=3))
    with pytest.raises(pl.errors.InvalidArgumentError, match="differ in each pair"):
        measure_stability(make_pairs(0.0, noise=0.0))
    for options in ({"n_halvings": 0}, {"n_draws": 0}, {"seed": -1}):
        with pytest.raises(pl.errors.InvalidArgumentError):
            measure_stability(make_pairs(1.0), **options)


def test_separation_is_that_of_two_gaussians_a_known_way_apart():
    """Along the axis the noise has standard deviation 1 / sqrt(800)."""
    spread = 800**-0.5
    found = measure_separation(5.0 * AXIS, make_pairs(spread, n=200))
    for layer in range(2):
        assert found.d_prime[layer].low < 1 < found.d_prime[layer].high
        assert found.auroc[layer].low < 0.7602 < found.auroc[layer].high  # Phi(1 / sqrt(2))
    assert (found.n_pairs, found.n_questions) == (200, 200)
    values = make_pairs(spread, n=200)
    plus, minus = values.positive[:, 0, 0], values.negative[:, 0, 0]
    expected = (plus.mean() - minus.mean()) / ((plus.var(correction=0) + minus.var(correction=0)) / 2).sqrt()
    assert found.d_prime[0].estimate == pytest.approx(float(expected), rel=1e-4)


def test_separation_by_folds_is_not_fooled_by_pairs_that_made_the_direction():
    noise = make_pairs(0.0, n=20, seed=1)
    own = measure_separation((noise.positive - noise.negative).mean(dim=0), noise)
    folds = pl.vectors.cross_validate_separation(noise)
    assert own.auroc[0].estimate > 0.95
    assert folds.auroc[0].low < 0.5 < folds.auroc[0].high
    assert pl.vectors.cross_validate_separation(make_pairs(1.0, n=5)).auroc[0].estimate == 1  # a fold may be one pair
    with pytest.raises(pl.errors.InvalidArgumentError, match="beside any fold"):
        pl.vectors.cross_validate_separation(make_pairs(1.0, n=4, per_question=3), n_folds=2)
    with pytest.raises(pl.errors.InvalidArgumentError, match="n_folds"):
        pl.vectors.cross_validate_separation(noise, n_folds=21)


def test_length_is_correlated_within_the_class_alone():
    pairs = make_pairs(1.0, n=60)
    lengths = [(40 + row % 7, 10 + row % 5) for row in range(60)]  # one class is longer: no confound by itself
    assert abs(pl.vectors.correlate_length(AXIS, pairs, lengths)[0].estimate) < 0.3
    follows = [
        (round(1000 * float(plus)), round(1000 * float(minus)))
        for plus, minus in zip(pairs.positive[:, 0, 0], pairs.negative[:, 0, 0], strict=True)
    ]
    assert pl.vectors.correlate_length(AXIS, pairs, follows)[0].low > 0.9
    with pytest.raises(pl.errors.InvalidArgumentError, match="lengths"):
        pl.vectors.correlate_length(AXIS, pairs, lengths[1:])


def test_style_that_the_vector_reads_is_found_and_style_that_it_does_not_is_not():
    heard = pl.vectors.measure_style(AXIS, make_pairs(1.0))
    deaf = pl.vectors.measure_style(AXIS, make_pairs(1.0, direction=7))
    assert heard.auroc[0].low > 0.9
    assert heard.cosine[0].estimate > 0.9
    assert deaf.auroc[0].low < 0.5 < deaf.auroc[0].high
    assert abs(deaf.cosine[0].estimate) < 0.1


def test_each_other_trait_is_named_with_its_cosine_and_separation():
    same, other = make_pairs(1.0, trait="shrill"), make_pairs(1.0, trait="kind", direction=7)
    found = pl.vectors.measure_specificity(AXIS, [same, other])
    assert [one.trait for one in found] == ["shrill", "kind"]
    expected = float(pl.tensors.cosine(AXIS[0], (same.positive - same.negative).mean(dim=0)[0]))
    assert found[0].cosine[0].estimate == pytest.approx(expected, abs=1e-5)
    assert found[0].cosine[0].low < expected < found[0].cosine[0].high
    assert abs(found[1].cosine[0].estimate) < 0.1
    with pytest.raises(pl.errors.InvalidArgumentError, match="directions"):
        pl.vectors.measure_specificity(AXIS[:1], [other])
