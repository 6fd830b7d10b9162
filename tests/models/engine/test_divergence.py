import torch

from persona_lens.models.engine.divergence import token_divergences, token_log_likelihoods


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def test_the_divergence_is_torchs_from_the_first_to_the_second():
    reference, other = logits(0, 2, 5, 30), logits(1, 2, 5, 30)
    expected = torch.nn.functional.kl_div(
        other.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(token_divergences(reference, other), expected)
    assert not torch.allclose(token_divergences(other, reference), expected, rtol=0.01)
    assert (token_divergences(reference, reference) == 0).all()


def test_the_likelihood_is_torchs_cross_entropy():
    given, targets = logits(0, 2, 5, 30), torch.randint(0, 30, (2, 5), generator=torch.Generator().manual_seed(2))
    expected = -torch.nn.functional.cross_entropy(given.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(token_log_likelihoods(given, targets).flatten(), expected)


def test_both_are_computed_in_float32_whatever_the_model_computes_in():
    low = logits(0, 4, 30).bfloat16()
    assert token_divergences(low, logits(1, 4, 30).bfloat16()).dtype == torch.float32
    exact = token_log_likelihoods(low.float(), torch.zeros(4, dtype=torch.long))
    assert torch.equal(token_log_likelihoods(low, torch.zeros(4, dtype=torch.long)), exact)
