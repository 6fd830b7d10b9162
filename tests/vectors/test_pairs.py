"""Pairs read from written answers, against the slow way and the vector that is read without keeping them."""

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import HooksPresentError, InvalidArgumentError
from persona_lens.vectors import find_vector, read_pairs, read_response_means
from tests.vectors.test_written import EXAMPLES, read_slowly


@pytest.mark.parametrize("against", ["opposite", "ordinary"])
def test_their_mean_difference_is_the_vector_that_is_read_without_keeping_them(tiny_model, against):
    pairs = read_pairs(tiny_model, "loud", EXAMPLES, against=against)
    for row, one in enumerate(EXAMPLES):
        expected = read_slowly(tiny_model, one.question, one.overt)
        torch.testing.assert_close(pairs.positive[row], expected, atol=1e-4, rtol=1e-4)
    found, expected = find_vector(pairs), pl.read_persona_vector(tiny_model, "loud", EXAMPLES, against=against)
    torch.testing.assert_close(found.directions, expected.directions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        found.split_half_cosine["response_mean"], expected.split_half_cosine["response_mean"], atol=1e-5, rtol=0
    )


def test_the_last_answer_of_each_conversation_is_read_in_the_order_given(tiny_model):
    answers = [(one.question, one.ordinary) for one in EXAMPLES] + [("Why?", "A much longer answer than the others.")]
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in answers
    ]
    found = read_response_means(tiny_model, conversations)
    for row, (question, answer) in enumerate(answers):
        torch.testing.assert_close(found[row], read_slowly(tiny_model, question, answer), atol=1e-4, rtol=1e-4)


def test_no_conversation_and_a_steered_model_are_refused(tiny_model):
    conversation = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    with pytest.raises(InvalidArgumentError, match="conversations"):
        read_response_means(tiny_model, [])
    with pl.hooked(tiny_model, pl.Intervention.of(1, pl.tensors.Add(torch.ones(48), 1.0))):
        tiny_model(torch.tensor([[1, 2]]))
        with pytest.raises(HooksPresentError):
            read_response_means(tiny_model, [conversation])


def test_some_of_the_pairs_are_taken_in_the_order_asked_and_others_refused(tiny_model):
    pairs = read_pairs(tiny_model, "loud", EXAMPLES)
    taken = pairs.take([3, 0, 3])
    assert torch.equal(taken.positive, pairs.positive[[3, 0, 3]])
    assert taken.questions == (3, 0, 3)
    for chosen in ([], [5], [-1]):
        with pytest.raises(InvalidArgumentError, match="chosen"):
            pairs.take(chosen)
