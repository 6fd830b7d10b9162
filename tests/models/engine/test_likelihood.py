import pytest
import torch

import persona_lens as pl
from persona_lens.errors import ContextLengthError, InvalidArgumentError
from persona_lens.models.engine import likelihood
from persona_lens.models.engine.likelihood import mean_log_likelihoods
from persona_lens.models.text.spans import TokenSpans
from tests.backends import BACKENDS


@pytest.fixture(params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("qwen2"), backend=request.param, dtype="float32", device="cpu")


def conversations():
    generator = torch.Generator().manual_seed(0)

    def tokens(n):
        return tuple(torch.randint(0, 250, (n,), generator=generator).tolist())

    shared = tokens(21)
    pairs = [(shared, 9), (tokens(3), 40), (shared, 1), (tokens(1), 5), (shared, 33)]
    return [TokenSpans.join(prompt, tokens(length)) for prompt, length in pairs]


def test_likelihoods_are_those_of_the_ordinary_forward_pass(model):
    items = conversations()
    for item, found in zip(items, mean_log_likelihoods(model, items), strict=True):
        whole = item.prompt_tokens + item.response_tokens
        with torch.no_grad():
            log_probabilities = model(torch.tensor([whole]))[0].log_softmax(-1)
        n = len(item.prompt_tokens)
        expected = sum(log_probabilities[n + t - 1, token] for t, token in enumerate(item.response_tokens)) / len(
            item.response_tokens
        )
        assert found == pytest.approx(float(expected), abs=1e-4)


def test_neither_order_nor_neighbours_matter(model):
    items = conversations()
    together = mean_log_likelihoods(model, items)
    assert mean_log_likelihoods(model, items[::-1])[::-1] == pytest.approx(together, abs=1e-5)
    for item, found in zip(items, together, strict=True):
        assert mean_log_likelihoods(model, [item]) == pytest.approx([found], abs=1e-5)


def test_nothing_to_score_gives_nothing(model):
    assert mean_log_likelihoods(model, []) == []


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (TokenSpans.join((), (1,)), InvalidArgumentError),
        (TokenSpans.join((1,), ()), InvalidArgumentError),
        (TokenSpans.join((1,) * 200, (1,) * 57), ContextLengthError),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_model_runs(model, item, error, monkeypatch):
    monkeypatch.setattr("persona_lens.models.engine.likelihood.open_decoder", None)
    with pytest.raises(error, match=r"conversations\[1\]"):
        mean_log_likelihoods(model, [TokenSpans.join((1,), (1,)), item])


def test_many_long_responses_to_many_prompts_score_as_each_by_itself(model):
    """More prompts, padded tokens and scored positions than are computed at once."""
    generator = torch.Generator().manual_seed(1)
    lengths = [(1 + i % 11, 40 + i % 30) for i in range(45)]
    items = [
        TokenSpans.join(*(tuple(torch.randint(0, 250, (n,), generator=generator).tolist()) for n in pair))
        for pair in lengths
    ]
    together = mean_log_likelihoods(model, items)
    for item, found in zip(items, together, strict=True):
        assert mean_log_likelihoods(model, [item]) == pytest.approx([found], abs=1e-5)


def test_a_prompt_and_a_long_response_beside_a_long_prompt_and_a_short_response_fit(model):
    """Row lengths cross over: the longest prompt does not belong to the longest response."""
    items = [TokenSpans.join((3,) * 200, (5, 6)), TokenSpans.join((4,), (7, 8) * 40)]
    found = mean_log_likelihoods(model, items)
    for item, alone in zip(items, found, strict=True):
        assert mean_log_likelihoods(model, [item]) == pytest.approx([alone], abs=1e-5)


def test_a_continuation_may_fill_the_whole_context(model):
    (found,) = mean_log_likelihoods(model, [TokenSpans.join((1,) * 200, (2,) * 56)])
    with torch.no_grad():
        log_probabilities = model(torch.tensor([(1,) * 200 + (2,) * 56]))[0].log_softmax(-1)
    assert found == pytest.approx(float(log_probabilities[199:255, 2].mean()), abs=1e-4)


def test_the_tokens_computed_and_cached_at_once_are_bounded(model, monkeypatch):
    items = [TokenSpans.join((3,) * (5 + i), (6,) * (1 + i % 3)) for i in range(30)]
    items += [TokenSpans.join((3,) * 9, (i,)) for i in range(30)]  # many answers to one prompt
    expected = mean_log_likelihoods(model, items)
    computed, cached = [], []
    compute_prefixes, score_batch = likelihood.compute_prefixes, likelihood._score_batch

    def compute(decoder, prompts):
        computed.append(len(prompts) * max(map(len, prompts)))
        return compute_prefixes(decoder, prompts)

    def score(decoder, batch, prefixes):
        cached.append(len(batch) * max(len(item.prompt_tokens) + len(item.response_tokens) for item in batch))
        return score_batch(decoder, batch, prefixes)

    monkeypatch.setattr(likelihood, "compute_prefixes", compute)
    monkeypatch.setattr(likelihood, "_score_batch", score)
    monkeypatch.setattr(likelihood, "_PROMPT_TOKENS_AT_ONCE", 64)
    monkeypatch.setattr(likelihood, "_CACHED_TOKENS_AT_ONCE", 128)
    assert mean_log_likelihoods(model, items) == pytest.approx(expected, abs=1e-5)
    assert max(computed) <= 64
    assert max(cached) <= 128
