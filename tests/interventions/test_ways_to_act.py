"""Rotation, subspaces, gates and windows: alike in sampling, in hooks, around ``generate`` and by hand."""

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError, ModelMismatchError
from persona_lens.interventions import Window, ablate_span, gate, rotate
from persona_lens.models.engine.requests import SampleRequest, Sampling
from persona_lens.models.engine.sampling import sample_recorded_stream, sample_stream
from persona_lens.tensors import Ablate, AblateSubspace, Add, Gate, KeepNorm, Rotate
from tests.backends import BACKENDS
from tests.interventions.test_steering import GREEDY, make_vector

N = 12
PROMPTS = [
    tuple(torch.randint(0, 250, (n,), generator=torch.Generator().manual_seed(n)).tolist()) for n in (3, 10, 10, 17)
]


def direction(seed=0):
    return 3 * torch.randn(48, generator=torch.Generator().manual_seed(seed))


ROTATE = Rotate(direction(), 60.0)
SUBSPACE = AblateSubspace(torch.stack([direction(seed) for seed in range(12)]))
GATE = Gate((Add(direction(), 2.0),), direction(1), above=0.1)
OPERATIONS = [ROTATE, SUBSPACE, GATE, KeepNorm((GATE, ROTATE))]
WINDOWS = [Window(stop=3), Window(start=4), Window(start=1, stop=9, every=2), Window()]


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def vector(model):
    return make_vector(model)


def by_hand(model, prompt, parts, n=N):
    """The oracle: greedy plain passes over the whole text, each operation at the positions that are listed."""

    def act(operation, positions):
        def change(residual, hook):
            residual = residual.clone()
            for at in positions:
                if at < residual.shape[1]:
                    residual[:, at] = operation(residual[:, at])
            return residual

        return change

    hooks = [(f"blocks.{layer}.hook_resid_post", act(operation, at)) for layer, operation, at in parts]
    tokens = list(prompt)
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def sample(model, requests, **settings):
    return dict(sample_stream(model, requests, Sampling(**({"max_new_tokens": N, "temperature": 0.0} | settings))))


def generate(model, prompt, intervention, cached, **where):
    hooks = pl.interventions.intervention_hooks(intervention, **where)
    with pl.hooked(model, hooks):
        found = model.generate(torch.tensor([prompt]), max_new_tokens=N, use_past_kv_cache=cached, **GREEDY)
    return tuple(found[0, len(prompt) :].tolist())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: type(one).__name__)
def test_an_operation_acts_alike_in_sampling_in_hooks_and_by_hand(model, operation):
    prompt, done = PROMPTS[1], pl.Intervention.of(1, operation)
    expected = by_hand(model, prompt, [(1, operation, range(9, 99))])
    assert expected != by_hand(model, prompt, [])
    rows = [done, pl.Intervention.of(1, Add(direction(2), 1.0)), pl.Intervention(), done]
    found = sample(model, [SampleRequest(prompt, (0,), one) for one in rows])
    assert found[0].tokens == found[3].tokens == expected
    assert [generate(model, prompt, done, cached, positions="response") for cached in (True, False)] == [expected] * 2


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("positions", ["response", "all"])
def test_a_window_reaches_its_tokens_alike_in_sampling_in_hooks_and_by_hand(model, window, positions):
    prompt = PROMPTS[1]
    done = pl.Intervention.of(0, SUBSPACE) + pl.Intervention.of(1, Add(direction(), 2.0)).during(window)
    always = range(9 if positions == "response" else 0, 99)
    expected = by_hand(
        model, prompt, [(0, SUBSPACE, always), (1, Add(direction(), 2.0), [9 + t for t in range(N) if t in window])]
    )
    assert expected != by_hand(model, prompt, [(0, SUBSPACE, always)])
    assert sample(model, [SampleRequest(prompt, (0,), done)], positions=positions)[0].tokens == expected
    for cached in (True, False):
        assert generate(model, prompt, done, cached, positions=positions) == expected


def test_an_intervention_with_a_window_is_held_as_it_is(model):
    done = pl.Intervention.of(1, Add(direction(), 2.0)).during(Window(stop=3))
    expected = by_hand(model, PROMPTS[1], [(1, Add(direction(), 2.0), [9, 10, 11])])
    with pl.hooked(model, done):
        found = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=N, **GREEDY)
        with pytest.raises(
            InvalidArgumentError, match="`prompt_length` must be given for positions='all' and a window"
        ):
            model(torch.tensor([PROMPTS[1]]))
    assert tuple(found[0, 10:].tolist()) == expected


def test_rows_at_different_response_tokens_each_keep_to_their_own_windows(model):
    """Prompts of several lengths, rows that come and go, each as if alone and as by hand."""
    requests, expected = [], []
    for index in range(20):
        prompt, window, layer = PROMPTS[index % 4], WINDOWS[index % 3], index % 3
        shift = Add(direction(index), 1.5)
        requests.append(SampleRequest(prompt, (index,), pl.Intervention.of(layer, shift).during(window)))
        start = len(prompt) - 1
        expected.append(by_hand(model, prompt, [(layer, shift, [start + t for t in range(N) if t in window])]))
    stop = frozenset(range(120, 140))
    ended = [next((row[:at] for at, token in enumerate(row) if token in stop), row) for row in expected]
    assert len({len(row) for row in ended}) > 2
    for settings in ({"batch_size": 7}, {"batch_size": 20}, {"batch_size": 7, "positions": "all"}):
        found = sample(model, requests, stop_tokens=stop, **settings)
        assert [found[index].tokens for index in range(20)] == ended


def test_a_window_shares_the_plain_prompt_and_what_reaches_into_it_does_not(model):
    prompt, shift = PROMPTS[1], Add(direction(), -3.0)
    everywhere, late = pl.Intervention.of(0, shift), pl.Intervention.of(0, shift).during(Window(start=5))
    rows = [pl.Intervention(), everywhere, late, everywhere + late, late]
    found = sample(model, [SampleRequest(prompt, (0,), one) for one in rows], positions="all")
    after = range(9 + 5, 99)
    expected = [
        by_hand(model, prompt, parts)
        for parts in (
            [], [(0, shift, range(99))], [(0, shift, after)], [(0, shift, range(99)), (0, shift, after)],
            [(0, shift, after)],
        )
    ]  # fmt: skip
    assert [found[index].tokens for index in range(5)] == expected
    assert expected[1] != by_hand(model, prompt, [(0, shift, range(9, 99))])  # what is done to the prompt is seen
    assert len(set(expected)) > 2


def test_what_is_recorded_is_after_the_windows(model):
    prompt, shift = PROMPTS[1], Add(direction(), 1.5)
    request = SampleRequest(prompt, (0,), pl.Intervention.of(1, shift).during(Window(start=2, every=3)))
    ((_, found),) = sample_recorded_stream(model, [request], Sampling(max_new_tokens=N))

    def act(residual, hook):
        residual = residual.clone()
        residual[:, 9 + 2 :: 3] = shift(residual[:, 9 + 2 :: 3])
        return residual

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", act)]):
        resid = pl.cache_residual_stream(model, torch.tensor([prompt + found.tokens]))[:, 0]
    torch.testing.assert_close(found.residuals.response_mean, resid[:, 10:].mean(1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.residuals.prompt_mean, resid[:, :10].mean(1), atol=1e-4, rtol=1e-3)


def test_windows_are_refused_where_a_response_has_no_beginning(model, vector):
    done = pl.steer(vector, layer=1).during(Window(stop=4))
    with pytest.raises(InvalidArgumentError, match="`positions` must be 'response' or 'all'"):
        sample(model, [SampleRequest(PROMPTS[0], (0,), done)], positions="prompt")


def test_a_trace_shows_the_tokens_of_the_window(tiny_model):
    vector = make_vector(tiny_model)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes, I do."}]
    start = pl.models.encode_conversation(tiny_model.tokenizer, chat).response_start
    done = pl.steer(vector, layer=1, coefficient=2.0).during(Window(start=1, stop=6, every=2))
    steered = pl.trace(tiny_model, chat, vector, done).steered[1]
    assert steered.nonzero()[:, 0].tolist() == [start - 1 + token for token in (1, 3, 5)]


def test_a_rotation_turns_each_layer_to_its_own_direction(vector):
    turned = rotate(vector, layers=[0, 2], degrees=25.0)
    assert turned.layers == (0, 2)
    assert [(type(step.operation), step.operation.degrees) for step in turned.steps] == [(Rotate, 25.0)] * 2
    assert torch.equal(turned.at(2)[0].direction, vector.direction(2))
    with pytest.raises(InvalidArgumentError, match="layer"):
        rotate(vector, degrees=25.0)


def test_a_span_is_ablated_at_each_layer_whatever_the_order(model, vector):
    other = make_vector(model, seed=1, trait="quiet")
    removed = ablate_span([vector, other])
    assert removed.layers == (0, 1, 2)
    h = torch.randn(5, 48)
    left = removed.at(1)[0](h)
    torch.testing.assert_close(left, ablate_span([other, vector], layer=1).at(1)[0](h), atol=1e-5, rtol=1e-5)
    assert max(float(pl.project(left, one.direction(1)).abs().max()) for one in (vector, other)) < 1e-4
    with pytest.raises(InvalidArgumentError, match="linearly independent"):
        ablate_span([vector, other, vector + other])


def test_a_gate_looks_along_each_layers_direction_at_each_layers_threshold(vector):
    done = pl.Intervention.of(0, Add(direction(), 1.0)) + pl.Intervention.of(2, Ablate(direction()), GATE)
    gated = gate(done, vector, above=torch.tensor([1.0, 2.0, 3.0]), below=9.0)
    assert [(step.layer, step.operation.above, step.operation.below) for step in gated.steps] == [
        (0, 1.0, 9.0), (2, 3.0, 9.0),
    ]  # fmt: skip
    assert gated.at(2)[0].operations == done.at(2)
    assert torch.equal(gated.at(2)[0].direction, vector.direction(2))
    assert gated.fingerprint == vector.model.fingerprint


def test_a_gated_window_and_a_windowed_gate_are_the_same(model, vector):
    shift = pl.Intervention.of(1, Add(direction(), 2.0))
    ways = (gate(shift.during(WINDOWS[2]), vector, above=0.0), gate(shift, vector, above=0.0).during(WINDOWS[2]))
    assert ways[0].digest == ways[1].digest
    found = sample(model, [SampleRequest(PROMPTS[1], (0,), one) for one in ways])
    assert found[0].tokens == found[1].tokens


def test_a_gate_is_refused_where_its_vector_does_not_fit(vector, tiny_folder):
    other = make_vector(pl.load_model(tiny_folder("qwen2"), backend="bridge", dtype="float32", device="cpu"))
    for call, error, message in [
        (lambda: gate(pl.steer(vector, layer=1), other, above=0.0), ModelMismatchError, "vector"),
        (lambda: gate(pl.Intervention.of(5, ROTATE), vector, above=0.0), LayerOutOfRangeError, "layer"),
        (lambda: gate(pl.steer(vector, layer=1), vector), InvalidArgumentError, "`above` must be given"),
        (lambda: gate(pl.steer(vector, layer=1), vector, above=torch.zeros(2)), InvalidArgumentError, "one for each"),
    ]:
        with pytest.raises(error, match=message):
            call()
