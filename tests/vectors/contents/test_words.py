"""A vector's words through the Jacobian lens."""

import pytest
import torch

import persona_lens as pl
from persona_lens.vectors import read_jacobian_words, read_unembedding

TEXTS = ["The kettle sings on the stove while it rains.", "A ship left the harbour before anyone was awake."]
DIRECTIONS = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))


def test_at_the_last_layer_the_lens_reads_what_the_unembedding_reads(tiny_model):
    (found,) = read_jacobian_words(tiny_model, [DIRECTIONS], TEXTS, layers=[2], n_random=2)
    (last,) = found.layers
    plain = read_unembedding(tiny_model, DIRECTIONS).layers[2]
    assert last.words.promoted == plain.promoted
    assert last.gain == pytest.approx(1)
    assert last.random_gain.low == pytest.approx(1)


def test_vectors_are_read_alike_alone_and_together_and_again(tiny_model):
    pair = read_jacobian_words(tiny_model, [DIRECTIONS, -2 * DIRECTIONS], TEXTS, layers=[0], n_random=3, seed=1)
    alone = read_jacobian_words(tiny_model, [DIRECTIONS], TEXTS, layers=[0], n_random=3, seed=1)
    (one,), (other,), (again,) = (read.layers for read in (*pair, *alone))
    assert one.gain == pytest.approx(again.gain, rel=1e-4) == pytest.approx(other.gain, rel=1e-4)
    assert [word for word, _ in one.words.promoted] == [word for word, _ in again.words.promoted]
    assert [word for word, _ in one.words.promoted] == [word for word, _ in other.words.demoted]
    assert one.random_kurtosis.estimate == pytest.approx(again.random_kurtosis.estimate, rel=1e-3)
    assert one.random_gain.low <= one.random_gain.estimate <= one.random_gain.high


def test_a_record_comes_back_from_its_json(tiny_model):
    (found,) = read_jacobian_words(tiny_model, [DIRECTIONS], TEXTS, n_random=2)
    assert [one.layer for one in found.layers] == [0, 1, 2]
    assert found.to_json() == pl.vectors.JacobianWords.from_json(found.to_json()).to_json()


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"n_random": 1}, "n_random"), ({"max_tokens": 17}, "max_tokens"), ({"n_tokens": 0}, "n_tokens"),
     ({"directions": []}, "directions"), ({"directions": [torch.ones(2, 48)]}, "directions"), ({"texts": []}, "texts"),
     ({"texts": ["Short."]}, "rows"), ({"layers": [3]}, "layer"), ({"seed": -1}, "seed")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tiny_model, changed, name):
    with pytest.raises(pl.errors.InvalidArgumentError, match=name):
        read_jacobian_words(tiny_model, **{"directions": [DIRECTIONS], "texts": TEXTS} | changed)
