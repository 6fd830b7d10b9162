"""Autoencoders in SAELens' format, by files written here; where SAELens is installed, against its own reading."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import persona_lens as pl
from persona_lens.vectors import SparseAutoencoder, read_autoencoder

D_MODEL, N = 6, 10


def make_weights(**more):
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D_MODEL, N), "b_enc": (N,), "W_dec": (N, D_MODEL), "b_dec": (D_MODEL,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | more


def write(folder, weights=None, **config):
    folder.mkdir(exist_ok=True)
    save_file(make_weights() if weights is None else weights, folder / "sae_weights.safetensors")
    plain = {"d_in": D_MODEL, "d_sae": N, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
    plain |= {"normalize_activations": "none", "reshape_activations": "none", "architecture": "standard"}
    plain |= {"metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.4.hook_resid_post"}}
    (folder / "cfg.json").write_text(json.dumps(plain | config))
    return folder


def test_a_standard_one_reads_and_writes_as_its_formula_says(tmp_path):
    w = make_weights()
    found = read_autoencoder(write(tmp_path))
    x = torch.randn(3, D_MODEL)
    features = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(found.encode(x), features)
    torch.testing.assert_close(found.decode(features), features @ w["W_dec"] + w["b_dec"])
    assert (found.layer, found.activation, found.n_features) == (4, "standard", N)
    torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(N))


def test_a_top_k_one_leaves_the_highest_and_nothing_below_zero(tmp_path):
    found = read_autoencoder(write(tmp_path, architecture="topk", k=3))
    x = torch.randn(20, D_MODEL)
    features, whole = found.encode(x), read_autoencoder(write(tmp_path / "plain")).encode(x)
    assert bool(((features > 0).sum(dim=1) <= 3).all())
    torch.testing.assert_close(features.max(dim=1).values, whole.max(dim=1).values)
    old = write(tmp_path / "old", activation_fn_str="topk", activation_fn_kwargs={"k": 3}, metadata={})
    torch.testing.assert_close(read_autoencoder(old).encode(x), features)


def test_lengths_of_the_decoder_count_where_they_are_said_to(tmp_path):
    x, w = torch.randn(5, D_MODEL), make_weights()
    found = read_autoencoder(write(tmp_path, architecture="topk", k=2, rescale_acts_by_decoder_norm=True))
    before = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * w["W_dec"].norm(dim=1)
    assert torch.equal(found.encode(x).argmax(dim=1), before.argmax(dim=1))
    torch.testing.assert_close(found.decoder.norm(dim=1), torch.ones(N))


def test_a_jumprelu_leaves_what_is_above_its_threshold(tmp_path):
    threshold = torch.full((N,), 0.7)
    found = read_autoencoder(write(tmp_path, make_weights(threshold=threshold), architecture="jumprelu"))
    features = found.encode(torch.randn(50, D_MODEL))
    assert bool(((features == 0) | (features > 0.7)).all())
    assert bool((features > 0.7).any())


@pytest.mark.parametrize(
    "config",
    [{"architecture": "gated"}, {"architecture": None}, {"normalize_activations": "layer_norm"},
     {"reshape_activations": "hook_z"}, {"activation_fn": "tanh-relu"}, {"architecture": "topk", "k": 11},
     {"architecture": "topk"}, {"architecture": "jumprelu"}],
)  # fmt: skip
def test_a_kind_that_would_be_read_wrongly_is_refused(tmp_path, config):
    with pytest.raises(pl.errors.FileFormatError):
        read_autoencoder(write(tmp_path, **config))


def test_one_for_scaled_activations_is_refused_until_it_is_folded(tmp_path):
    with pytest.raises(pl.errors.FileFormatError, match=r"normalize_activations.*fold_activation_norm_scaling_factor"):
        read_autoencoder(write(tmp_path, normalize_activations="expected_average_only_in"))


def test_a_published_one_that_sae_lens_could_not_fold_is_refused(monkeypatch):
    config = {"architecture": "standard", "normalize_activations": "expected_average_only_in"}

    class Published:
        cfg = SimpleNamespace(to_dict=lambda: config)

        @classmethod
        def from_pretrained(cls, release, sae_id, device):
            return cls()

        def state_dict(self):
            return make_weights()

    monkeypatch.setitem(sys.modules, "sae_lens", SimpleNamespace(SAE=Published))
    with pytest.raises(pl.errors.FileFormatError, match="normalize_activations"):
        pl.vectors.load_autoencoder("a-release", "an-id")
    config["normalize_activations"] = "none"
    assert pl.vectors.load_autoencoder("a-release", "an-id").n_features == N


@pytest.mark.slow
def test_what_sae_lens_folds_is_read_as_it_reads_scaled_activations(tmp_path):
    pytest.importorskip("sae_lens", exc_type=ImportError)
    from persona_lens.vectors.contents.autoencoders import import_sae_lens

    x, scale = torch.randn(9, D_MODEL), 0.25
    threshold = make_weights(threshold=torch.full((N,), 0.7))
    folder = write(tmp_path, threshold, architecture="jumprelu", normalize_activations="expected_average_only_in")
    theirs = import_sae_lens().SAE.load_from_disk(folder)
    scaled = theirs.encode(scale * x).detach()
    theirs.fold_activation_norm_scaling_factor(scale)
    theirs.save_model(tmp_path / "folded")
    torch.testing.assert_close(read_autoencoder(tmp_path / "folded").encode(x), scaled, atol=1e-5, rtol=1e-5)


def test_damaged_files_and_shapes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cfg\.json"):
        read_autoencoder(tmp_path)
    bad = make_weights(b_dec=torch.zeros(D_MODEL + 1))
    with pytest.raises(pl.errors.FileFormatError, match="decoder_bias"):
        read_autoencoder(write(tmp_path, bad))
    nan = make_weights(b_enc=torch.full((N,), torch.nan))
    with pytest.raises(pl.errors.FileFormatError, match="finite"):
        read_autoencoder(write(tmp_path, nan))
    (tmp_path / "cfg.json").write_text("[1]")
    with pytest.raises(pl.errors.FileFormatError):
        read_autoencoder(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"none")
    with pytest.raises(pl.errors.FileFormatError):
        read_autoencoder(tmp_path)


@pytest.mark.parametrize(("hook", "layer"), [
    ("blocks.7.hook_resid_post", 7), ("blocks.7.hook_resid_pre", 6), ("blocks.7.hook_mlp_out", None), ("", None),
])  # fmt: skip
def test_the_layer_is_the_block_after_which_it_was_trained(tmp_path, hook, layer):
    assert read_autoencoder(write(tmp_path, metadata={"hook_name": hook})).layer == layer


def test_an_autoencoder_of_parts_that_do_not_fit_is_refused():
    w = make_weights()
    parts = {"encoder": w["W_enc"], "encoder_bias": w["b_enc"], "decoder": w["W_dec"], "decoder_bias": w["b_dec"]}
    for wrong in ({"activation": "topk"}, {"activation": "topk", "k": 0}, {"activation": "jumprelu"}):
        with pytest.raises(pl.errors.InvalidArgumentError):
            SparseAutoencoder(**parts, **wrong)
    whole = SparseAutoencoder(**parts, activation="standard")
    with pytest.raises(pl.errors.InvalidArgumentError, match="activations"):
        whole.encode(torch.ones(2, D_MODEL + 1))
    with pytest.raises(pl.errors.InvalidArgumentError, match="features"):
        whole.decode(torch.ones(2, N + 1))


def test_a_name_needs_sae_lens_and_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sae_lens", None)
    with pytest.raises(ImportError, match=r"persona-lens\[sae\]"):
        pl.vectors.load_autoencoder("some-release", "some-id")


@pytest.mark.slow
def test_sae_lens_reads_its_format_alike(tmp_path):
    pytest.importorskip("sae_lens", exc_type=ImportError)
    from persona_lens.vectors.contents.autoencoders import import_sae_lens

    x = torch.randn(9, D_MODEL)
    cases = [{"architecture": "standard"}, {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True},
             {"architecture": "topk", "k": 3}, {"architecture": "standard", "apply_b_dec_to_input": False}]  # fmt: skip
    for index, config in enumerate(cases):
        folder = write(tmp_path / str(index), **config)
        theirs, ours = import_sae_lens().SAE.load_from_disk(folder), read_autoencoder(folder)
        torch.testing.assert_close(ours.decode(ours.encode(x)), theirs(x).detach(), atol=1e-5, rtol=1e-5)
