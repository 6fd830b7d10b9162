import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import AutoModelForCausalLM

import persona_lens as pl
from persona_lens.errors import (
    ContextLengthError,
    HooksPresentError,
    InvalidArgumentError,
    LayerOutOfRangeError,
    NonFiniteError,
)
from persona_lens.models.engine.drawing import NOT_FINITE, draw_tokens
from persona_lens.models.engine.requests import SampleRequest, Sampling
from persona_lens.models.engine.sampling import sample_recorded_stream, sample_stream
from persona_lens.tensors.operations import Ablate, Add
from tests.backends import BACKENDS

D_MODEL = 48


@pytest.fixture(params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


@pytest.fixture(params=BACKENDS)
def half_model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float16", device="cpu")


def prompts(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(0, 250, (n,), generator=generator).tolist()) for n in lengths]


def sample(model, requests, recorded=False, **settings):
    stream = sample_recorded_stream if recorded else sample_stream
    return dict(stream(model, requests, Sampling(**({"max_new_tokens": 12} | settings))))


def direction(seed=0):
    return 3 * torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))


def steer(layer, coefficient, seed=0):
    return pl.Intervention.of(layer, Add(direction(seed), coefficient))


def naive_greedy(model, prompt, n, hooks=()):
    """The oracle: the model's ordinary forward pass over the whole row, one token at a time, no cache."""
    tokens = list(prompt)
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_greedy_tokens_are_those_of_the_ordinary_forward_pass(model):
    many = prompts(2, 9, 33, 9, 1)
    found = sample(model, [SampleRequest(p, (i,)) for i, p in enumerate(many)], temperature=0.0)
    for index, prompt in enumerate(many):
        assert found[index].tokens == naive_greedy(model, prompt, 12)
        assert found[index].stop_reason == "length"


def test_greedy_tokens_are_those_of_hugging_faces_generate(model, tiny_folder):
    (prompt,) = prompts(14)
    hf_model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    hf_model.generation_config.eos_token_id = None
    generated = hf_model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    found = sample(model, [SampleRequest(prompt, (0,))], temperature=0.0)
    assert found[0].tokens == tuple(generated[0, 14:].tolist())


def test_sampled_tokens_follow_the_models_distribution(model):
    """First tokens of 4,000 rows against the softmax of the ordinary forward pass, by a chi-squared test."""
    from scipy.stats import chisquare

    (prompt,) = prompts(6)
    found = sample(model, [SampleRequest(prompt, (i,)) for i in range(4000)], max_new_tokens=1)
    counts = np.bincount([response.tokens[0] for response in found.values()], minlength=259)
    with torch.no_grad():
        expected = 4000 * model(torch.tensor([prompt]))[0, -1].double().softmax(-1).numpy()
    common = expected >= 5
    grouped = [np.append(values[common], values[~common].sum()) for values in (counts, expected)]
    assert chisquare(*grouped).pvalue > 1e-3


def test_a_rows_tokens_do_not_depend_on_its_batch(model):
    requests = [SampleRequest(p, (i,), steer(1, 1.0, i)) for i, p in enumerate(prompts(*range(2, 40)))]
    together = sample(model, requests, batch_size=64)
    small = sample(model, requests, batch_size=5)
    backwards = sample(model, requests[::-1], batch_size=17)
    for index, request in enumerate(requests[:8]):
        alone = sample(model, [request])[0]
        assert alone.tokens == together[index].tokens == small[index].tokens
        assert alone.tokens == backwards[len(requests) - 1 - index].tokens


def test_a_rows_tokens_depend_on_its_seed(model):
    (prompt,) = prompts(8)
    found = sample(model, [SampleRequest(prompt, seed) for seed in ((0, 1), (0, 1), (0, 2))])
    assert found[0].tokens == found[1].tokens
    assert found[0].tokens != found[2].tokens


def test_a_rows_draws_are_its_own_generators_one_a_token(model):
    """The oracle: NumPy's numbers of the row's seed, one by one, against the ordinary forward pass's distribution."""
    (prompt,) = prompts(9)
    found = sample(model, [SampleRequest(prompt, (0,)), SampleRequest(prompt, (4, 2))], temperature=0.7)[1]
    tokens = list(prompt)
    with torch.no_grad():
        for draw in np.random.default_rng((4, 2)).random(12):
            cumulative = (model(torch.tensor([tokens]))[0, -1].double() / 0.7).softmax(-1).cumsum(-1)
            tokens.append(int((cumulative <= draw).sum()))
    assert found.tokens == tuple(tokens[9:])


@pytest.mark.parametrize("recorded", [False, True])
def test_rows_that_stop_at_different_times_leave_the_others_as_if_alone(model, recorded):
    """Rows leave in the middle, others move into their slots, new ones come: each is as if it were alone."""
    requests = [SampleRequest(p, (i,), steer(i % 3, 1.0, i)) for i, p in enumerate(prompts(*range(2, 26)))]
    stops = frozenset(range(25))
    found = sample(model, requests, recorded, max_new_tokens=20, stop_tokens=stops, batch_size=7)
    lengths = [len(found[index].tokens) for index in range(24)]
    assert len(set(lengths)) > 8
    assert {response.stop_reason for response in found.values()} == {"stop", "length"}
    for index, request in enumerate(requests):
        alone = sample(model, [request], recorded, max_new_tokens=20, stop_tokens=stops)[0]
        assert (found[index].tokens, found[index].stop_reason) == (alone.tokens, alone.stop_reason)
        if recorded and alone.tokens:
            for name in ("response_mean", "prompt_mean", "last_prompt"):
                expected = getattr(alone.residuals, name)
                torch.testing.assert_close(getattr(found[index].residuals, name), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_rows_of_one_prompt_share_nothing_that_their_interventions_reach(model, positions):
    (prompt,) = prompts(10)
    requests = [SampleRequest(prompt, (0,)), *(SampleRequest(prompt, (0,), steer(0, c)) for c in (1.0, -2.0, 3.0))]
    together = sample(model, requests, temperature=0.0, positions=positions)
    for index, request in enumerate(requests):
        assert together[index].tokens == sample(model, [request], temperature=0.0, positions=positions)[0].tokens
    assert len({response.tokens for response in together.values()}) > 2


def test_a_prompt_may_fill_the_context_up_to_the_response_and_no_further(model):
    (prompt,) = prompts(245)
    found = sample(model, [SampleRequest(prompt[:244], (0,))], temperature=0.0)
    assert found[0].tokens == naive_greedy(model, prompt[:244], 12)
    with pytest.raises(ContextLengthError, match="at most 244 tokens"):
        sample(model, [SampleRequest(prompt, (0,))])


def test_each_row_gets_its_own_intervention(model):
    (prompt,) = prompts(10)
    settings = [(layer, coefficient) for layer in range(3) for coefficient in (1.0, -2.0)]
    requests = [SampleRequest(prompt, (0,), steer(layer, c, layer)) for layer, c in settings]
    found = sample(model, requests, temperature=0.0, batch_size=4)
    distinct = set()
    for index, (layer, coefficient) in enumerate(settings):

        def add(residual, hook, layer=layer, coefficient=coefficient):
            residual = residual.clone()
            residual[:, len(prompt) - 1 :] += coefficient * direction(layer)  # the default: from the last prompt token
            return residual

        assert found[index].tokens == naive_greedy(model, prompt, 12, [(f"blocks.{layer}.hook_resid_post", add)])
        distinct.add(found[index].tokens)
    assert len(distinct) > 3


@pytest.mark.parametrize(("positions", "start", "end"), [("response", 9, None), ("prompt", 0, 10), ("all", 0, None)])
def test_an_intervention_acts_at_its_positions_only(model, positions, start, end):
    (prompt,) = prompts(10)

    def add(residual, hook):
        residual = residual.clone()
        residual[:, start:end] += 2 * direction()
        return residual

    found = sample(model, [SampleRequest(prompt, (0,), steer(1, 2.0))], temperature=0.0, positions=positions)
    assert found[0].tokens == naive_greedy(model, prompt, 12, [("blocks.1.hook_resid_post", add)])


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("unembed.hook_in", torch.linspace(-1.0, 2.0, D_MODEL)),
        ("unembed.hook_out", torch.linspace(-1.0, 2.0, 259)),
        ("blocks.0.attn.hook_z", torch.linspace(-5.0, 5.0, 8)),
        ("blocks.0.attn.hook_pattern", torch.tensor(-5.0)),
    ],
)
def test_a_users_hook_takes_effect_while_sampling_or_is_refused(model, name, factors):
    (prompt,) = prompts(10)
    hook = (name, lambda value, hook: value * factors)
    plain, expected = naive_greedy(model, prompt, 12), naive_greedy(model, prompt, 12, [hook])
    assert expected != plain
    with model.hooks(fwd_hooks=[hook]):
        if name.endswith("pattern"):
            with pytest.raises(HooksPresentError, match=name):
                sample(model, [SampleRequest(prompt, (0,))])
        else:
            assert sample(model, [SampleRequest(prompt, (0,))], temperature=0.0)[0].tokens == expected


def test_coefficient_zero_changes_nothing(model):
    (prompt,) = prompts(10)
    plain, zero = sample(model, [SampleRequest(prompt, (5,)), SampleRequest(prompt, (5,), steer(1, 0.0))]).values()
    assert plain.tokens == zero.tokens


def test_two_interventions_of_a_row_both_act(model):
    (prompt,) = prompts(10)
    both = steer(0, 1.0) + pl.Intervention.of(2, Ablate(direction(1)))

    def add(residual, hook):
        residual = residual.clone()
        residual[:, 9:] += direction()
        return residual

    def ablate(residual, hook):
        unit = direction(1) / direction(1).norm()
        residual = residual.clone()
        residual[:, 9:] -= (residual[:, 9:] @ unit)[..., None] * unit
        return residual

    hooks = [("blocks.0.hook_resid_post", add), ("blocks.2.hook_resid_post", ablate)]
    found = sample(model, [SampleRequest(prompt, (0,), both)], temperature=0.0)
    assert found[0].tokens == naive_greedy(model, prompt, 12, hooks)


def test_a_stop_token_ends_a_row_and_is_left_out(model):
    (prompt,) = prompts(10)
    free = sample(model, [SampleRequest(prompt, (0,))], max_new_tokens=30)[0].tokens
    stop = free[7]
    first = free.index(stop)
    for recorded in (False, True):
        found = sample(
            model, [SampleRequest(prompt, (0,))], recorded, max_new_tokens=30, stop_tokens=frozenset({stop})
        )[0]
        assert found.tokens == free[:first]
        assert found.stop_reason == "stop"


def test_recording_changes_no_token_and_its_means_are_those_of_a_plain_pass(model):
    ways = (pl.Intervention(), steer(1, 1.0, 1), pl.Intervention(), steer(1, 1.0, 3))
    requests = [SampleRequest(p, (i,), ways[i]) for i, p in enumerate(prompts(1, 5, 30, 5))]
    plain = sample(model, requests, batch_size=2)
    recorded = sample(model, requests, recorded=True, batch_size=2)
    for index, request in enumerate(requests):
        response = recorded[index]
        assert response.tokens == plain[index].tokens
        n = len(request.prompt)

        def act(residual, hook, n=n, request=request):
            residual = residual.clone()
            for operation in request.intervention.at(1):
                residual[:, n - 1 :] = operation(residual[:, n - 1 :])
            return residual

        with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", act)]):
            resid = pl.cache_residual_stream(model, torch.tensor([request.prompt + response.tokens]))[:, 0]
        # Recording sees the stream after the row's interventions; this hook was added first, so the cache does too.
        for found, expected in (
            (response.residuals.response_mean, resid[:, n:].mean(1)),
            (response.residuals.prompt_mean, resid[:, :n].mean(1)),
            (response.residuals.last_prompt, resid[:, n - 1]),
        ):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_an_empty_response_has_no_means(model):
    (prompt,) = prompts(10)
    stop = sample(model, [SampleRequest(prompt, (0,))])[0].tokens[0]
    found = sample(model, [SampleRequest(prompt, (0,))], recorded=True, stop_tokens=frozenset({stop}))[0]
    assert found.tokens == ()
    assert found.residuals is None


def test_no_requests_give_no_responses(model):
    assert sample(model, []) == {}


@pytest.mark.parametrize("how", ["finished", "abandoned", "failed"])
def test_no_hook_is_left_behind(model, how, monkeypatch):
    removal = pl.Intervention.of(0, Ablate(direction(0)))
    requests = [SampleRequest(p, (i,), removal) for i, p in enumerate(prompts(3, 4))]

    if how == "failed":

        def fail(self, activations):
            raise ZeroDivisionError

        monkeypatch.setattr(Ablate, "__call__", fail)
        with pytest.raises(ZeroDivisionError):
            sample(model, requests, recorded=True)
    elif how == "abandoned":
        stream = sample_recorded_stream(model, requests, Sampling(max_new_tokens=4, batch_size=1))
        next(stream)
        stream.close()
    else:
        sample(model, requests, recorded=True)
    assert not [name for name, point in model.hook_dict.items() if point.fwd_hooks]


def test_bad_requests_are_refused_before_the_model_runs(model, monkeypatch):
    monkeypatch.setattr("persona_lens.models.engine.sampling.open_decoder", None)
    (prompt,) = prompts(4)
    wide = pl.Intervention.of(0, Add(torch.ones(D_MODEL + 1), 1.0))
    for request, error, words in (
        (SampleRequest((), (0,)), InvalidArgumentError, "at least one token"),
        (SampleRequest(prompt * 62, (0,)), ContextLengthError, "Shorten the prompt"),
        (SampleRequest(prompt, (0,), steer(3, 1.0)), LayerOutOfRangeError, r"\[0, 3\)"),
        (SampleRequest(prompt, (0,), wide), InvalidArgumentError, "d_model=48"),
    ):
        with pytest.raises(error, match=words):
            sample(model, [SampleRequest(prompt, (1,)), request])


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1),
     ("rollouts", 0), ("batch_size", 0), ("positions", "middle")],
)  # fmt: skip
def test_bad_settings_are_refused(name, value):
    with pytest.raises(Exception, match=name) as caught:
        dataclasses.replace(Sampling(), **{name: value})
    if name != "positions":  # there the run-time type check may come first
        assert isinstance(caught.value, InvalidArgumentError)


logits_strategy = arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 700)), elements=st.floats(-30, 30, width=32)
)


@settings(max_examples=150)
@given(logits_strategy, st.floats(0, 0.999), st.sampled_from([0.3, 1.0, 2.0]))
def test_a_drawn_token_is_where_the_cumulative_distribution_passes_the_draw(logits, draw, temperature):
    """Against NumPy in float64, leaving rounding room at the edges."""
    rows = torch.from_numpy(logits)
    found = draw_tokens(rows, torch.full((len(rows),), draw), temperature, 1.0)
    for row, token in zip(logits.astype(np.float64), found.tolist(), strict=True):
        p = np.exp((row - row.max()) / temperature)
        p /= p.sum()
        end = p[: token + 1].sum()
        assert end - p[token] <= draw + 1e-4
        assert end >= draw - 1e-4


@settings(max_examples=150)
@given(logits_strategy, st.floats(0, 0.999), st.sampled_from([0.1, 0.7, 0.95]))
def test_top_p_draws_no_token_beyond_the_mass(logits, draw, top_p):
    """However ties are broken: what is likelier than a drawn token has less mass than top_p."""
    rows = torch.from_numpy(logits)
    found = draw_tokens(rows, torch.full((len(rows),), draw), 1.0, top_p)
    for row, token in zip(logits.astype(np.float64), found.tolist(), strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        # By probability: logits that differ in the last bit alone may be equally likely.
        assert p[p > p[token] * (1 + 1e-6)].sum() < top_p + 1e-5


def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    draws = torch.linspace(0, 0.999, 200)
    kept = {int(draw_tokens(logits, draw[None], 1.0, 0.79)) for draw in draws}
    assert kept == {0, 1}
    assert {int(draw_tokens(logits, draw[None], 1.0, 0.81)) for draw in draws} == {0, 1, 2}


def test_a_token_without_mass_is_never_drawn():
    logits = torch.full((1, 600), float("-inf"))
    logits[0, 300] = 0.0
    for draw in (0.0, 0.5, 0.99999994, 1 - 2**-53):  # the last one rounds to 1 in float32
        assert int(draw_tokens(logits, torch.tensor([draw], dtype=torch.float64), 1.0, 1.0)) == 300


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "all -inf"])
def test_nothing_is_drawn_from_logits_that_are_not_finite(temperature, top_p, bad):
    logits = torch.randn(3, 600, generator=torch.Generator().manual_seed(0))
    expected = draw_tokens(logits, torch.full((3,), 0.5), temperature, top_p).tolist()
    if bad == "all -inf":
        logits[1] = float("-inf")
    else:
        logits[1, 511] = bad
    found = draw_tokens(logits, torch.full((3,), 0.5), temperature, top_p).tolist()
    assert found == [expected[0], NOT_FINITE, expected[2]]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_overflows_is_marked_with_its_layer_and_its_neighbours_are_not_changed(
    half_model, recorded, temperature
):
    model = half_model
    many = [SampleRequest(prompt, (i,)) for i, prompt in enumerate(prompts(5, 7, 5, 9))]
    alone = sample(model, many, recorded, temperature=temperature)
    many[1] = dataclasses.replace(many[1], intervention=steer(1, 1e6))  # float16 ends at 65,504
    found = sample(model, many, recorded, temperature=temperature)
    assert found[1].stop_reason == "not finite"
    assert found[1].broken_layer == 1
    assert found[1].residuals is None
    assert [found[i].tokens for i in (0, 2, 3)] == [alone[i].tokens for i in (0, 2, 3)]
    with pytest.raises(NonFiniteError, match=r"`requests\[1\]`.*layer 1, before response token 0"):
        found[1].check_finite("requests[1]")
    found[0].check_finite("requests[0]")


def test_a_rollout_that_overflows_is_an_error(half_model):
    requests = [pl.models.RolloutRequest("Who?", (i,)) for i in range(3)]
    requests[2] = dataclasses.replace(requests[2], intervention=steer(1, 1e6))
    with pytest.raises(NonFiniteError, match=r"requests\[2\].*Lower the steering coefficient"):
        pl.models.sample_rollouts(half_model, requests, Sampling(max_new_tokens=4))


@pytest.mark.parametrize("temperature", [1e-42, 9e-5, -1.0, float("nan"), float("inf")])
def test_a_temperature_at_which_logits_overflow_is_refused(temperature):
    with pytest.raises(InvalidArgumentError, match="temperature"):
        Sampling(temperature=temperature)


@pytest.mark.parametrize("token", [-1, 259, 10**12])
def test_ids_that_are_no_tokens_are_refused_before_the_model_runs(model, token):
    with pytest.raises(InvalidArgumentError, match=r"requests\[1\]\.prompt.*\[0, 259\)"):
        sample(model, [SampleRequest((5, 6), (0,)), SampleRequest((5, token), (1,))])
