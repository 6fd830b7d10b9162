"""Training with SAELens, on activations that are sums of few known directions."""

import pytest
import torch

import persona_lens as pl
from persona_lens.vectors import AutoencoderSettings, train_autoencoder

SMALL = AutoencoderSettings(n_features=24, k=2, n_steps=300, batch_size=64, learning_rate=5e-3)


def make_activations(n=2000):
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    present = torch.rand(n, 24, generator=generator).argsort(dim=1) < 2
    return (present * (1 + torch.rand(n, 24, generator=generator))) @ atoms * 10 + 3, atoms


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SAELens' own
def test_what_the_activations_are_made_of_is_found_and_comes_back_from_the_folder(tmp_path):
    pytest.importorskip("sae_lens", exc_type=ImportError)
    activations, _ = make_activations()
    state = torch.random.get_rng_state()
    found = train_autoencoder(activations, 1, SMALL, folder=tmp_path / "sae")
    assert torch.equal(torch.random.get_rng_state(), state)
    held_out, _ = make_activations(2500)
    held_out = held_out[2000:]
    missed = (held_out - found.decode(found.encode(held_out))).square().sum()
    assert float(1 - missed / (held_out - held_out.mean(dim=0)).square().sum()) > 0.5
    assert bool(((found.encode(held_out) > 0).sum(dim=1) <= 2).all())
    again = pl.vectors.read_autoencoder(tmp_path / "sae")
    assert torch.equal(again.decoder, found.decoder)
    assert again.layer == 1
    assert AutoencoderSettings.load(tmp_path / "sae" / "settings.json") == SMALL
    assert torch.equal(train_autoencoder(activations, 1, SMALL).decoder, found.decoder)


@pytest.mark.parametrize(
    "changed", [{"k": 0}, {"k": 25}, {"n_features": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"seed": -1}]
)
def test_settings_that_mean_nothing_are_refused(changed):
    with pytest.raises(pl.errors.InvalidArgumentError, match=next(iter(changed))):
        AutoencoderSettings(**{"n_features": 24, "k": 2} | changed)


def test_activations_that_cannot_be_trained_on_are_refused_before_sae_lens_is_asked_for():
    for wrong in (torch.ones(64, 16), torch.full((65, 16), torch.nan)):
        with pytest.raises(pl.errors.InvalidArgumentError, match="activations"):
            train_autoencoder(wrong, 1, SMALL)
    with pytest.raises(pl.errors.InvalidArgumentError, match="layer"):
        train_autoencoder(torch.ones(65, 16), -1, SMALL)
