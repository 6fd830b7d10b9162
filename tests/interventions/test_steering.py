import dataclasses
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import (
    ArgumentTypeError,
    HookNeverFiredError,
    HooksPresentError,
    InvalidArgumentError,
    LayerOutOfRangeError,
    ModelMismatchError,
)
from persona_lens.models.hooks.positions import PositionedHook
from tests.backends import BACKENDS

TOKENS = torch.tensor([[256, 40, 41, 42, 43, 44, 45], [256, 90, 80, 70, 60, 50, 40]])
LAST = "blocks.2.hook_resid_post"
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}


def make_vector(model, seed=0, trait="loud"):
    torch.manual_seed(seed)
    info = pl.describe_model(model)
    return pl.PersonaVector(trait, info, {"response_mean": torch.randn(info.n_layers, info.d_model)})


def make_vector_like(vector, trait):
    return dataclasses.replace(vector, trait=trait)


def make_ordinary(vector, std):
    """Two tokens a layer whose standard deviation is the one wanted."""
    half = torch.as_tensor(std)[:, None] / 2**0.5
    return pl.vectors.OrdinaryProjections(
        vector.trait, vector.model, vector.digest, torch.cat([-half, half], dim=1), 1, 0
    )


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def vector(model):
    return make_vector(model)


def raise_after(model):
    model(TOKENS)
    raise KeyError


def residual(model, tokens, hooks, layer=2):
    found = {}

    def keep(value, hook):
        found[layer] = value.clone()

    with torch.no_grad(), model.hooks(fwd_hooks=[*hooks, (f"blocks.{layer}.hook_resid_post", keep)]):
        model(tokens)
    return found[layer]


def test_steering_one_layer_adds_the_raw_vector_at_every_token(model, vector):
    base = residual(model, TOKENS, [], layer=1)
    steered = residual(model, TOKENS, pl.steering_hooks(vector, layer=1, coefficient=2.0), layer=1)
    torch.testing.assert_close(steered, base + 2 * vector.direction(1), atol=1e-5, rtol=1e-5)


def test_all_layer_steering_adds_the_increments(model, vector):
    """What the hooks add, layer by layer, sums up to the vector's last layer."""
    added = torch.zeros(48)
    for name, fn in pl.steering_hooks(vector, layers="all", coefficient=1.5):
        assert name.endswith("hook_resid_post")
        added += fn(torch.zeros(1, 1, 48), hook=None)[0, 0]
    torch.testing.assert_close(added, 1.5 * vector.direction(2), atol=1e-5, rtol=1e-5)


def test_several_layers_add_the_increments_between_them(vector):
    hooks = pl.steering_hooks(vector, layers=[2, 0])
    assert [name for name, _ in hooks] == ["blocks.0.hook_resid_post", LAST]
    first, second = (fn(torch.zeros(1, 1, 48), hook=None)[0, 0] for _, fn in hooks)
    torch.testing.assert_close(first, vector.direction(0))
    torch.testing.assert_close(second, vector.direction(2) - vector.direction(0))


def test_several_vectors_are_added_at_once(model, vector):
    other = make_vector(model, seed=1, trait="quiet")
    hooks = pl.steering_hooks([vector, other], layer=1, coefficient=[2.0, -3.0])
    expected = residual(model, TOKENS, [], layer=1) + 2 * vector.direction(1) - 3 * other.direction(1)
    torch.testing.assert_close(residual(model, TOKENS, hooks, layer=1), expected, atol=1e-4, rtol=1e-5)


def test_coefficient_zero_changes_no_bit(model, vector):
    with torch.no_grad():
        base = model(TOKENS)
        steered = model.run_with_hooks(TOKENS, fwd_hooks=pl.steering_hooks(vector, layers="all", coefficient=0.0))
    assert torch.equal(base, steered)


def test_ablation_leaves_no_projection_at_any_layer(model, vector):
    hooks = pl.ablation_hooks(vector)
    for layer in range(3):
        resid = residual(model, TOKENS, hooks, layer)
        assert pl.project(resid, vector.unit(layer)).abs().max() < 1e-4
        assert pl.project(residual(model, TOKENS, [], layer), vector.unit(layer)).abs().max() > 0.1


def test_capping_keeps_projections_between_quantiles(model, vector):
    resid = residual(model, TOKENS, [], layer=1)
    projections = pl.project(resid, vector.unit(1))
    low, high = projections.quantile(0.25).item(), projections.quantile(0.75).item()
    capped = residual(model, TOKENS, pl.capping_hooks(vector, layer=1, floor=low, ceiling=high), layer=1)
    torch.testing.assert_close(pl.project(capped, vector.unit(1)), projections.clamp(low, high), atol=1e-4, rtol=1e-4)
    by_layer = torch.tensor([99.0, high, 99.0])
    hooks = pl.capping_hooks(vector, ceiling=by_layer)
    assert len(hooks) == 3
    capped = residual(model, TOKENS, hooks[1:2], layer=1)
    torch.testing.assert_close(pl.project(capped, vector.unit(1)), projections.clamp(max=high), atol=1e-4, rtol=1e-4)


def test_norms_are_kept_where_asked(model, vector):
    base = residual(model, TOKENS, [], layer=1)
    steered = residual(model, TOKENS, pl.steering_hooks(vector, layer=1, coefficient=3.0, preserve_norm=True), layer=1)
    torch.testing.assert_close(steered.norm(dim=-1), base.norm(dim=-1), atol=1e-4, rtol=1e-5)
    moved = base + 3 * vector.direction(1)
    assert pl.cosine(steered[:, 1:], moved[:, 1:]).min() > 0.9999  # the padding token embeds as zero and stays so


def test_sigma_moves_each_layers_projection_by_standard_deviations(vector):
    ordinary = make_ordinary(vector, [0.5, 2.0, 3.0])
    hooks = pl.steering_hooks(vector, layer=1, coefficient=1.5, unit="sigma", ordinary=ordinary)
    step = hooks[0][1](torch.zeros(1, 1, 48), hook=None)[0, 0]
    assert pl.project(step, vector.unit(1)).item() == pytest.approx(3.0, rel=1e-4)
    total = sum(
        fn(torch.zeros(1, 1, 48), hook=None)[0, 0]
        for _, fn in pl.steering_hooks(vector, layers="all", unit="sigma", ordinary=ordinary)
    )
    torch.testing.assert_close(total, 3.0 * vector.unit(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", [[1, 1, 1, 1, 1, 1, 1]] * 2),
        ("response", [[0, 0, 0, 1, 1, 1, 1]] * 2),
        ("prompt", [[1, 1, 1, 1, 0, 0, 0]] * 2),
        (torch.eye(7)[[5, 1]] > 0, [[0, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0]]),
    ],
)  # fmt: skip
def test_only_the_tokens_meant_are_steered(model, vector, positions, expected):
    given_length = {} if isinstance(positions, torch.Tensor) or positions == "all" else {"prompt_length": 4}
    base = residual(model, TOKENS, [], layer=1)
    hooks = pl.steering_hooks(vector, layer=1, positions=positions, **given_length)
    changed = residual(model, TOKENS, hooks, layer=1) - base
    torch.testing.assert_close(
        pl.project(changed, vector.unit(1)), torch.tensor(expected) * vector.norms[1], atol=1e-4, rtol=1e-4
    )


def test_rows_may_have_prompts_of_different_lengths(model, vector):
    base = residual(model, TOKENS, [], layer=1)
    hooks = pl.steering_hooks(vector, layer=1, positions="response", prompt_length=[2, 6])
    changed = (residual(model, TOKENS, hooks, layer=1) - base).norm(dim=-1) > 1e-3
    assert changed.tolist() == [[False] + [True] * 6, [False] * 5 + [True] * 2]


@pytest.mark.parametrize("positions", ["all", "response", "prompt"])
def test_generate_gives_the_same_tokens_with_and_without_the_cache(model, vector, positions):
    """And they are those of a loop of plain calls that are told the prompt's length."""
    found = {}
    for cached in (True, False):
        with pl.steering(model, vector, layer=1, coefficient=4.0, positions=positions):
            found[cached] = model.generate(
                TOKENS[:1], max_new_tokens=6, do_sample=False, use_past_kv_cache=cached, stop_at_eos=False,
                verbose=False, return_type="tokens",
            )  # fmt: skip
    assert torch.equal(found[True], found[False])
    length = {} if positions == "all" else {"prompt_length": 7}
    tokens = TOKENS[:1]
    hooks = pl.steering_hooks(vector, layer=1, coefficient=4.0, positions=positions, **length)
    for _ in range(6):
        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found[True], tokens)
    unsteered = model.generate(
        TOKENS[:1], max_new_tokens=6, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens"
    )
    assert not torch.equal(found[True], unsteered)


def test_a_mask_reaches_the_tokens_that_generate_adds(model, vector):
    mask = torch.zeros(1, 20, dtype=torch.bool)
    mask[:, 6:] = True  # the last prompt token and all after it
    arguments = {
        "max_new_tokens": 6,
        "do_sample": False,
        "stop_at_eos": False,
        "verbose": False,
        "return_type": "tokens",
    }
    with pl.steering(model, vector, layer=1, coefficient=4.0, positions="response"):
        expected = model.generate(TOKENS[:1], **arguments)
    with pl.steering(model, vector, layer=1, coefficient=4.0, positions=mask):
        assert torch.equal(model.generate(TOKENS[:1], **arguments), expected)
    with (
        pytest.raises(InvalidArgumentError, match="cover 1 rows"),
        pl.steering(model, vector, layer=1, positions=mask[:, :9]),
    ):
        model.generate(TOKENS[:1], **arguments)


def test_rows_steered_together_equal_rows_steered_alone(model, vector):
    hooks = pl.steering_hooks(vector, layer=1, coefficient=3.0, positions="response", prompt_length=3)
    with torch.no_grad():
        together = model.run_with_hooks(TOKENS, fwd_hooks=hooks)
        for row in range(2):
            alone = model.run_with_hooks(TOKENS[row : row + 1], fwd_hooks=hooks)
            torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)


def test_left_padding_changes_nothing(model, vector):
    padded = torch.cat([torch.full((1, 3), 256), TOKENS[1:]], dim=1)
    attention_mask = torch.tensor([[0] * 3 + [1] * 7])
    kwargs = {"layer": 1, "coefficient": 3.0, "positions": "response"}
    with torch.no_grad():
        plain = model.run_with_hooks(TOKENS[1:], fwd_hooks=pl.steering_hooks(vector, prompt_length=4, **kwargs))
        hooks = pl.steering_hooks(vector, prompt_length=3 + 4, **kwargs)
        shifted = model.run_with_hooks(padded, attention_mask=attention_mask, fwd_hooks=hooks)
    torch.testing.assert_close(shifted[:, 3:], plain, atol=1e-3, rtol=1e-3)


def test_run_with_cache_sees_the_steered_residual(model, vector):
    with pl.steering(model, vector, layer=1, coefficient=2.0), torch.no_grad():
        _, cache = model.run_with_cache(TOKENS, names_filter=[LAST])
    expected = residual(model, TOKENS, pl.steering_hooks(vector, layer=1, coefficient=2.0), layer=2)
    torch.testing.assert_close(cache[LAST], expected, atol=1e-5, rtol=1e-5)


def test_a_model_is_bit_identical_after_use_exception_and_nesting(model, vector):
    with torch.no_grad():
        base = model(TOKENS)
        with pl.steering(model, vector, layer=1, coefficient=2.0):
            outer = model(TOKENS)
            with pl.steering(model, vector, layer=2, coefficient=-1.0, positions="response", prompt_length=3):
                inner = model(TOKENS)
            assert torch.equal(model(TOKENS), outer)
        assert not torch.equal(inner, outer)
        assert torch.equal(model(TOKENS), base)
        with pytest.raises(KeyError), pl.steering(model, vector, layer=1, positions="response", prompt_length=2):
            raise_after(model)
        assert torch.equal(model(TOKENS), base)
    assert "generate" not in vars(model)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_nested_blocks_both_know_what_generate_was_given(model, vector):
    arguments = {
        "max_new_tokens": 4,
        "do_sample": False,
        "stop_at_eos": False,
        "verbose": False,
        "return_type": "tokens",
    }
    with (
        pl.steering(model, vector, layer=1, coefficient=2.0, positions="response"),
        pl.steering(model, vector, layer=0, coefficient=2.0, positions="prompt"),
    ):
        nested = model.generate(TOKENS[:1], **arguments)
    hooks = pl.steering_hooks(vector, layer=1, coefficient=2.0, positions="response")
    hooks += pl.steering_hooks(vector, layer=0, coefficient=2.0, positions="prompt")
    with pl.hooked(model, hooks):
        assert torch.equal(model.generate(TOKENS[:1], **arguments), nested)


def test_a_block_in_which_nothing_runs_is_an_error(model, vector):
    with pytest.raises(HookNeverFiredError, match="layer 1"), pl.steering(model, vector, layer=1):
        pass
    with pytest.raises(HookNeverFiredError, match="layer 2"), pl.steering(model, vector, layer=2):
        model(TOKENS, stop_at_layer=1)


def test_a_plain_call_must_be_told_where_the_prompt_ends(model, vector):
    with (
        pytest.raises(InvalidArgumentError, match="prompt_length"),
        pl.steering(model, vector, layer=1, positions="response"),
    ):
        model(TOKENS)
    hooks = pl.steering_hooks(vector, layer=1, positions="response", prompt_length=[1, 2, 3])
    with pytest.raises(InvalidArgumentError, match="one a row"):
        model.run_with_hooks(TOKENS, fwd_hooks=hooks)


def test_sampling_inside_a_block_is_refused_where_its_positions_would_be_lost(model, vector):
    request = [pl.models.RolloutRequest("Why?", (0,))]
    settings = pl.Sampling(max_new_tokens=2)
    with pytest.raises(HooksPresentError), pl.steering(model, vector, layer=1, positions="response"):
        pl.models.sample_rollouts(model, request, settings)


def test_sampling_inside_a_block_steers_every_token(model, vector):
    request, settings = [pl.models.RolloutRequest("Why?", (0,))], pl.Sampling(max_new_tokens=6, positions="all")
    with pl.steering(model, vector, layer=1, coefficient=4.0):
        inside = pl.models.sample_rollouts(model, request, settings)[0].tokens
    shifted = pl.models.RolloutRequest("Why?", (0,), intervention=pl.steer(vector, layer=1, coefficient=4.0))
    assert inside == pl.models.sample_rollouts(model, [shifted], settings)[0].tokens


BAD_CALLS = [
    (lambda v: pl.steering_hooks(v), InvalidArgumentError, "layer"),
    (lambda v: pl.steering_hooks(v, layer=1, layers="all"), InvalidArgumentError, "not both"),
    (lambda v: pl.steering_hooks(v, layer=3), LayerOutOfRangeError, "layer"),
    (lambda v: pl.steering_hooks(v, layer=-1), LayerOutOfRangeError, "layer"),
    (lambda v: pl.ablation_hooks(v, layers=[0, 7]), LayerOutOfRangeError, "layer"),
    (lambda v: pl.steering_hooks(v, layer=1, coefficient=float("nan")), InvalidArgumentError, "coefficient"),
    (lambda v: pl.steering_hooks(v, layer=1, coefficient=[1.0, 2.0]), InvalidArgumentError, "a list of 1: one"),
    (lambda v: pl.steering_hooks([], layer=1), InvalidArgumentError, "vector"),
    (lambda v: pl.steering_hooks(v, layer=1, positions="middle"), InvalidArgumentError, "positions"),
    (lambda v: pl.steering_hooks(v, layer=1, positions=torch.ones(2, 3)), InvalidArgumentError, "positions"),
    (lambda v: pl.steering_hooks(v, layer=1, prompt_length=3), InvalidArgumentError, "prompt_length"),
    (lambda v: pl.steering_hooks(v, layer=1, positions="prompt", prompt_length=0), InvalidArgumentError, "at least 1"),
    (lambda v: pl.steering_hooks(v, layer=1, unit="sigma"), InvalidArgumentError, "ordinary"),
    (lambda v: pl.steering_hooks(v, layer=1, unit="inch"), InvalidArgumentError, "unit"),
    (lambda v: pl.capping_hooks(v, layer=1), InvalidArgumentError, "ceiling"),
    (lambda v: pl.capping_hooks(v, layer=1, ceiling=0.0, floor=1.0), InvalidArgumentError, "floor"),
    (lambda v: pl.capping_hooks(v, ceiling=torch.zeros(2)), InvalidArgumentError, "one for each"),
]


@pytest.mark.usefixtures("own_checks_alone")
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, np.int64, Fraction])
def test_a_real_number_of_another_library_does_what_pythons_does(vector, kind):
    def act(number):
        return (
            pl.steer(vector, layer=0, coefficient=number)
            + pl.steer([vector, vector], layer=1, coefficient=[number, 1.0])
            + pl.interventions.rotate(vector, layer=1, degrees=number)
            + pl.interventions.gate(pl.cap(vector, layer=2, ceiling=number), vector, above=number)
        )

    assert act(kind(2)).digest == act(2.0).digest
    assert repr(act(kind(2))) == repr(act(2.0))


@pytest.mark.usefixtures("own_checks_alone")
def test_a_coefficient_in_a_tensor_is_refused_with_the_way_to_its_number(vector):
    with pytest.raises(ArgumentTypeError, match=r"`coefficient`.*Give the number in it: coefficient\.item\(\)\.$"):
        pl.steer(vector, layer=1, coefficient=torch.tensor(1.0))


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_bad_arguments_name_the_parameter(vector, call, error, message):
    with pytest.raises((error, TypeError)) as caught:
        call(vector)
    assert message in str(caught.value)


def test_vectors_and_measurements_of_other_models_are_refused(model, vector, tiny_folder):
    other = make_vector(pl.load_model(tiny_folder("qwen2"), backend="bridge", dtype="float32", device="cpu"))
    with pytest.raises(ModelMismatchError), pl.steering(model, other, layer=1):
        pass
    with pytest.raises(ModelMismatchError):
        pl.steering_hooks([vector, other], layer=1)
    with pytest.raises(ModelMismatchError):
        pl.steering_hooks(vector, layer=1, unit="sigma", ordinary=make_ordinary(other, [1.0, 1.0, 1.0]))
    renamed = make_ordinary(make_vector(model, trait="quiet"), [1.0, 1.0, 1.0])
    with pytest.raises(InvalidArgumentError, match="quiet"):
        pl.steering_hooks(vector, layer=1, unit="sigma", ordinary=renamed)
    again = dataclasses.replace(vector, by_position={"response_mean": vector.directions.flip(-1)})
    with pytest.raises(InvalidArgumentError, match="this vector"):
        pl.steering_hooks(again, layer=1, unit="sigma", ordinary=make_ordinary(vector, [1.0, 1.0, 1.0]))


@settings(max_examples=20)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_hooks_concatenate_like_their_effects(tiny_bridge, first, second):
    vector = make_vector(tiny_bridge)
    one = pl.steering_hooks(vector, layer=1, coefficient=first) + pl.steering_hooks(vector, layer=1, coefficient=second)
    both = pl.steering_hooks(vector, layer=1, coefficient=first + second)
    torch.testing.assert_close(
        residual(tiny_bridge, TOKENS, one, 1), residual(tiny_bridge, TOKENS, both, 1), atol=1e-4, rtol=1e-4
    )


def test_hooks_that_ran_in_one_block_must_run_in_the_next_too(tiny_model):
    hooks = pl.steering_hooks(make_vector(tiny_model), layer=1)
    with pl.hooked(tiny_model, hooks):
        tiny_model(TOKENS)
    with pytest.raises(HookNeverFiredError), pl.hooked(tiny_model, hooks):
        pass


@pytest.mark.parametrize(
    ("make_hooks", "settings"),
    [(pl.steering_hooks, {"layer": 1}), (pl.ablation_hooks, {}), (pl.capping_hooks, {"ceiling": 0.0})],
)
def test_every_kind_of_hook_passes_on_where_it_acts_and_whether_norms_are_kept(tiny_model, make_hooks, settings):
    hooks = make_hooks(
        make_vector(tiny_model), positions="prompt", prompt_length=4, preserve_norm=True, **settings
    )  # fmt: skip
    ours = [fn for _, fn in hooks if isinstance(fn, PositionedHook)]
    assert ours
    for fn in ours:
        assert (fn.positions.positions, fn.positions.prompt_length) == ("prompt", 4)
        assert [type(operation) for operation in fn.operations] == [pl.tensors.KeepNorm]


def test_a_zero_vector_is_refused_where_it_would_steer_by_nothing(vector):
    nothing = vector - vector
    with pytest.raises(InvalidArgumentError, match="length above zero"):
        pl.steer(nothing, layer=1)
    with pytest.raises(InvalidArgumentError, match="length above zero"):
        pl.steer([vector, nothing], layers="all", coefficient=[1.0, 2.0])


def test_interventions_add_up_in_order(vector):
    steered, ablated = pl.steer(vector, layer=1), pl.ablate(vector, layers=[0, 1])
    both = steered + ablated
    assert both.layers == (0, 1)
    assert [type(one).__name__ for one in both.at(1)] == ["Add", "Ablate"]
    assert [type(one).__name__ for one in (ablated + steered).at(1)] == ["Ablate", "Add"]
    assert both.fingerprint == vector.model.fingerprint
    assert not pl.Intervention()
    assert (both.digest, (ablated + steered).digest) == (both.digest, (ablated + steered).digest)
    assert len({both.digest, (ablated + steered).digest, pl.steer(vector, layer=1, coefficient=2.0).digest}) == 3


def test_an_intervention_says_what_it_does_how_strongly_and_where(vector):
    quiet, last = make_vector_like(vector, "quiet"), vector.model.n_layers - 1
    assert repr(pl.steer(vector, layer=1, coefficient=-2.0)) == "Intervention(layer 1: Add -2 × loud)"
    assert repr(pl.steer(vector, layers="all", coefficient=0.5)) == (
        f"Intervention(layers 0-{last}: Add 0.5 × loud's increment)"
    )
    both = pl.steer(vector + quiet, layer=0) + pl.ablate([vector, quiet], layers=(0, last))
    assert repr(both) == (
        f"Intervention(layer 0: Add 1 × (loud + quiet), Ablate loud, Ablate quiet; layer {last}: "
        "Ablate loud, Ablate quiet)"
    )
    kept = pl.steer(vector, layer=1, coefficient=2.0).keeping_norm()
    assert repr(kept) == "Intervention(layer 1: KeepNorm(Add 2 × loud))"
    sigma = pl.steer(vector, layer=1, unit="sigma", ordinary=make_ordinary(vector, [1.0] * (last + 1)))
    assert repr(sigma) == "Intervention(layer 1: Add 1 × sd of loud)"
    assert repr(pl.Intervention()) == "Intervention(nothing)"


def test_the_way_an_intervention_is_shown_is_no_part_of_what_results_are_stored_under(vector):
    steered = pl.steer(vector, layer=1, coefficient=2.0)
    unnamed = pl.Intervention.of(1, *steered.at(1))
    assert steered.digest == unnamed.digest
    assert repr(steered) != repr(unnamed)


def test_hooks_of_a_name_that_is_no_hook_point_are_refused_with_the_one_that_was_meant(model, vector):
    def keep(activation, hook):
        return activation

    hooks = [*pl.steering_hooks(vector, layer=1, coefficient=2.0), ("blocks.1.hook_mlpout", keep)]
    rule = (
        "`hooks` must name hook points in model.hook_dict. Got 'blocks.1.hook_mlpout'. Did you mean 'blocks.1.hook_mlp_"
    )
    with pytest.raises(InvalidArgumentError, match=re.escape(rule)), pl.hooked(model, hooks):
        pass
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_an_intervention_made_from_another_models_vector_is_refused_before_the_model_runs(model, vector):
    other = dataclasses.replace(vector, model=dataclasses.replace(vector.model, fingerprint="0" * 16))
    foreign = pl.steer(other, layer=1)
    with pytest.raises(ModelMismatchError), pl.hooked(model, foreign):
        pass
    with pytest.raises(ModelMismatchError):
        pl.models.sample_rollouts(
            model, [pl.models.RolloutRequest("Why?", (0,), intervention=foreign)], pl.Sampling(max_new_tokens=2)
        )
    with pytest.raises(ModelMismatchError):
        foreign + pl.steer(vector, layer=1)


def test_an_intervention_on_a_block_is_what_its_hooks_do(model, vector):
    done = pl.steer(vector, layer=1, coefficient=2.0) + pl.ablate(vector, layer=2)
    expected = residual(model, TOKENS, pl.interventions.intervention_hooks(done))
    with pl.hooked(model, done):
        assert torch.equal(residual(model, TOKENS, []), expected)
