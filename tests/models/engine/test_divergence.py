import torch

from persona_lens.models.engine.divergence import token_divergence


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def test_the_divergence_is_torchs_from_the_first_to_the_second():
    reference, other = logits(0, 2, 5, 30), logits(1, 2, 5, 30)
    expected = torch.nn.functional.kl_div(
        other.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(token_divergence(reference, other), expected)
    assert not torch.allclose(token_divergence(other, reference), expected, rtol=0.01)
    assert (token_divergence(reference, reference) == 0).all()


def test_it_is_computed_in_float32_whatever_the_model_computes_in():
    low, other = logits(0, 4, 30).bfloat16(), logits(1, 4, 30).bfloat16()
    assert torch.equal(token_divergence(low, other), token_divergence(low.float(), other.float()))
