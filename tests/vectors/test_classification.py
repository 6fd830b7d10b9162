"""A direction as a classifier: its threshold, its sign, and scores of what it never saw."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.statistics import auroc
from persona_lens.vectors import ActivationPairs, MeanDifference, fit_classifier, score_held_out
from persona_lens.vectors.classification import LinearClassifier


class Backwards:
    """The mean difference with the wrong sign and another length: what an estimator is free to return."""

    def estimate(self, positive, negative, layer):
        return -7 * MeanDifference().estimate(positive, negative, layer)


def draw(n, seed, shift=0.0):
    return torch.randn(n, 48, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture
def pairs(tiny_model):
    positive, negative = (torch.randn(12, 3, 48, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    positive[:, 1] += 0.5  # the classes differ at layer 1 alone
    return ActivationPairs("made", pl.describe_model(tiny_model), positive, negative, tuple(i // 2 for i in range(12)))


@given(seed=st.integers(0, 50), n=st.integers(2, 9), shift=st.floats(0.1, 3.0))
def test_the_classes_that_it_was_found_on_have_mean_scores_of_a_half_and_minus_a_half(seed, n, shift):
    positive, negative = draw(n, seed, shift), draw(n, seed + 100)
    found = fit_classifier(positive, negative, MeanDifference(), 0)
    torch.testing.assert_close(found.score(positive).mean(), torch.tensor(0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.score(negative).mean(), torch.tensor(-0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.unit.norm(), torch.tensor(1.0))


def test_sign_and_length_of_what_an_estimator_returns_do_not_matter():
    positive, negative = draw(8, 0, 1.0), draw(8, 1)
    expected, found = (fit_classifier(positive, negative, one, 0) for one in (MeanDifference(), Backwards()))
    torch.testing.assert_close(found.unit, expected.unit)
    assert found.threshold == pytest.approx(expected.threshold, rel=1e-4)


def test_a_direction_along_which_the_classes_do_not_differ_is_refused():
    class Across:
        def estimate(self, positive, negative, layer):
            return torch.eye(48)[1]

    positive, negative = torch.zeros(2, 48), torch.zeros(2, 48)
    positive[:, 0] = 1.0
    with pytest.raises(pl.errors.InvalidArgumentError, match="differ"):
        fit_classifier(positive, negative, Across(), 0)
    with pytest.raises(pl.errors.InvalidArgumentError, match="gap"):
        LinearClassifier(torch.ones(2), 0.0, 0.0)
    with pytest.raises(pl.errors.InvalidArgumentError, match="length above zero"):
        fit_classifier(negative, negative, MeanDifference(), 0)


def test_held_out_pairs_are_scored_by_a_direction_that_never_saw_their_fold(pairs):
    folds = [question % 3 for question in pairs.questions]
    positive, negative = score_held_out(pairs, MeanDifference(), 1, folds)
    held_out = [i for i, fold in enumerate(folds) if fold == 2]
    seen = [i for i, fold in enumerate(folds) if fold != 2]
    found = fit_classifier(pairs.positive[seen, 1], pairs.negative[seen, 1], MeanDifference(), 1)
    torch.testing.assert_close(positive[held_out], found.score(pairs.positive[held_out, 1]))
    torch.testing.assert_close(negative[held_out], found.score(pairs.negative[held_out, 1]))
    assert auroc(positive, negative) > 0.8
    elsewhere = score_held_out(pairs, MeanDifference(), 0, folds)
    assert auroc(*elsewhere) < 0.8


@pytest.mark.parametrize(("folds", "rule"), [([0] * 12, "at least two"), ([0, 1], "number each of the 12 pairs")])
def test_folds_that_leave_nothing_out_or_do_not_fit_are_refused(pairs, folds, rule):
    with pytest.raises(pl.errors.InvalidArgumentError, match=rule):
        score_held_out(pairs, MeanDifference(), 1, folds)


def test_a_layer_that_the_model_does_not_have_is_refused(pairs):
    with pytest.raises(pl.errors.LayerOutOfRangeError):
        score_held_out(pairs, MeanDifference(), 3, [0, 1] * 6)
