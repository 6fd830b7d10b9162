"""Steps on single attention heads: in hooks, in sampling and beside one another."""

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError, UnsupportedModelError
from persona_lens.models.engine.decoding import open_decoder
from persona_lens.models.engine.likelihood import mean_log_likelihoods
from persona_lens.models.engine.requests import SampleRequest, Sampling
from persona_lens.models.engine.sampling import sample_stream
from persona_lens.models.hooks.applying import RowInterventions
from persona_lens.models.hooks.intervention import check_interventions, check_steps
from persona_lens.models.hooks.sites import Site
from persona_lens.tensors.operations import Ablate, Add, Cap
from tests.backends import ARCHITECTURES, BACKENDS

N_LAYERS, N_HEADS, D_HEAD, D_MODEL = 3, 6, 8, 48
TOKENS = torch.randint(0, 250, (2, 11), generator=torch.Generator().manual_seed(5))
PROMPT = tuple(TOKENS[0].tolist())


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


def direction(seed, width=D_HEAD):
    return 3 * torch.randn(width, generator=torch.Generator().manual_seed(seed))


def shift(layer, head, coefficient=2.0, seed=0):
    return pl.Intervention.of(layer, Add(direction(seed), coefficient), head=head)


def read(model, names, intervention=None, tokens=TOKENS):
    """Activations of an ordinary pass, seen after what the intervention does."""
    hooks = [] if intervention is None else pl.interventions.intervention_hooks(intervention)
    found = {}

    def keep(value, hook):
        found[hook.name] = value.clone()

    points = {model.hook_dict[name].name: name for name in names}
    with torch.no_grad(), model.hooks(fwd_hooks=[*hooks, *((name, keep) for name in names)]):
        logits = model(tokens)
    return {points[name]: value for name, value in found.items()}, logits


Z = [f"blocks.{layer}.attn.hook_z" for layer in range(N_LAYERS)]
OUT = [f"blocks.{layer}.hook_attn_out" for layer in range(N_LAYERS)]
RESID = [f"blocks.{layer}.hook_resid_post" for layer in range(N_LAYERS)]


def weight_of(model, layer):
    """The output projection's weight, by head: [head, d_head, d_model]."""
    return model.blocks[layer].attn.W_O.detach()


def test_a_shifted_head_leaves_all_other_heads_and_all_earlier_layers_bit_by_bit(model):
    plain, _ = read(model, Z + RESID)
    steered, _ = read(model, Z + RESID, shift(1, 4))
    others = [head for head in range(N_HEADS) if head != 4]
    assert torch.equal(plain[Z[1]][:, :, others], steered[Z[1]][:, :, others])
    assert torch.equal(steered[Z[1]][:, :, 4], plain[Z[1]][:, :, 4] + 2 * direction(0))
    assert torch.equal(plain[Z[0]], steered[Z[0]])
    assert torch.equal(plain[RESID[0]], steered[RESID[0]])
    assert not torch.allclose(plain[RESID[1]], steered[RESID[1]], atol=0.01)


def test_attentions_output_moves_by_what_the_heads_weight_makes_of_the_shift(model):
    plain, _ = read(model, OUT)
    steered, _ = read(model, OUT, shift(1, 4) + shift(1, 0, seed=1))
    weight = weight_of(model, 1)
    expected = plain[OUT[1]] + (2 * direction(0)) @ weight[4] + (2 * direction(1)) @ weight[0]
    torch.testing.assert_close(steered[OUT[1]], expected, atol=1e-4, rtol=1e-5)


def test_coefficient_zero_changes_no_bit_anywhere(model):
    plain, logits = read(model, Z + RESID)
    idle, idle_logits = read(model, Z + RESID, shift(0, 1, 0.0) + shift(2, 5, 0.0))
    assert torch.equal(logits, idle_logits)
    assert all(torch.equal(plain[name], idle[name]) for name in Z + RESID)
    requests = [SampleRequest(PROMPT, (3,), one) for one in (pl.Intervention(), shift(1, 2, 0.0))]
    first, second = dict(sample_stream(model, requests, Sampling(max_new_tokens=8))).values()
    assert first.tokens == second.tokens


@pytest.mark.parametrize(
    "operation", [Add(direction(0), 2.0), Ablate(direction(0)), Cap(direction(0), floor=-0.1, ceiling=0.1)]
)
def test_every_operation_works_on_a_head(model, operation):
    plain, _ = read(model, Z)
    changed, _ = read(model, Z, pl.Intervention.of(1, operation, head=3))
    torch.testing.assert_close(changed[Z[1]][:, :, 3], operation(plain[Z[1]][:, :, 3]))
    assert not torch.allclose(changed[Z[1]][:, :, 3], plain[Z[1]][:, :, 3], atol=0.01)


def greedy(model, hooks, n):
    tokens = list(PROMPT)
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tuple(tokens[len(PROMPT) :])


@pytest.mark.parametrize("positions", ["response", "prompt", "all"])
def test_sampling_does_what_hooks_do_and_what_a_users_own_hook_does(model, positions):
    both = shift(0, 5, 1.5) + pl.Intervention.of(1, Add(direction(2, D_MODEL), 0.7)) + shift(1, 2, -2.0, seed=1)
    end = {"response": None, "prompt": len(PROMPT), "all": None}[positions]
    start = len(PROMPT) - 1 if positions == "response" else 0

    def own(head, seed, coefficient):
        def add(z, hook):
            z = z.clone()
            z[:, start:end, head] += coefficient * direction(seed)
            return z

        return add

    def own_residual(residual, hook):
        residual = residual.clone()
        residual[:, start:end] += 0.7 * direction(2, D_MODEL)
        return residual

    by_hand = greedy(model, [(Z[0], own(5, 0, 1.5)), (RESID[1], own_residual), (Z[1], own(2, 1, -2.0))], 12)
    request = [SampleRequest(PROMPT, (0,), both)]
    sampled = dict(sample_stream(model, request, Sampling(12, temperature=0.0, positions=positions)))[0].tokens
    length = None if positions == "all" else len(PROMPT)
    hooks = pl.interventions.intervention_hooks(both, positions=positions, prompt_length=length)
    assert sampled == by_hand == greedy(model, hooks, 12)
    assert sampled != greedy(model, [], 12)


def test_rows_with_one_operation_at_different_heads_share_no_prompt(model):
    """The same object at two heads: what is kept of the prompt tells them apart."""
    operation = Add(direction(0), 3.0)
    ways = [pl.Intervention.of(0, operation, head=head) for head in (0, 4)]
    how = Sampling(10, temperature=0.0, positions="all")
    together = dict(sample_stream(model, [SampleRequest(PROMPT, (0,), way) for way in ways], how))
    for index, way in enumerate(ways):
        assert together[index].tokens == greedy(model, pl.interventions.intervention_hooks(way), 10)
    assert together[0].tokens != together[1].tokens


def test_a_users_hook_on_heads_acts_in_scoring(model):
    texts = [pl.models.TokenSpans((*PROMPT, 40, 41, 42), len(PROMPT), len(PROMPT) + 3)]
    plain = mean_log_likelihoods(model, texts)
    with model.hooks(fwd_hooks=[(Z[1], lambda z, hook: z * torch.linspace(-3, 3, N_HEADS)[:, None])]):
        (found,) = mean_log_likelihoods(model, texts)
        with torch.no_grad():
            logs = model(torch.tensor([texts[0].tokens]))[0].log_softmax(-1)
    expected = sum(float(logs[at - 1, texts[0].tokens[at]]) for at in range(len(PROMPT), len(PROMPT) + 3)) / 3
    assert found == pytest.approx(expected, abs=1e-4)
    assert abs(found - plain[0]) > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_and_scoring_see_heads_as_an_ordinary_pass_does(tiny_folder, architecture, backend):
    model = pl.load_model(tiny_folder(architecture), backend=backend, dtype="float32", device="cpu")
    seen = {}

    def keep(z, hook):
        seen[hook.name] = z.clone()

    with model.hooks(fwd_hooks=[(Z[1], keep)]):
        with torch.no_grad():
            model(TOKENS)
        ordinary = seen.copy()
        seen.clear()
        with open_decoder(model) as decoder:
            decoder.extend(TOKENS, torch.zeros(2, dtype=torch.long), decoder.new_cache(2, 11))
    ((name, expected),) = ordinary.items()
    assert list(seen) == [name]
    assert seen[name].shape == expected.shape == (2, 11, N_HEADS, D_HEAD)
    torch.testing.assert_close(seen[name], expected, atol=1e-4, rtol=1e-4)


def test_each_row_gets_its_own_heads():
    rows = RowInterventions([Site(1, 2), Site(1), Site(1, 0)])
    assert [name for name, _ in rows.hook_pairs()] == [Z[1], Z[1], RESID[1]]
    ones = Add(torch.ones(D_HEAD), 1.0)
    rows.assign(
        [pl.Intervention.of(1, ones, head=2), pl.Intervention(), pl.Intervention.of(1, ones, ones, head=0)],
        torch.device("cpu"),
    )
    z = torch.zeros(3, 1, N_HEADS, D_HEAD)
    for name, hook in rows.hook_pairs():
        if name == Z[1]:
            z = hook(z, None)
        else:
            assert hook(torch.zeros(3, 1, D_MODEL), None) is None
    expected = torch.zeros(3, N_HEADS)
    expected[0, 2], expected[2, 0] = 1.0, 2.0
    assert torch.equal(z[:, 0, :, 0], expected)


def test_norms_are_kept_head_by_head(model):
    kept = (shift(1, 4) + shift(1, 0, seed=1)).keeping_norm()
    plain, steered = read(model, Z)[0], read(model, Z, kept)[0]
    torch.testing.assert_close(steered[Z[1]].norm(dim=-1), plain[Z[1]].norm(dim=-1), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(steered[Z[1]][:, :, [0, 4]], plain[Z[1]][:, :, [0, 4]], atol=0.01)


def test_what_is_said_of_an_intervention_without_heads_is_what_it_always_was():
    ones = Add(torch.ones(4), 2.0)
    plain = pl.Intervention.of(1, ones)
    assert plain.describe() == [{"layer": 1, "kind": "Add", "direction": "f6bb1294da2f78cd", "coefficient": 2.0}]
    assert plain.digest == "219fb94cf646c71e"
    at_head = pl.Intervention.of(1, ones, head=0)
    assert at_head.describe() == [{"layer": 1, "head": 0, **plain.describe()[0]}]
    assert len({one.digest for one in (plain, at_head, pl.Intervention.of(1, ones, head=1))}) == 3
    add = "Add 2 × a vector of length 2"
    assert repr(plain + at_head) == f"Intervention(layer 1, head 0: {add}; layer 1: {add})"
    assert (plain + at_head).layers == (1,)
    assert (plain + at_head).at(1) == (plain + at_head).at(1, 0) == (ones,)


def test_heads_that_do_not_fit_are_refused():
    shape = (N_LAYERS, D_MODEL, N_HEADS, D_HEAD)
    check_steps((shift(2, 5) + shift(0, 0)).steps, *shape)
    for bad, error, words in (
        (shift(2, 6), InvalidArgumentError, r"head.*\[0, 6\)"),
        (shift(2, -1), InvalidArgumentError, r"head.*\[0, 6\)"),
        (shift(3, 0), LayerOutOfRangeError, r"\[0, 3\)"),
        (pl.Intervention.of(1, Add(torch.ones(D_MODEL), 1.0), head=0), InvalidArgumentError, "d_head=8"),
        (pl.Intervention.of(1, Add(torch.ones(D_HEAD), 1.0)), InvalidArgumentError, "d_model=48"),
    ):
        with pytest.raises(error, match=words):
            check_steps(bad.steps, *shape)


def test_a_model_without_a_hook_on_its_heads_is_refused_by_name(model, monkeypatch):
    points = {name: point for name, point in model.hook_dict.items() if name != Z[1]}
    monkeypatch.setattr(model if "hook_dict" in vars(model) else type(model), "hook_dict", points)
    check_interventions(model, [shift(0, 0)])
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.attn\.hook_z"):
        check_interventions(model, [shift(0, 0) + shift(1, 0)])


def test_a_with_block_of_heads_follows_generate_and_finds_what_was_never_reached(model):
    where = pl.interventions.intervention_hooks(shift(1, 3), positions="response")
    inputs = torch.tensor([PROMPT])
    with pl.hooked(model, where):
        generated = model.generate(
            inputs, max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens"
        )
    expected = pl.interventions.intervention_hooks(shift(1, 3), positions="response", prompt_length=len(PROMPT))
    assert tuple(generated[0, len(PROMPT) :].tolist()) == greedy(model, expected, 8)
    with pytest.raises(pl.errors.HookNeverFiredError, match="layer 1, head 3"), pl.hooked(model, shift(1, 3)):
        pass
