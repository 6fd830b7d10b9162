import pytest
import torch

from persona_lens.models.engine.attention import SlotCache, Span, attend_grouped

CPU = torch.device("cpu")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ordinary_attention(queries, keys, values, mask, scale, softcap):
    """The oracle: key/value heads repeated, every step written out, in float64."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (heads.double().repeat_interleave(group, dim=1) for heads in (keys, values))
    scores = queries.double() @ keys.mT * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return ((scores + mask).softmax(dim=-1) @ values).float()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("n_pos", [1, 7])
@pytest.mark.parametrize("start", [20, 120, 240])  # short rows take two products, long ones the fused kernel
def test_grouped_attention_is_ordinary_attention_with_repeated_heads(start, n_pos, softcap):
    span = Span(torch.tensor([start, 3]), n_pos)
    queries = normal(2, 6, n_pos, 8)
    keys, values = normal(2, 2, span.key_length, 8, seed=1), normal(2, 2, span.key_length, 8, seed=2)
    for window in (None, 4):
        mask = span.mask(torch.float32, window)
        found = attend_grouped(queries, keys, values, mask, 0.7, softcap)
        torch.testing.assert_close(found, ordinary_attention(queries, keys, values, mask, 0.7, softcap))


@pytest.mark.parametrize("start", [0, 62, 63, 64])
@pytest.mark.parametrize("n_pos", [1, 2, 64])
def test_every_token_sees_itself_and_all_before_and_nothing_after(start, n_pos):
    span = Span(torch.tensor([0, start]), n_pos)
    visible = span.mask(torch.float32)[1, 0] == 0
    assert visible.sum(dim=-1).tolist() == list(range(start + 1, start + n_pos + 1))
    assert visible[-1, : start + n_pos].all()
    in_window = span.mask(torch.float32, window=3)[1, 0] == 0
    assert in_window.sum(dim=-1).tolist() == [min(3, p) for p in range(start + 1, start + n_pos + 1)]
    assert (visible | ~in_window).all()


def test_a_moved_slot_brings_all_its_positions_and_touches_no_other():
    cache = SlotCache(2, 3, 10, 2, 4, torch.float32, CPU)
    cache.keys.copy_(normal(*cache.keys.shape))
    cache.values.copy_(normal(*cache.values.shape, seed=1))
    before = [cache.read_prefix(slot, 10) for slot in range(3)]
    cache.move_slot(2, 0, 10)
    for slot, source in ((0, 2), (1, 1), (2, 2)):
        for found, expected in zip(cache.read_prefix(slot, 10), before[source], strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("n_pos", [1, 5])
def test_a_sink_takes_its_share_of_the_attention_and_gives_nothing(n_pos):
    """As a key without a value, beside the row's own, with a score of its own for each head."""
    drawn = torch.Generator().manual_seed(3)
    queries = torch.randn(2, 6, n_pos, 8, generator=drawn)
    keys, values = torch.randn(2, 2, 2, 9, 8, generator=drawn).unbind()
    sinks = torch.randn(6, generator=drawn)
    mask = torch.zeros(2, 1, n_pos, 9).masked_fill_(torch.rand(2, 1, n_pos, 9, generator=drawn) < 0.3, float("-inf"))
    scores = torch.einsum("rhpd,rhkd->rhpk", queries, keys.repeat_interleave(3, dim=1)) * 0.3 + mask
    weights = scores.exp() / (scores.exp().sum(dim=-1, keepdim=True) + sinks.exp()[:, None, None])
    expected = torch.einsum("rhpk,rhkd->rhpd", weights, values.repeat_interleave(3, dim=1))
    torch.testing.assert_close(attend_grouped(queries, keys, values, mask, 0.3, None, sinks), expected)
