import pytest
import torch

import persona_lens as pl
from persona_lens.errors import ContextLengthError, InvalidArgumentError
from persona_lens.models.engine.activations import pool_ends, pool_residual_stream
from persona_lens.models.engine.likelihood import mean_log_likelihoods
from persona_lens.models.text.spans import TokenSpans
from tests.backends import BACKENDS


@pytest.fixture(params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


def random_tokens(*shape):
    return torch.randint(0, 250, shape, generator=torch.Generator().manual_seed(5))


def test_the_cache_is_every_layers_output_and_nothing_stays_on_the_model(model):
    tokens = random_tokens(2, 7)
    found = pl.cache_residual_stream(model, tokens)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    for layer in range(3):
        torch.testing.assert_close(found[layer], cache[f"blocks.{layer}.hook_resid_post"])
    assert found.shape == (3, 2, 7, 48)
    assert not found.requires_grad
    assert not [name for name, point in model.hook_dict.items() if point.fwd_hooks]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_where_there_is_none(model, side):
    rows = [random_tokens(12)[:n] for n in (5, 12, 8)]
    tokens = torch.full((3, 12), 256)
    is_padding = torch.ones(3, 12, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(12 - len(row), 12) if side == "left" else slice(0, len(row))
        tokens[i, where] = row
        is_padding[i, where] = False
    found = pl.cache_residual_stream(model, tokens, is_padding=is_padding)
    for i, row in enumerate(rows):
        alone = pl.cache_residual_stream(model, row[None])[:, 0]
        torch.testing.assert_close(found[:, i][:, ~is_padding[i]], alone, atol=1e-4, rtol=1e-4)


def test_a_padding_token_inside_a_row_is_a_token_like_any_other(model):
    """TransformerLens would guess from its id that it is padding."""
    tokens = random_tokens(1, 8)
    tokens[0, :2] = 256  # the pad token, which is also the BOS
    whole = pl.cache_residual_stream(model, tokens)
    other = pl.cache_residual_stream(model, torch.cat([torch.full((1, 2), 3), tokens[:, 2:]], dim=1))
    assert not torch.allclose(whole[:, :, 2:], other[:, :, 2:], atol=1e-3)


def test_hooks_already_on_the_model_take_effect(model):
    tokens = random_tokens(1, 6)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda residual, hook: residual + 1)]):
        found = pl.cache_residual_stream(model, tokens)
    torch.testing.assert_close(found[0], pl.cache_residual_stream(model, tokens)[0] + 1)


def test_bad_tokens_are_refused(model):
    with pytest.raises(ContextLengthError, match="256"):
        pl.cache_residual_stream(model, random_tokens(1, 257))
    one_row_of_padding = torch.tensor([[False] * 4, [True] * 4])
    with pytest.raises(InvalidArgumentError, match="is_padding"):
        pl.cache_residual_stream(model, random_tokens(2, 4), is_padding=one_row_of_padding)


def spans(*shapes):
    rows = []
    for prompt, response, rest in shapes:
        tokens = tuple(random_tokens(prompt + response + rest).roll(prompt).tolist())
        rows.append(TokenSpans(tokens, prompt, prompt + response))
    return rows


def test_pooled_means_are_those_of_the_cached_stream(model):
    conversations = spans((4, 9, 2), (30, 1, 0), (1, 60, 1), (4, 9, 0))
    pooled = dict(pool_residual_stream(model, conversations))
    assert sorted(pooled) == [0, 1, 2, 3]
    for index, item in enumerate(conversations):
        resid = pl.cache_residual_stream(model, torch.tensor([item.tokens]))[:, 0]
        start, end = item.response_start, item.response_end
        for found, expected in (
            (pooled[index].response_mean, resid[:, start:end].mean(1)),
            (pooled[index].prompt_mean, resid[:, :start].mean(1)),
            (pooled[index].last_prompt, resid[:, start - 1]),
        ):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_ends_are_the_prompts_last_token_the_responses_mean_and_its_last_token(model):
    conversations = spans((4, 9, 2), (30, 1, 0), (1, 60, 1))
    ends = dict(pool_ends(model, conversations))
    assert sorted(ends) == [0, 1, 2]
    for index, item in enumerate(conversations):
        resid = pl.cache_residual_stream(model, torch.tensor([item.tokens]))[:, 0]
        start, end = item.response_start, item.response_end
        expected = torch.stack([resid[:, start - 1], resid[:, start:end].mean(1), resid[:, end - 1]], dim=1)
        torch.testing.assert_close(ends[index], expected, atol=1e-4, rtol=1e-3)


def test_many_conversations_are_pooled_in_batches_without_changing_any(model):
    conversations = spans(*[(10 + i % 7, 100 + i, 0) for i in range(40)])
    pooled = dict(pool_residual_stream(model, conversations))
    ((_, alone),) = pool_residual_stream(model, [conversations[13]])
    torch.testing.assert_close(pooled[13].response_mean, alone.response_mean, atol=1e-5, rtol=1e-4)
    assert len(pooled) == 40


@pytest.mark.parametrize("span", [(0, 3), (3, 3), (2, 9)])
def test_an_empty_prompt_or_response_is_refused(model, span):
    with pytest.raises(InvalidArgumentError, match=r"conversations\[0\]"):
        next(pool_residual_stream(model, [TokenSpans((1, 2, 3, 4), *span)]))


def test_a_conversation_longer_than_the_context_is_refused(model):
    with pytest.raises(ContextLengthError, match="256"):
        next(pool_residual_stream(model, [TokenSpans((1,) * 300, 10, 300)]))


def test_no_batch_holds_many_more_tokens_than_a_fixed_number(model):
    """So memory does not grow with the number of conversations."""
    sizes = []
    conversations = spans(*[(10 + i % 7, 100 + i, 0) for i in range(40)])
    note = ("blocks.0.hook_resid_post", lambda residual, hook: sizes.append(residual.shape[0] * residual.shape[1]))
    with model.hooks(fwd_hooks=[note]):
        assert len(list(pool_residual_stream(model, conversations))) == 40
    assert max(sizes) < 2400
    assert len(sizes) > 1


def test_rows_may_fill_the_whole_context(model):
    tokens = random_tokens(1, 256)
    resid = pl.cache_residual_stream(model, tokens)[:, 0]
    ((_, pooled),) = pool_residual_stream(model, [TokenSpans(tuple(tokens[0].tolist()), 250, 256)])
    torch.testing.assert_close(pooled.response_mean, resid[:, 250:].mean(1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("token", [-1, 259])
def test_ids_that_are_no_tokens_are_refused(tiny_model, token):
    """Negative ones would be read from the vocabulary's end."""
    with pytest.raises(pl.errors.InvalidArgumentError, match=r"`tokens`.*\[0, 259\)"):
        pl.cache_residual_stream(tiny_model, torch.tensor([[5, token]]))
    with pytest.raises(pl.errors.InvalidArgumentError, match=r"conversations\[0\]\.tokens"):
        list(pool_residual_stream(tiny_model, [TokenSpans.join((5, token), (6,))]))
    with pytest.raises(pl.errors.InvalidArgumentError, match=r"conversations\[0\]\.tokens"):
        mean_log_likelihoods(tiny_model, [TokenSpans.join((5, token), (6,))])
    with pytest.raises(pl.errors.InvalidArgumentError, match="at least one token"):
        pl.cache_residual_stream(tiny_model, torch.zeros(1, 0, dtype=torch.long))
