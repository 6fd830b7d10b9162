"""Activations of a text's last token are those of an ordinary forward pass."""

import pytest
import torch

import persona_lens as pl
from persona_lens.models.text.tokens import tokenize_plain
from persona_lens.traits import load_statements
from persona_lens.vectors import read_last_tokens, read_statements


def test_a_texts_last_token_has_the_activation_of_an_ordinary_pass_whatever_its_neighbours(tiny_model):
    texts = [(5, 6, 7), (9, 8), tuple(range(20, 40))]
    found = read_last_tokens(tiny_model, texts)
    for text, last in zip(texts, found, strict=True):
        expected = pl.cache_residual_stream(tiny_model, torch.tensor([text]))[:, 0, -1]
        torch.testing.assert_close(last, expected.float(), atol=1e-4, rtol=1e-4)


def test_true_statements_are_paired_with_the_false_ones_that_follow_and_groups_keep_apart(tiny_model):
    statements = [*load_statements("cities")[:8], *load_statements("arithmetic")[:4]]
    pairs = read_statements(tiny_model, statements)
    assert pairs.questions == (0, 0, 1, 1, 2, 2)
    texts = [tokenize_plain(tiny_model.tokenizer, one.text).tokens for one in statements]
    expected = read_last_tokens(tiny_model, texts)
    assert torch.equal(pairs.positive, expected[0::2])
    assert torch.equal(pairs.negative, expected[1::2])


def test_statements_that_do_not_take_turns_are_refused(tiny_model):
    statements = load_statements("cities")[:6]
    for wrong in (statements[1:5], statements[:2], statements[:5]):
        with pytest.raises(pl.errors.InvalidArgumentError, match="in turn"):
            read_statements(tiny_model, wrong)


def test_a_text_of_one_token_is_refused(tiny_model):
    with pytest.raises(pl.errors.InvalidArgumentError, match="at least 2 tokens"):
        read_last_tokens(tiny_model, [(5, 6), (7,)])
