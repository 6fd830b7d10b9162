"""Every estimator of a direction against another implementation, on activations whose direction is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.vectors import (
    ActivationPairs,
    CleanedDifference,
    FirstComponent,
    LogisticProbe,
    MeanDifference,
    ShrunkLDA,
    WithoutShared,
    find_vector,
)

SIMPLE = [MeanDifference(), FirstComponent(), LogisticProbe(), ShrunkLDA()]
SEEDS = st.integers(0, 10_000)


def plant(seed, n_pairs=60, d_model=12, length=3.0, spread=0.5):
    """Return pairs that share a question's own offset and differ by a known direction, and that direction."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=d_model)
    direction /= np.linalg.norm(direction)
    question = rng.normal(size=(n_pairs, d_model))
    noise = spread * rng.normal(size=(2, n_pairs, d_model))
    positive = question + noise[0] + length / 2 * direction
    negative = question + noise[1] - length / 2 * direction
    return torch.tensor(positive).float(), torch.tensor(negative).float(), torch.tensor(direction).float()


def unit(vector):
    wide = np.asarray(vector, dtype=float)
    return wide / np.linalg.norm(wide)


def cosine(one, other):
    return float(unit(one) @ unit(other))


def rotate(seed, d_model):
    return torch.linalg.qr(torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(seed)))[0]


def make_pairs(model, n_pairs=8, seed=0, **changed):
    n_layers, d_model = model.cfg.n_layers, model.cfg.d_model
    both = torch.randn(2, n_pairs, n_layers, d_model, generator=torch.Generator().manual_seed(seed))
    both[0] += 0.5
    given = {"questions": tuple(range(n_pairs)), "positive": both[0], "negative": both[1]} | changed
    return ActivationPairs("loud", pl.describe_model(model), **given)


@pytest.mark.parametrize("estimator", SIMPLE, ids=lambda one: type(one).__name__)
@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_planted_direction_is_recovered(estimator, seed):
    positive, negative, direction = plant(seed, n_pairs=200)
    found = estimator.estimate(positive, negative, 0)
    assert abs(cosine(found, direction)) > (0.9 if isinstance(estimator, LogisticProbe) else 0.97)
    if not isinstance(estimator, FirstComponent):  # a component has no sign of its own
        assert cosine(found, direction) > 0


@pytest.mark.parametrize("estimator", SIMPLE, ids=lambda one: type(one).__name__)
@settings(max_examples=10)
@given(seed=SEEDS)
def test_the_direction_turns_with_the_axes_and_does_not_depend_on_the_order_of_the_pairs(estimator, seed):
    positive, negative, _ = plant(seed)
    turn, order = rotate(seed, 12), torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    found = estimator.estimate(positive, negative, 0)
    assert abs(cosine(estimator.estimate(positive @ turn, negative @ turn, 0), found @ turn)) > 1 - 1e-6
    assert abs(cosine(estimator.estimate(positive[order], negative[order], 0), found)) > 1 - 1e-9


@pytest.mark.parametrize("estimator", SIMPLE, ids=lambda one: type(one).__name__)
@settings(max_examples=10)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), shift=st.floats(-5, 5))
def test_neither_a_common_offset_nor_the_unit_of_the_activations_changes_it(estimator, seed, scale, shift):
    positive, negative, _ = plant(seed)
    found = estimator.estimate(positive, negative, 0)
    moved = estimator.estimate(positive * scale + shift * scale, negative * scale + shift * scale, 0)
    assert abs(cosine(moved, found)) > 1 - 1e-6


@settings(max_examples=10)
@given(seed=SEEDS)
def test_the_first_component_is_numpys_and_scikit_learns_largest(seed):
    positive, negative, _ = plant(seed, n_pairs=15)
    found = FirstComponent().estimate(positive, negative, 0)
    differences = (positive - negative).double().numpy()
    values, axes = np.linalg.eigh(differences.T @ differences)
    assert abs(cosine(found, axes[:, np.argmax(values)])) > 1 - 1e-10
    svd = TruncatedSVD(n_components=1, algorithm="arpack", random_state=0).fit(differences)
    assert abs(cosine(found, svd.components_[0])) > 1 - 1e-10


def test_the_first_component_is_not_that_of_centred_differences():
    """Pairs that differ alike have a component; once centred, nothing of it is left."""
    difference = torch.tensor([[5.0, 0.5], [5.0, -0.5], [5.0, 1.0], [5.0, -1.0]])
    assert abs(FirstComponent().estimate(difference, torch.zeros(4, 2), 0)[0]) > 1 - 1e-6


@settings(max_examples=5)
@given(seed=SEEDS, strength=st.sampled_from([0.1, 1.0, 10.0]))
def test_the_probe_minimises_its_formula(seed, strength):
    positive, negative, _ = plant(seed, n_pairs=20, d_model=6)
    both = torch.cat([positive, negative]).double().numpy()
    centred = both - both.mean(axis=0)
    rows = centred / np.sqrt((centred**2).mean())
    sign = np.repeat([1.0, -1.0], 20)

    def loss(weights):
        return np.logaddexp(0, -sign * (rows @ weights[:-1] + weights[-1])).sum() + strength / 2 * (
            weights[:-1] @ weights[:-1]
        )

    expected = minimize(loss, np.zeros(7), tol=1e-10).x[:-1]
    found = LogisticProbe(strength).estimate(positive, negative, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_great_strength_makes_the_probe_the_mean_difference():
    positive, negative, _ = plant(0)
    found = LogisticProbe(1e6).estimate(positive, negative, 0)
    assert cosine(found, positive.mean(0) - negative.mean(0)) > 1 - 1e-6
    assert cosine(LogisticProbe(1e-2).estimate(positive, negative, 0), found) < 1 - 1e-3


@settings(max_examples=10)
@given(seed=SEEDS, n_pairs=st.sampled_from([4, 20, 200]))
def test_lda_is_numpys_with_scikit_learns_covariance(seed, n_pairs):
    """With fewer answers than dimensions too, where the inverse is taken another way."""
    positive, negative, _ = plant(seed, n_pairs=n_pairs, d_model=16)
    found = ShrunkLDA().estimate(positive, negative, 0).numpy()
    within = np.concatenate([one.double().numpy() - one.double().numpy().mean(axis=0) for one in (positive, negative)])
    covariance = LedoitWolf(assume_centered=True).fit(within).covariance_
    expected = np.linalg.solve(covariance, (positive.double().mean(0) - negative.double().mean(0)).numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_lda_is_close_to_scikit_learns_own_which_shrinks_each_class_by_itself():
    positive, negative, _ = plant(3, n_pairs=400)
    both, is_positive = torch.cat([positive, negative]).numpy(), np.arange(800) < 400
    for shrinkage in ({"covariance_estimator": LedoitWolf()}, {"shrinkage": "auto"}):
        peer = LinearDiscriminantAnalysis(solver="lsqr", **shrinkage).fit(both, is_positive)
        assert cosine(ShrunkLDA().estimate(positive, negative, 0), peer.coef_[0]) > 0.999


def test_lda_follows_any_linear_map_where_there_is_nothing_to_shrink():
    """Its values on activations stay the same, though its direction does not: the covector is what is carried over."""
    positive, negative, _ = plant(1, n_pairs=20_000, d_model=4)
    bend = torch.eye(4) + 0.5 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    plain = ShrunkLDA().estimate(positive, negative, 0)
    bent = ShrunkLDA().estimate(positive @ bend, negative @ bend, 0)
    assert cosine(bend @ bent, plain) > 0.9999
    mean = (positive @ bend).mean(0) - (negative @ bend).mean(0)
    assert cosine(torch.linalg.inv(bend).T @ mean @ bend.T, plain) < 0.999  # the mean difference is carried otherwise


def test_lda_discounts_what_varies_anyway():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 300, 2, generator=generator) * torch.tensor([5.0, 0.5])
    positive, negative = noise[0] + torch.tensor([2.0, 1.0]), noise[1]
    found = ShrunkLDA().estimate(positive, negative, 0)
    assert abs(found[1]) > 5 * abs(found[0])
    assert (positive.mean(0) - negative.mean(0))[0] > 1.0


def test_without_variance_within_the_classes_lda_is_the_mean_difference_and_a_probe_still_has_a_direction():
    positive, negative = torch.tensor([[1.0, 2.0]] * 3), torch.tensor([[0.0, 0.0]] * 3)
    for estimator in (ShrunkLDA(), LogisticProbe(), FirstComponent()):
        assert abs(cosine(estimator.estimate(positive, negative, 0), [1.0, 2.0])) > 1 - 1e-6


@settings(max_examples=10)
@given(seed=SEEDS, n_components=st.integers(1, 5))
def test_a_cleaned_difference_is_what_regression_on_the_components_leaves(seed, n_components):
    positive, negative, _ = plant(seed)
    generator = torch.Generator().manual_seed(seed)
    ordinary = torch.randn(30, 2, 12, generator=generator) * torch.arange(1, 13) + 7
    found = CleanedDifference(ordinary, n_components).estimate(positive, negative, 1).double().numpy()
    texts = ordinary[:, 1].double().numpy()
    _, axes = np.linalg.eigh(np.cov(texts.T))
    top = axes[:, ::-1][:, :n_components]
    difference = (positive.mean(0) - negative.mean(0)).double().numpy()
    expected = difference - top @ np.linalg.lstsq(top, difference, rcond=None)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(top.T @ found, 0, atol=1e-5)


def test_a_confound_of_ordinary_text_goes_and_the_trait_stays():
    generator = torch.Generator().manual_seed(0)
    confound, trait = torch.eye(12)[0], torch.eye(12)[1]
    ordinary = torch.randn(50, 1, 12, generator=generator) + 8 * torch.randn(50, 1, 1, generator=generator) * confound
    noise = torch.randn(2, 40, 12, generator=generator)
    positive, negative = noise[0] + 6 * confound + 2 * trait, noise[1]
    assert cosine(MeanDifference().estimate(positive, negative, 0), confound) > 0.9
    assert cosine(CleanedDifference(ordinary, 1).estimate(positive, negative, 0), trait) > 0.9


def make_vectors(model, directions):
    info = pl.describe_model(model)
    return tuple(pl.PersonaVector(f"trait {i}", info, {"response_mean": one}) for i, one in enumerate(directions))


def test_without_the_shared_direction_nothing_lies_along_the_mean_of_the_unit_vectors(tiny_model):
    pairs = make_pairs(tiny_model)
    raw = (
        torch.randn(3, 3, 48, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1.0, 5.0, 20.0])[:, None, None]
    )
    found = find_vector(pairs, WithoutShared(make_vectors(tiny_model, raw)))
    for layer in range(3):
        shared = np.mean([unit(one[layer]) for one in raw], axis=0)
        assert abs(cosine(found.direction(layer), shared)) < 1e-6
        difference = np.asarray(pairs.positive[:, layer].mean(0) - pairs.negative[:, layer].mean(0), dtype=float)
        rest = difference - (difference @ unit(shared)) * unit(shared)
        assert cosine(found.direction(layer), rest) > 1 - 1e-6


def test_vectors_of_several_models_or_too_few_are_refused(tiny_model):
    pairs = make_pairs(tiny_model)
    vectors = make_vectors(tiny_model, torch.randn(3, 3, 48))
    foreign = pl.models.ModelInfo(**(vars(vectors[0].model) | {"fingerprint": "another"}))
    other = pl.PersonaVector("x", foreign, dict(vectors[0].by_position))
    with pytest.raises(InvalidArgumentError, match="others"):
        WithoutShared(vectors[:1])
    with pytest.raises(ModelMismatchError, match="others"):
        WithoutShared((*vectors, other))
    with pytest.raises(ModelMismatchError, match="pairs' model"):
        find_vector(pairs, WithoutShared((other, other)))
    with pytest.raises(InvalidArgumentError, match="width"):
        WithoutShared(vectors).estimate(torch.randn(4, 7), torch.randn(4, 7), 0)


def test_a_difference_that_is_removed_wholly_is_refused(tiny_model):
    pairs = make_pairs(tiny_model)
    mean = find_vector(pairs).directions
    with pytest.raises(InvalidArgumentError, match="wholly"):
        find_vector(pairs, WithoutShared(make_vectors(tiny_model, [mean, 2 * mean])))


@pytest.mark.parametrize("estimator", SIMPLE[1:], ids=lambda one: type(one).__name__)
def test_activations_that_are_not_finite_are_refused_by_name(estimator):
    with pytest.raises(InvalidArgumentError, match="negative"):
        estimator.estimate(torch.randn(4, 6), torch.full((4, 6), float("inf")), 0)


@pytest.mark.parametrize("estimator", [LogisticProbe(), ShrunkLDA()], ids=lambda one: type(one).__name__)
def test_a_probe_takes_classes_of_unequal_size_but_no_empty_one(estimator):
    positive, negative, direction = plant(0, n_pairs=200)
    assert cosine(estimator.estimate(positive, negative[:150], 0), direction) > 0.9
    with pytest.raises(InvalidArgumentError, match="negative"):
        estimator.estimate(positive, negative[:0], 0)


@pytest.mark.parametrize("n_components", [0, 11, 30])
def test_more_components_than_texts_or_dimensions_allow_are_refused(n_components):
    with pytest.raises(InvalidArgumentError, match="n_components"):
        CleanedDifference(torch.randn(12, 2, 11), n_components)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_a_strength_that_is_no_penalty_is_refused(strength):
    with pytest.raises(InvalidArgumentError, match="strength"):
        LogisticProbe(strength)


@pytest.mark.parametrize("estimator", SIMPLE, ids=lambda one: type(one).__name__)
def test_a_vector_points_to_the_trait_and_one_step_leads_from_mean_to_mean_along_it(tiny_model, estimator):
    """Also where the estimator's own sign is turned by chance, as a component's is."""
    for seed in range(3):
        pairs = make_pairs(tiny_model, seed=seed)
        found = find_vector(pairs, estimator)
        for layer in range(3):
            difference = pairs.positive[:, layer].mean(0) - pairs.negative[:, layer].mean(0)
            along = float(difference @ torch.tensor(unit(found.direction(layer))).float())
            assert along > 0
            assert float(found.norms[layer]) == pytest.approx(along, rel=1e-5)


@pytest.mark.parametrize("estimator", SIMPLE, ids=lambda one: type(one).__name__)
def test_a_vector_is_the_same_twice_and_says_how_it_was_found(tiny_model, estimator):
    pairs = make_pairs(tiny_model)
    found = find_vector(pairs, estimator)
    assert torch.equal(found.directions, find_vector(pairs, estimator).directions)
    assert found.provenance["estimator"]["kind"] == type(estimator).__name__
    assert found.split_half_cosine["response_mean"].shape == (3,)
    halves = [find_vector(pairs.take(range(half, 8, 2)), estimator).directions for half in (0, 1)]
    torch.testing.assert_close(found.split_half_cosine["response_mean"].abs(), pl.cosine(*halves).abs())


def test_provenance_tells_one_setting_from_another(tiny_model):
    pairs = make_pairs(tiny_model)
    ordinary = torch.randn(9, 3, 48, generator=torch.Generator().manual_seed(0))
    vectors = make_vectors(tiny_model, torch.randn(3, 3, 48))
    estimators = [
        LogisticProbe(), LogisticProbe(2.0), CleanedDifference(ordinary, 1), CleanedDifference(ordinary, 2),
        CleanedDifference(ordinary + 1, 1), WithoutShared(vectors), WithoutShared(vectors[:2]),
    ]  # fmt: skip
    told = [str(find_vector(pairs, one).provenance["estimator"]) for one in estimators]
    assert len(set(told)) == len(told)


def test_pairs_that_do_not_differ_have_no_direction(tiny_model):
    same = torch.randn(8, 3, 48, generator=torch.Generator().manual_seed(0))
    pairs = make_pairs(tiny_model, positive=same, negative=same)
    for estimator in SIMPLE:
        with pytest.raises(InvalidArgumentError, match="estimator"):
            find_vector(pairs, estimator)
    assert not FirstComponent().estimate(same[:, 0], same[:, 0], 0).any()
    still = torch.ones(4, 6)
    assert not LogisticProbe().estimate(still, still, 0).any()


class Across:
    """A direction that every answer has as much of."""

    def estimate(self, positive, negative, layer):
        return torch.eye(48)[0]


def test_a_direction_along_which_the_means_do_not_differ_is_refused(tiny_model):
    pairs = make_pairs(tiny_model)
    both = [one.index_fill(2, torch.tensor([0]), 1.0) for one in (pairs.positive, pairs.negative)]
    with pytest.raises(InvalidArgumentError, match="means of the two classes differ"):
        find_vector(make_pairs(tiny_model, positive=both[0], negative=both[1]), Across())


def test_halves_are_of_the_questions_and_not_of_the_pairs(tiny_model):
    pairs = make_pairs(tiny_model, questions=(0, 0, 0, 0, 1, 1, 1, 1))
    halves = [find_vector(pairs.take(rows)).directions for rows in (range(4), range(4, 8))]
    torch.testing.assert_close(find_vector(pairs).split_half_cosine["response_mean"], pl.cosine(*halves))


def test_where_nothing_varies_a_difference_outweighs_all_others():
    """Both classes vary by one step along the first axis, so that nothing is shrunk; along the second not at all."""
    positive, negative = torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([[-1.0, -1.0], [-3.0, -1.0]])
    assert cosine(ShrunkLDA().estimate(positive, negative, 0), [0.0, 1.0]) > 1 - 1e-9
    flat = torch.tensor([1.0, 0.0])
    assert cosine(ShrunkLDA().estimate(positive * flat, negative * flat, 0), flat) > 1 - 1e-9


def test_what_an_estimator_removes_fits_the_pairs(tiny_model):
    ordinary = torch.randn(9, 3, 48, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidArgumentError, match="`ordinary` must be finite"):
        CleanedDifference(ordinary / 0, 1)
    cleaned = CleanedDifference(ordinary, 1)
    for width, layer in ((7, 0), (48, 3), (48, -1)):
        with pytest.raises(InvalidArgumentError, match="`ordinary` must have the pairs' width"):
            cleaned.estimate(torch.randn(4, width), torch.randn(4, width), layer)
    one, other = make_vectors(tiny_model, torch.randn(2, 3, 48))
    elsewhere = pl.PersonaVector("x", other.model, {"last_prompt": other.directions}, "last_prompt")
    with pytest.raises(InvalidArgumentError, match="one token position"):
        WithoutShared((one, elsewhere))
