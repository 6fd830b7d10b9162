import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelBusyError
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.windows import Window
from persona_lens.monitoring import stream_tokens, streaming

ASK = [{"role": "user", "content": "Who?"}]
HOT = pl.Sampling(max_new_tokens=24, temperature=2.0, seed=3)


def read_whole(model, tokens, vectors):
    """The oracle: one pass over the finished text, projected afterwards."""
    prompt = pl.models.encode_prompt(model.tokenizer, ASK).tokens
    resid = pl.cache_residual_stream(model, torch.tensor([[*prompt, *(one.token_id for one in tokens)]]))
    return torch.stack(
        [
            torch.stack([pl.project(resid[layer, 0, len(prompt) :], v.unit(layer)) for layer in range(resid.shape[0])])
            for v in vectors.values()
        ]
    )


def stack(tokens):
    return torch.stack([one.projections for one in tokens], dim=-1)


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_is_the_answer_with_each_tokens_projections_at_every_layer(model, vectors, seed):
    sampling = pl.Sampling(max_new_tokens=24, temperature=2.0, seed=seed)
    tokens = list(stream_tokens(model, ASK, vectors, sampling=sampling))
    assert "".join(one.text for one in tokens) == pl.ask(model, ASK, sampling=sampling)
    assert [one.index for one in tokens] == list(range(len(tokens)))
    assert tokens[0].projections.dtype == torch.float32
    torch.testing.assert_close(stack(tokens), read_whole(model, tokens, vectors), atol=1e-3, rtol=1e-4)


def test_a_stream_ends_before_any_of_the_stop_tokens_and_its_last_token_is_read_too(model, vectors):
    whole = list(stream_tokens(model, ASK, vectors, sampling=HOT))
    stop = next(one.token_id for one in whole[3:] if one.token_id not in [w.token_id for w in whole[:3]])
    sampling = pl.Sampling(max_new_tokens=24, temperature=2.0, seed=3, stop_tokens=frozenset({stop, 258}))
    stopped = list(stream_tokens(model, ASK, vectors, sampling=sampling))
    n = [one.token_id for one in whole].index(stop)
    assert [one.token_id for one in stopped] == [one.token_id for one in whole[:n]]
    torch.testing.assert_close(stack(stopped), stack(whole[:n]))
    assert "".join(one.text for one in stopped) == pl.ask(model, ASK, sampling=sampling)


def test_what_is_done_to_the_stream_is_what_sampling_in_batches_does(model, vectors):
    greedy = pl.Sampling(max_new_tokens=12, temperature=0.0)
    steered = pl.steer(vectors["loud"], layer=1, coefficient=4.0)
    for done in (steered, steered.during(Window(start=3)), pl.ablate(vectors["shy"])):
        tokens = list(stream_tokens(model, ASK, vectors, intervention=done, sampling=greedy))
        request = pl.models.RolloutRequest("Who?", (0,), None, intervention=done)
        (found,) = pl.models.sample_rollouts(model, [request], greedy)
        assert "".join(one.text for one in tokens) == found.response
    gone = stack(tokens)[1]
    assert float(gone.abs().max()) < 1e-3


@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_the_stream_steers_the_prompt_where_its_sampling_says_so(model, vectors, positions):
    sampling = pl.Sampling(max_new_tokens=12, temperature=0.0, positions=positions)
    done = pl.steer(vectors["loud"], layer=1, coefficient=4.0)
    tokens = list(stream_tokens(model, ASK, vectors, intervention=done, sampling=sampling))
    request = pl.models.RolloutRequest("Who?", (0,), None, intervention=done)
    (found,) = pl.models.sample_rollouts(model, [request], sampling)
    assert "".join(one.text for one in tokens) == found.response
    assert {one.acting for one in tokens} == ({(1,)} if positions == "all" else {()})


def test_a_users_hooks_act_before_the_reading(model, vectors):
    with pl.steering(model, vectors["loud"], layer=1, coefficient=4.0, positions="response"):
        held = list(stream_tokens(model, ASK, vectors, sampling=HOT))
        assert "".join(one.text for one in held) == pl.ask(model, ASK, sampling=HOT)
    done = pl.steer(vectors["loud"], layer=1, coefficient=4.0)
    given = list(stream_tokens(model, ASK, vectors, intervention=done, sampling=HOT))
    assert [one.token_id for one in held] == [one.token_id for one in given]
    torch.testing.assert_close(stack(held), stack(given))


def test_a_gate_is_said_to_act_at_the_tokens_where_it_is_open_and_nowhere_else(model, vectors):
    plain = stack(list(stream_tokens(model, ASK, vectors, sampling=HOT)))[0, 1]
    steered = pl.steer(vectors["shy"], layer=1, coefficient=0.01)
    gated = pl.interventions.gate(steered, vectors["loud"], above=float(plain.median()))
    tokens = list(stream_tokens(model, ASK, vectors, intervention=gated, sampling=HOT))
    unit, shift = vectors["loud"].unit(1), 0.01 * vectors["shy"].direction(1)
    for one in tokens:
        before = float(one.projections[0, 1]) - (float(shift @ unit) if one.acting else 0.0)
        assert bool(one.acting) == (before > float(plain.median()))
    assert {one.acting for one in tokens} == {(), (1,)}


def test_heads_are_changed_too(model, vectors):
    done = pl.Intervention.of(1, pl.tensors.Add(torch.ones(model.cfg.d_head), 3.0), head=2)
    greedy = pl.Sampling(max_new_tokens=8, temperature=0.0)
    tokens = list(stream_tokens(model, ASK, vectors, intervention=done, sampling=greedy))
    request = pl.models.RolloutRequest("Who?", (0,), None, intervention=done)
    (found,) = pl.models.sample_rollouts(model, [request], greedy)
    assert "".join(one.text for one in tokens) == found.response
    assert {one.acting for one in tokens} == {(1,)}


def test_hooks_are_attached_once_for_a_whole_answer(model, vectors, monkeypatch):
    n_attached = []
    monkeypatch.setattr(streaming, "attached", lambda *given: n_attached.append(1) or attached(*given))
    assert len(list(stream_tokens(model, ASK, vectors, sampling=HOT))) > 2
    assert len(n_attached) == 1


def test_a_stream_that_is_closed_early_or_breaks_leaves_no_hook_and_a_free_model(model, vectors):
    stream = stream_tokens(model, ASK, vectors, sampling=HOT)
    next(stream)
    with pytest.raises(ModelBusyError):
        pl.ask(model, "Who?", sampling=HOT)
    stream.close()
    assert not [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    broken = pl.Intervention.of(1, pl.tensors.Add(torch.ones(model.cfg.d_model), 10.0))
    overflowing = [("blocks.1.hook_resid_post", lambda residual, hook: residual * torch.inf)]
    with model.hooks(fwd_hooks=overflowing), pytest.raises(pl.errors.NonFiniteError):
        list(stream_tokens(model, ASK, vectors, intervention=broken, sampling=HOT))
    assert not [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    pl.ask(model, "Who?", sampling=HOT)


def test_between_two_tokens_random_numbers_and_gradients_are_the_callers_own(model, vectors):
    expected = [one.token_id for one in stream_tokens(model, ASK, vectors, sampling=HOT)]
    torch.manual_seed(5)
    mine = torch.rand(8)
    torch.manual_seed(5)
    found, drawn = [], []
    for one in stream_tokens(model, ASK, vectors, sampling=HOT):
        found.append(one.token_id)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        if len(drawn) < 8:
            drawn.append(torch.rand(1))
    assert found == expected
    assert torch.equal(torch.cat(drawn), mine)


def test_what_does_not_fit_is_refused_before_anything_runs(model, vectors):
    with pytest.raises(InvalidArgumentError, match="vectors"):
        stream_tokens(model, ASK, {})
    with pytest.raises(InvalidArgumentError, match="end where the assistant"):
        stream_tokens(model, [*ASK, {"role": "assistant", "content": "I."}], vectors)
    windowed = pl.steer(vectors["loud"], layer=1).during(Window())
    with pytest.raises(InvalidArgumentError, match="positions"):
        stream_tokens(model, ASK, vectors, intervention=windowed, sampling=pl.Sampling(positions="prompt"))
    with pytest.raises(InvalidArgumentError, match="d_model"):
        stream_tokens(model, ASK, vectors, intervention=pl.Intervention.of(1, pl.tensors.Ablate(torch.ones(3))))
