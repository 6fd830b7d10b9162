"""Features beside a vector, and the checks of the decomposition, on autoencoders whose answers one knows."""

import pytest
import torch

import persona_lens as pl
from persona_lens.models import TokenSpans
from persona_lens.vectors import SparseAutoencoder, check_decomposition, measure_reconstruction, rank_features


def make_identity(d_model, **more):
    """An autoencoder whose features are the axes, in both directions; it loses nothing."""
    axes = torch.cat([torch.eye(d_model), -torch.eye(d_model)])
    parts = {"encoder": axes.T, "encoder_bias": torch.zeros(2 * d_model), "decoder": axes}
    return SparseAutoencoder(**parts, decoder_bias=torch.zeros(d_model), activation="standard", **more)


def test_the_nearest_feature_comes_first_whatever_its_sign():
    autoencoder = make_identity(4)
    first, second, *rest = rank_features(torch.tensor([0.0, -3.0, 1.0, 0.0]), autoencoder, 4)
    assert {first.feature, second.feature} == {1, 5}
    assert (
        first.cosine == pytest.approx(-second.cosine) == pytest.approx(-3 / 10**0.5 * (1 if first.feature == 1 else -1))
    )
    assert {one.feature for one in rest} == {2, 6}


def test_a_vector_of_the_features_own_is_decomposed_without_loss():
    vector = torch.tensor([0.0, 2.0, 1.0, 0.0])
    found = check_decomposition(vector, make_identity(4), torch.full((3, 4), 2.0), n_terms=2)
    assert found.relative_norm == pytest.approx(5**0.5 / 4)
    assert (found.n_firing, found.shared_with_zero) == (2, 0.0)
    assert found.reconstruction_cosine == pytest.approx(1)
    assert found.shifted_cosine == pytest.approx(1)
    assert found.negative_share == pytest.approx(0.5)
    assert found.explained == pytest.approx(1)


def test_what_lies_below_zero_is_lost_and_said_to_be():
    axes = torch.eye(4)
    autoencoder = SparseAutoencoder(axes, torch.zeros(4), axes, torch.zeros(4), "standard")
    found = check_decomposition(torch.tensor([-2.0, 1.0, 0.0, 0.0]), autoencoder, torch.full((3, 4), 9.0), n_terms=2)
    assert found.negative_share == pytest.approx(0.8)
    assert found.negative_terms == pytest.approx(0.5)
    assert found.reconstruction_cosine == pytest.approx(1 / 5**0.5)
    assert found.shifted_cosine == pytest.approx(1)  # at activations long enough, less of a feature is possible


def test_features_that_the_bias_alone_makes_fire_are_told():
    axes = torch.eye(4)
    autoencoder = SparseAutoencoder(axes, torch.tensor([5.0, 5.0, -1.0, -1.0]), axes, torch.zeros(4), "standard")
    found = check_decomposition(torch.tensor([0.1, 0.1, 1.5, 0.0]), autoencoder, torch.ones(2, 4), n_terms=2)
    assert (found.n_firing, found.shared_with_zero) == (3, pytest.approx(2 / 3))


def make_spans(n=4):
    rows = torch.randint(0, 200, (n, 14), generator=torch.Generator().manual_seed(0)).tolist()
    return [TokenSpans(tuple(row), 4, 10 + index) for index, row in enumerate(rows)]


def test_an_autoencoder_that_loses_nothing_recovers_the_loss(tiny_model):
    found = measure_reconstruction(tiny_model, make_identity(48), make_spans(), layer=1)
    assert found.explained_variance == pytest.approx(1, abs=1e-5)
    assert found.loss_reconstructed.estimate == pytest.approx(found.loss.estimate, abs=1e-4)
    assert found.loss_recovered == pytest.approx(1, abs=1e-3)
    assert found.n_tokens == 6 + 7 + 8 + 9
    assert found.n_firing == pytest.approx(48, abs=1)


def test_the_loss_is_that_of_the_response_and_averaging_changes_it(tiny_model):
    spans = make_spans()
    found = measure_reconstruction(tiny_model, make_identity(48), spans, layer=1)
    own = []
    for one in spans:
        with torch.no_grad():
            logits = tiny_model(torch.tensor([one.tokens[: one.response_end]]))[0].log_softmax(dim=-1)
        own.append(-sum(logits[t - 1, one.tokens[t]] for t in range(5, one.response_end)) / (one.response_end - 5))
    assert found.loss.estimate == pytest.approx(float(torch.stack(own).mean()), abs=1e-4)
    assert abs(found.loss_averaged.estimate - found.loss.estimate) > 1e-3


def test_what_does_not_fit_is_refused(tiny_model):
    for wrong in (
        lambda: rank_features(torch.ones(5), make_identity(4), 2),
        lambda: rank_features(torch.zeros(4), make_identity(4), 2),
        lambda: rank_features(torch.ones(4), make_identity(4), 9),
        lambda: check_decomposition(torch.ones(4), make_identity(4), torch.ones(0, 4), n_terms=2),
        lambda: measure_reconstruction(tiny_model, make_identity(48), make_spans()),
        lambda: measure_reconstruction(tiny_model, make_identity(48), make_spans(1), layer=1),
        lambda: measure_reconstruction(tiny_model, make_identity(47), make_spans(), layer=1),
    ):
        with pytest.raises(pl.errors.InvalidArgumentError):
            wrong()
