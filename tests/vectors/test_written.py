"""A vector read from written answers, against the slow way."""

import pytest
import torch

import persona_lens as pl
from persona_lens.models import encode_conversation
from tests.small_trait import write_examples

EXAMPLES = write_examples(5)


def read_slowly(model, question, answer):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    spans = encode_conversation(model.tokenizer, messages, n_ctx=model.cfg.n_ctx)
    cache = pl.cache_residual_stream(model, torch.tensor([spans.tokens]))
    return cache[:, 0, spans.response_start : spans.response_end].mean(dim=1)


@pytest.mark.parametrize("against", ["opposite", "ordinary"])
def test_it_is_the_mean_difference_of_the_responses_means(tiny_model, against):
    vector = pl.read_persona_vector(tiny_model, "loud", EXAMPLES, against=against)
    expected = torch.stack(
        [
            read_slowly(tiny_model, one.question, one.overt)
            - read_slowly(tiny_model, one.question, getattr(one, against))
            for one in EXAMPLES
        ]
    )
    torch.testing.assert_close(vector.directions, expected.mean(dim=0), atol=1e-4, rtol=1e-4)
    halves = expected[0::2].mean(dim=0), expected[1::2].mean(dim=0)
    cosines = torch.cosine_similarity(*halves, dim=-1)
    torch.testing.assert_close(vector.split_half_cosine["response_mean"], cosines, atol=1e-4, rtol=1e-4)


def test_it_steers_and_is_saved_like_any_vector_and_says_where_it_is_from(tiny_model, tmp_path):
    vector = pl.read_persona_vector(tiny_model, "loud", EXAMPLES)
    vector.save(tmp_path / "vector.safetensors")
    again = pl.PersonaVector.load(tmp_path / "vector.safetensors")
    assert torch.equal(again.directions, vector.directions)
    assert again.provenance["source"] == "written answers, overt against opposite"
    assert (again.counts.pairs, again.counts.kept) == (5, 5)
    other = pl.read_persona_vector(tiny_model, "loud", EXAMPLES[:4])
    assert other.provenance["examples"] != vector.provenance["examples"]
    with pl.steering(tiny_model, again, layer=1, coefficient=2.0):
        assert torch.isfinite(tiny_model(torch.tensor([[1, 2, 3]]))).all()


def test_what_cannot_be_contrasted_is_refused(tiny_model):
    with pytest.raises(pl.errors.InvalidArgumentError, match="examples"):
        pl.read_persona_vector(tiny_model, "loud", EXAMPLES[:1])
    with pytest.raises(pl.errors.InvalidArgumentError, match="overt"):
        pl.read_persona_vector(tiny_model, "loud", EXAMPLES, against="overt")
    with pl.steering(tiny_model, pl.read_persona_vector(tiny_model, "loud", EXAMPLES), layer=1):
        tiny_model(torch.tensor([[1, 2]]))
        with pytest.raises(pl.errors.HooksPresentError):
            pl.read_persona_vector(tiny_model, "loud", EXAMPLES)
