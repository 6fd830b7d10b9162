import torch

from persona_lens.models.text.chat import build_messages, encode_conversation
from persona_lens.models.text.spans import TokenSpans
from tests.tiny import make_tokenizer


def test_prompt_and_response_are_cut_from_the_tokens_and_what_follows_is_neither():
    spans = TokenSpans((1, 2, 3, 4, 5), 2, 4)
    assert spans.prompt_tokens == (1, 2)
    assert spans.response_tokens == (3, 4)
    assert spans.is_response.tolist() == [False, False, True, True, False]


def test_joined_spans_give_back_their_parts_and_an_empty_response():
    assert TokenSpans.join([1, 2], [3]) == TokenSpans((1, 2, 3), 2, 3)
    assert TokenSpans.join((1, 2), ()).response_tokens == ()


def test_an_encoded_conversation_is_a_span():
    encoded = encode_conversation(make_tokenizer(), [*build_messages("Hi"), {"role": "assistant", "content": "Yes"}])
    assert isinstance(encoded, TokenSpans)
    assert bytes(encoded.response_tokens).decode() != encoded.text
    assert torch.equal(encoded.is_response.nonzero()[:, 0], torch.arange(encoded.response_start, encoded.response_end))
